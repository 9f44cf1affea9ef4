// From the events of a run to what the panel shows: `fold(state, event)` gives the next state and leaves the one before as it was.
//
// Nothing else feeds the panel, so replaying `events.jsonl` redraws any past run. Kinds that are not known here are passed over.

import { addPoint, copyCurve, cutFrom, emptyCurve } from "./curve.js";
import { sentence } from "./sentences.js";

export const RUNNING = "running";
const PACE_STEPS = 20; // the steps whose mean duration is the pace
const MOST_LINES = 200;

export const emptyState = () => ({
  runId: "",
  outcome: "", // running, paused, stopped, failed, finished; empty before the first word
  message: "", // of a failure
  startedAt: null, // seconds since 1970, of the newest start
  changedAt: null,
  step: 0,
  steps: 0,
  resumedFrom: 0,
  secondsOfSteps: [],
  phase: null, // {name, done, total, secondsLeft}
  curves: { loss: emptyCurve(), heldOut: emptyCurve(), learningRate: emptyCurve(), gradient: emptyCurve() },
  best: null, // {step, loss} of the best evaluation
  memory: {}, // ram, card -> {now, peak} in GiB
  planned: {}, // ram, card -> GiB
  pictures: [], // {step, index, prompt, path, score}
  preview: null, // {step, path, time} of the picture that is being made
  checkpoints: [],
  warnings: [], // {text, count}
  lines: [], // {time, kind, text}
  dataset: null,
  lora: null,
  seconds: null, // that the whole run took
});

/** The state after one more event. */
export const fold = (state, event) => foldAll(state, [event]);

/** The state after several: the arrays are copied once, not once an event. */
export function foldAll(state, events) {
  const next = copy(state);
  for (const event of events) {
    if (Number.isFinite(event.time)) next.changedAt = event.time;
    TAKES[event.event]?.(next, event);
    const text = sentence(event);
    if (text) addLine(next, { time: event.time, kind: event.event, text });
  }
  return next;
}

/** Steps a second by the newest steps, or null. */
export function stepsPerSecond({ secondsOfSteps }) {
  const sum = secondsOfSteps.reduce((total, seconds) => total + seconds, 0);
  return sum > 0 ? secondsOfSteps.length / sum : null;
}

/** Seconds until the last step, or null. */
export function secondsLeft(state) {
  const pace = stepsPerSecond(state);
  return pace && state.steps ? Math.max(0, state.steps - state.step) / pace : null;
}

export const isOver = (outcome) => ["stopped", "failed", "finished", "interrupted"].includes(outcome);

function copy(state) {
  const curves = Object.fromEntries(Object.entries(state.curves).map(([name, curve]) => [name, copyCurve(curve)]));
  const arrays = ["secondsOfSteps", "pictures", "checkpoints", "warnings", "lines"];
  return { ...state, curves, ...Object.fromEntries(arrays.map((name) => [name, state[name].slice()])) };
}

function addLine(state, line) {
  const last = state.lines[state.lines.length - 1];
  if (last?.text === line.text) state.lines.pop();
  state.lines.push(line);
  if (state.lines.length > MOST_LINES) state.lines.shift();
}

function start(state, { run_id, resumed_from, steps, time }) {
  const { loss, heldOut, learningRate, gradient } = state.curves;
  for (const curve of [loss, heldOut, learningRate, gradient]) cutFrom(curve, resumed_from + 1);
  const pictures = state.pictures.filter((picture) => picture.step <= resumed_from);
  const begun = { runId: run_id, outcome: RUNNING, message: "", startedAt: time, resumedFrom: resumed_from, step: resumed_from };
  Object.assign(state, begun, { steps, pictures, secondsOfSteps: [], phase: null, lora: null, seconds: null });
  if (state.best?.step > resumed_from) state.best = null;
}

function phase(state, { phase: name, done, total, seconds_left }) {
  const isPaused = state.outcome === "paused"; // then no step tells that the phase is over
  state.phase = isPaused && done >= total ? null : { name, done, total, secondsLeft: seconds_left };
  if (!isPaused) state.outcome = RUNNING;
}

function step(state, event) {
  Object.assign(state, { step: event.step, steps: event.steps, outcome: RUNNING, preview: null });
  state.phase = { name: "train", done: event.step, total: event.steps, secondsLeft: null };
  addPoint(state.curves.loss, event.step, event.loss);
  addPoint(state.curves.learningRate, event.step, event.learning_rate);
  addPoint(state.curves.gradient, event.step, event.grad_norm);
  state.secondsOfSteps.push(event.seconds);
  if (state.secondsOfSteps.length > PACE_STEPS) state.secondsOfSteps.shift();
}

function metrics(state, { memory_gib }) {
  const memory = { ...state.memory };
  for (const [place, now] of Object.entries(memory_gib ?? {})) {
    memory[place] = { now, peak: Math.max(now, memory[place]?.peak ?? 0) };
  }
  state.memory = memory;
}

/** The phase that needs most, of each kind of memory. */
function plan(state, { phases }) {
  const planned = {};
  for (const needs of Object.values(phases)) {
    for (const [place, gibibytes] of Object.entries(needs)) planned[place] = Math.max(gibibytes, planned[place] ?? 0);
  }
  state.planned = planned;
}

function evaluation(state, { step: at, loss, best }) {
  addPoint(state.curves.heldOut, at, loss);
  if (best) state.best = { step: at, loss };
}

function sample(state, { step: at, index, prompt, path, ema = false }) {
  const picture = { step: at, index, prompt, path, ema, score: null };
  const same = (other) => other.step === at && other.index === index && other.path === path;
  state.pictures = [...state.pictures.filter((other) => !same(other)), picture];
  state.preview = null;
}

function score(state, event) {
  const isIt = ({ path, step: at }) => at === event.step && path?.includes(event.picture);
  state.pictures = state.pictures.map((picture) => (isIt(picture) ? { ...picture, score: event.clip_score } : picture));
}

function warning(state, { message }) {
  const known = state.warnings.find((other) => other.text === message);
  state.warnings = state.warnings.filter((other) => other !== known);
  state.warnings.push({ text: message, count: (known?.count ?? 0) + 1 });
}

function end(outcome) {
  return (state, event) => {
    Object.assign(state, { outcome, phase: null, preview: null, message: event.message ?? "" });
    if (Number.isFinite(event.step)) state.step = event.step;
    if (outcome === "finished") Object.assign(state, { lora: event.lora, seconds: event.seconds });
  };
}

const TAKES = {
  plan,
  started: start,
  phase,
  step,
  metrics,
  evaluation,
  sample,
  preview: (state, { step: at, path, time }) => Object.assign(state, { preview: { step: at, path, time } }),
  score,
  warning,
  dataset: (state, { pictures, rejected }) => Object.assign(state, { dataset: { pictures, rejected } }),
  checkpoint: (state, { step: at }) => {
    state.checkpoints = [...state.checkpoints.filter((other) => other !== at), at];
  },
  paused: (state) => Object.assign(state, { outcome: "paused" }),
  continued: (state) => Object.assign(state, { outcome: RUNNING }),
  stopped: end("stopped"),
  error: end("failed"),
  done: end("finished"),
};
