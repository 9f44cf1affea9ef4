// A feed asks while somebody looks and the run is not over, and no longer; a deleted run is not asked for.

import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { makeFeeds } from "../../web/lib/feeds.js";

const begun = { time: 1, event: "started", run_id: "a-1", pid: 1, resumed_from: 0, steps: 9 };
const settle = () => new Promise((resolve) => setImmediate(resolve));

/** A server whose answers are taken from a list; the last one stays. It notes from which byte it was asked. */
function serverOf(...answers) {
  const asked = [];
  const events = async (id, after) => {
    asked.push(after);
    const answer = answers.length > 1 ? answers.shift() : answers[0];
    if (answer instanceof Error) throw answer;
    return answer;
  };
  return { asked, events };
}

async function pass(seconds) {
  for (let passed = 0; passed < seconds; passed += 1) {
    mock.timers.tick(1000);
    await settle();
    await settle();
  }
}

test("it asks once a second while it is seen, and not while it is not", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const server = serverOf({ events: [begun], next: 70, state: "running" }, { events: [], next: 70, state: "running" });
  const feeds = makeFeeds(server);
  let isSeen = true;
  const shown = [];
  feeds.watch("a-1", () => isSeen, (run) => shown.push(run));
  await settle();
  await pass(3);
  assert.deepEqual(server.asked, [0, 70, 70, 70]);
  assert.equal(shown.length, 1, "told only of what is new");
  isSeen = false;
  await pass(5);
  assert.equal(server.asked.length, 4);
  isSeen = true;
  feeds.wake("a-1");
  await settle();
  assert.equal(server.asked.length, 5);
  mock.timers.reset();
});

test("a run that is over is read to its end and then left alone, until the server has word of it", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const done = { time: 2, event: "done", step: 9, lora: "a.safetensors", seconds: 3 };
  const server = serverOf(
    { events: [begun], next: 70, state: "finished" },
    { events: [done], next: 99, state: "finished" },
    { events: [], next: 99, state: "finished" },
  );
  const feeds = makeFeeds(server);
  let last;
  feeds.watch("a-1", () => true, (run) => (last = run));
  for (let turn = 0; turn < 6; turn += 1) await settle();
  await pass(5);
  assert.deepEqual(server.asked, [0, 70, 99]);
  assert.equal(last.state.outcome, "finished");
  feeds.revive("a-1");
  await settle();
  assert.equal(server.asked.length, 4);
  mock.timers.reset();
});

test("a server that does not answer is asked more and more rarely, and its watchers are told", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const server = serverOf(new Error("refused"));
  const feeds = makeFeeds(server);
  let last;
  feeds.watch("a-1", () => true, (run) => (last = run));
  await settle();
  assert.equal(last.isLost, true);
  await pass(30);
  assert.ok(server.asked.length <= 6, `${server.asked.length}`);
  mock.timers.reset();
});

test("a deleted run is not asked for; trained again, it begins anew", async () => {
  mock.timers.enable({ apis: ["setTimeout"] });
  const server = serverOf({ events: [begun], next: 70, state: "running" });
  const feeds = makeFeeds(server);
  let last;
  feeds.watch("a-1", () => true, (run) => (last = run));
  await settle();
  feeds.forget("a-1");
  feeds.wake("a-1");
  await pass(3);
  assert.deepEqual(server.asked, [0]);
  assert.equal(last.isGone, true);
  feeds.revive("a-1");
  await settle();
  assert.deepEqual(server.asked, [0, 0]);
  assert.equal(last.isGone, false);
  mock.timers.reset();
});
