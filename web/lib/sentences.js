// An event as a line of the log, or an empty text where it is none: steps and progress are shown elsewhere.

import { duration, number, plural } from "./format.js";

const SENTENCES = {
  dataset: ({ pictures, rejected }) => `${plural(pictures, "picture")}${rejected ? `, ${rejected} left out` : ""}`,
  phase: ({ phase, done }) => (phase !== "train" && done === 0 ? phaseName(phase) : ""),
  plan: ({ verdict }) => (verdict === "tight" ? "the memory is planned: it will be tight" : ""),
  adapter: ({ modules, parameters }) => `${number(parameters / 1e6)} M parameters on ${plural(modules, "layer")}`,
  started: ({ resumed_from, steps }) => (resumed_from ? `goes on at step ${resumed_from} of ${steps}` : `begins, ${steps} steps`),
  evaluation: ({ step, loss, best }) => `step ${step}: held-out loss ${number(loss)}${best ? ", the best so far" : ""}`,
  sample: ({ step, prompt }) => (step ? `step ${step}: pictured “${prompt}”` : `the base pictured “${prompt}”`),
  score: ({ step, clip_score, prompt }) => `step ${step}: “${prompt}” scores ${number(clip_score)}`,
  checkpoint: ({ step }) => `step ${step}: saved`,
  verified: ({ matched, keys }) => `read back: ${matched} of ${keys} keys match`,
  job_changed: ({ changes, begins_from }) => `${begins_from ? `goes on from step ${begins_from.step} of ${begins_from.run_id}; ` : ""}changed: ${list(changes)}`,
  paused: ({ step }) => `paused at step ${step}; everything is saved`,
  continued: ({ step }) => `goes on at step ${step}`,
  warning: ({ message }) => message,
  stopped: ({ step }) => `stopped at step ${step}; everything is saved`,
  error: ({ message }) => message,
  done: ({ step, seconds }) => `finished ${step} steps in ${duration(seconds)}`,
};

const PHASES = {
  "check cache": "Checking the cache",
  "encode pictures": "Encoding pictures",
  "encode captions": "Encoding captions",
  "encode masks": "Encoding masks",
  index: "Looking at the pictures",
  load: "Loading the base",
  quantise: "Quantising",
  compile: "Compiling",
  sample: "Making pictures",
  evaluate: "Measuring the held-out loss",
  train: "Training",
  save: "Saving",
};

export const sentence = (event) => SENTENCES[event.event]?.(event) ?? "";

export const phaseName = (phase) => PHASES[phase] ?? phase.charAt(0).toUpperCase() + phase.slice(1);

const list = (changes) => changes.map(({ field, old, new: now }) => `${field} ${brief(old)} → ${brief(now)}`).join(", ");

function brief(value) {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text.length > 40 ? `${text.slice(0, 39)}…` : text;
}
