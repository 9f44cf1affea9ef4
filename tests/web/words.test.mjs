// What the panel says: the server knows whether a process lives, the events know the rest.

import assert from "node:assert/strict";
import { test } from "node:test";

import { ago, duration, number, pace } from "../../web/lib/format.js";
import { emptyState, foldAll } from "../../web/lib/fold.js";
import { pairsAt, pictureSteps } from "../../web/lib/pictures.js";
import { explanation, headline, memoryRows, progress, speed } from "../../web/lib/words.js";

const begun = { time: 1, event: "started", run_id: "a-1", pid: 1, resumed_from: 0, steps: 100 };
const stepped = (step, seconds = 0.5) => ({ time: 2, event: "step", step, steps: 100, loss: 1, learning_rate: 1, grad_norm: 1, seconds });
const saved = { time: 3, event: "checkpoint", step: 20, path: "checkpoints/step-20" };
const state = foldAll(emptyState(), [begun, stepped(20), saved, stepped(21)]);

test("while it trains: steps a second and the time left", () => {
  const run = { state, server: "running" };
  assert.equal(headline(run), "Training");
  assert.equal(speed(run), "2 steps/s · 40 s left");
  assert.deepEqual(progress(run), { share: 0.21, text: "step 21 of 100", isPhase: false });
  assert.equal(explanation(run), "");
});

test("a phase shows its own progress", () => {
  const phase = { time: 3, event: "phase", phase: "encode captions", done: 37, total: 120, per_second: 10, seconds_left: 8.3 };
  const run = { state: foldAll(emptyState(), [phase]), server: "running" };
  assert.equal(headline(run), "Encoding captions");
  assert.deepEqual(progress(run), { share: 37 / 120, text: "37 of 120, 8 s left", isPhase: true });
});

test("a run that died is told apart from one that was stopped, and says where it goes on", () => {
  assert.match(explanation({ state, server: "interrupted" }, "Killed: out of memory."), /from step 20\. Killed: out of memory\.$/);
  const stopped = foldAll(state, [{ time: 4, event: "stopped", step: 21 }]);
  assert.match(explanation({ state: stopped, server: "stopped" }), /up to step 21 is saved/);
});

test("a server that does not answer, and a run that is gone, are said", () => {
  assert.match(explanation({ state, server: "running", isLost: true }), /does not answer/);
  assert.match(explanation({ state, server: "running", isLost: true, isGone: true }), /not on this machine/);
  assert.equal(headline({ state: emptyState(), server: "", isLost: true, isGone: true }), "No run");
  assert.equal(explanation({ state, server: "finished", isLost: true }), "");
});

test("memory stands against the plan where there is one", () => {
  assert.deepEqual(memoryRows({ memory: { ram: { now: 3 } }, planned: {} }), [{ label: "RAM", text: "3.0 GiB", share: null, isOver: false }]);
  const both = { memory: { ram: { now: 3 }, card: { now: 12 } }, planned: { card: 10 } };
  assert.deepEqual(memoryRows(both).map(({ text, isOver }) => [text, isOver]), [["12 GiB of 10 GiB planned", true], ["3.0 GiB", false]]);
});

test("the newest pictures stand beside the base's of the same prompt", () => {
  const pictures = [0, 50, 100].flatMap((step) => [0, 1].map((index) => ({ step, index, prompt: `p${index}`, path: `${step}/${index}` })));
  assert.deepEqual(pictureSteps(pictures), [50, 100]);
  assert.deepEqual(pairsAt(pictures, 100).map(({ path, base }) => [path, base]), [["100/0", "0/0"], ["100/1", "0/1"]]);
  assert.deepEqual(pictureSteps(pictures.slice(0, 2)), [0]);
  assert.equal(pairsAt(pictures.slice(0, 2), 0)[0].base, null);
  const typed = { step: 20, index: null, prompt: "typed in", path: "x" };
  assert.deepEqual(pictureSteps([...pictures.slice(0, 2), typed]), [0, 20], "the base's are not lost to what was typed in");
});

test("pictures of prompts that were typed in come last, each by itself", () => {
  const typed = ["x", "y"].map((path) => ({ step: 50, index: null, prompt: path, path }));
  const pairs = pairsAt([...typed, { step: 50, index: 0, prompt: "p", path: "p" }], 50);
  assert.deepEqual(pairs.map(({ key, base }) => [key, base]), [[0, null], ["x", null], ["y", null]]);
});

test("numbers and times read well", () => {
  assert.deepEqual([0.21345, 12.345, 0.0001, 0, null].map(number), ["0.213", "12.35", "1.00e-4", "0", "–"]);
  assert.deepEqual([7.4, 65, 7380, null].map(duration), ["7 s", "1:05 min", "2:03 h", "–"]);
  assert.deepEqual([4.123, 0.25, null].map(pace), ["4.12 steps/s", "4 s/step", "–"]);
  assert.deepEqual([10, 300, 7200].map((passed) => ago(1000, 1000 + passed)), ["just now", "5 min ago", "2 h ago"]);
});
