// The fold on the events of a real run of pico, which test_web.py has stopped, resumed and finished.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { emptyState, fold, foldAll, secondsLeft, stepsPerSecond } from "../../web/lib/fold.js";

const events = readFileSync(process.env.FLUX_LORA_EVENTS, "utf8").trim().split("\n").map((line) => JSON.parse(line));
const of = (kind) => events.filter(({ event }) => event === kind);
const last = (list) => list[list.length - 1];
const run = foldAll(emptyState(), events);

function freeze(value) {
  if (value && typeof value === "object") Object.values(Object.freeze(value)).forEach(freeze);
  return value;
}

test("event by event comes to the same as all at once, and no state is changed", () => {
  const one = events.reduce((state, event) => freeze(fold(state, event)), freeze(emptyState()));
  assert.deepEqual(one, run);
});

test("a finished run is known from its events alone", () => {
  assert.equal(run.outcome, "finished");
  assert.equal(run.step, last(of("done")).step);
  assert.equal(run.steps, last(of("started")).steps);
  assert.equal(run.lora, last(of("done")).lora);
  assert.equal(run.phase, null);
  assert.equal(run.runId, of("started")[0].run_id);
});

test("the loss has one point a step, though the run was stopped and went on", () => {
  assert.ok(of("stopped").length === 1 && of("started").length === 2);
  const steps = of("step");
  assert.deepEqual(run.curves.loss.steps, [1, 2, 3, 4, 5, 6]);
  assert.deepEqual(run.curves.loss.values, steps.map(({ loss }) => loss));
  assert.deepEqual(run.curves.gradient.values, steps.map(({ grad_norm }) => grad_norm));
  assert.deepEqual(run.curves.learningRate.values, steps.map(({ learning_rate }) => learning_rate));
});

test("held-out losses, pictures, checkpoints and memory are all there", () => {
  assert.deepEqual(run.curves.heldOut.steps, [...new Set(of("evaluation").map(({ step }) => step))]);
  assert.deepEqual([...new Set(run.pictures.map(({ step }) => step))], [...new Set(of("sample").map(({ step }) => step))]);
  assert.deepEqual(run.checkpoints, [...new Set(of("checkpoint").map(({ step }) => step))]);
  assert.equal(run.memory.ram.now, last(of("metrics")).memory_gib.ram);
  assert.equal(run.warnings.length, new Set(of("warning").map(({ message }) => message)).size);
});

test("the log tells of the stop, the resume and the end, in their order", () => {
  const kinds = run.lines.map(({ kind }) => kind).filter((kind) => ["started", "stopped", "done"].includes(kind));
  assert.deepEqual(kinds, ["started", "stopped", "started", "done"]);
  assert.match(last(run.lines.filter(({ kind }) => kind === "started")).text, /goes on at step 3 of 6/);
});

test("in the middle it trains, and knows its pace", () => {
  const half = foldAll(emptyState(), events.slice(0, events.indexOf(of("step")[1]) + 1));
  assert.equal(half.outcome, "running");
  assert.equal(half.phase.name, "train");
  const pace = 2 / (of("step")[0].seconds + of("step")[1].seconds);
  assert.ok(Math.abs(stepsPerSecond(half) - pace) < 1e-9);
  assert.ok(Math.abs(secondsLeft(half) - 4 / pace) < 1e-9);
});

test("steps that a killed run does again take the place of what lay behind them", () => {
  const again = { time: 1, event: "started", run_id: "x", pid: 1, resumed_from: 2, steps: 6 };
  const back = fold(run, again);
  assert.deepEqual(back.curves.loss.steps, [1, 2]);
  assert.ok(back.pictures.every(({ step }) => step <= 2));
  assert.equal(back.outcome, "running");
  assert.equal(back.lora, null);
});

test("an event of a kind that is not known is passed over", () => {
  const { changedAt, ...after } = fold(run, { time: 5, event: "news", step: 7 });
  const { changedAt: before, ...rest } = run;
  assert.deepEqual(after, rest);
});

test("a picture that is made while it waits shows its progress until it is done, and it still waits", () => {
  const paused = fold(fold(emptyState(), of("step")[0]), { event: "paused", time: 1, step: 1 });
  const [half, whole] = [1, 2].map((done) => fold(paused, { event: "phase", time: 2, phase: "sample", done, total: 2, seconds_left: 1 }));
  assert.deepEqual([half.outcome, half.phase.done, whole.outcome, whole.phase], ["paused", 1, "paused", null]);
});
