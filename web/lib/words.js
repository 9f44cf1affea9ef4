// What the panel and the history say of a run, from its folded events and the server's word.

import { duration, gibibytes, pace } from "./format.js";
import { isOver, secondsLeft, stepsPerSecond } from "./fold.js";
import { phaseName } from "./sentences.js";

const TOLERATED = 1; // GiB above the plan, which counts tensors and not the libraries

export const STATES = {
  running: "Training",
  paused: "Paused",
  finished: "Finished",
  stopped: "Stopped",
  failed: "Failed",
  interrupted: "Interrupted",
};

/** How the run stands: the server knows whether a process lives, the events know the rest. */
export const outcomeOf = ({ state, server }) => server || state.outcome;

/** The short word beside the dot. */
export function headline({ state, server, isLost, isGone }) {
  const outcome = outcomeOf({ state, server });
  if (isGone) return "No run";
  if (isLost && !isOver(outcome)) return "No answer";
  if (outcome === "running" && (!state.phase || state.phase.name !== "train")) {
    return state.phase ? phaseName(state.phase.name) : "Starting";
  }
  return STATES[outcome] ?? "Waiting";
}

/** How far, as a share of 1 and as words: of the steps, or of the phase that is on. */
export function progress({ state, server }) {
  const { phase, step, steps } = state;
  const isBusy = !isOver(outcomeOf({ state, server }));
  if (isBusy && phase && phase.name !== "train" && phase.total) {
    const left = phase.secondsLeft ? `, ${duration(phase.secondsLeft)} left` : "";
    return { share: phase.done / phase.total, text: `${phase.done} of ${phase.total}${left}`, isPhase: true };
  }
  return { share: steps ? step / steps : 0, text: steps ? `step ${step} of ${steps}` : "", isPhase: false };
}

/** Steps a second and the time left, while it trains; how long it took, once it is finished. */
export function speed({ state, server }) {
  if (outcomeOf({ state, server }) === "finished") return state.seconds === null ? "" : `in ${duration(state.seconds)}`;
  if (outcomeOf({ state, server }) !== "running" || !stepsPerSecond(state)) return "";
  const left = secondsLeft(state);
  return `${pace(stepsPerSecond(state))}${left ? ` · ${duration(left)} left` : ""}`;
}

/** A sentence on a run that is not simply running: how it ended and how it goes on. Empty where all is well. */
export function explanation({ state, server, isLost, isGone }, message = "") {
  const outcome = outcomeOf({ state, server });
  if (isGone) return "This run is not on this machine, or was deleted. Press Run to train it.";
  if (isLost && !isOver(outcome)) {
    return "ComfyUI does not answer. If it ended, the training saves what it has and ends too; queue the graph again to go on.";
  }
  const saved = state.checkpoints[state.checkpoints.length - 1];
  const told = message || state.message;
  return (
    {
      paused: "Everything is saved. Continue, or stop and go on another day.",
      stopped: `Everything up to step ${state.step} is saved; it goes on from there.`,
      failed: told || "It ended with an error; ComfyUI's log has more.",
      interrupted: `It ended without a word${saved ? `; it goes on from step ${saved}` : ""}.${told ? ` ${told}` : ""}`,
    }[outcome] ?? ""
  );
}

/** What each kind of memory holds: [{label, now, planned, share}], GiB. */
export function memoryRows({ memory, planned }) {
  const labels = { card: "Card", ram: "RAM" };
  return Object.keys(labels)
    .filter((place) => memory[place])
    .map((place) => {
      const { now } = memory[place];
      const most = planned[place];
      const text = most ? `${gibibytes(now)} of ${gibibytes(most)} planned` : gibibytes(now);
      return { label: labels[place], text, share: most ? now / most : null, isOver: Boolean(most) && now > most + TOLERATED };
    });
}
