// The prompt library: what the editor writes is what it read, and what the trainer would refuse is said beside its row.

import assert from "node:assert/strict";
import { test } from "node:test";

import { emptyRow, problemOf, readLibrary, writeLibrary } from "../../web/lib/prompts.js";

const row = (fields) => ({ ...emptyRow(), name: "a", prompt: "a photo", ...fields });

test("rows come back as they were written", () => {
  const rows = [row({}), row({ name: "b", seed: "7", negative: "blur" }), row({ name: "c", prompt: 'say "hi"' })];
  assert.deepEqual(readLibrary(writeLibrary(rows)), { rows, problem: "" });
  assert.deepEqual(JSON.parse(writeLibrary(rows)).b, { prompt: "a photo", seed: 7, negative_prompt: "blur" });
});

test("an empty editor writes nothing", () => {
  assert.equal(writeLibrary([emptyRow()]), "");
  assert.deepEqual(readLibrary("  "), { rows: [], problem: "" });
});

test("a text that rows cannot hold is not touched", () => {
  for (const text of ["{", "[1]", '{"a": 3}', '{"a": {"prompt": "x", "size": 3}}', '{"a": {"prompt": "x", "seed": 9007199254740993}}']) {
    assert.notEqual(readLibrary(text).problem, "", text);
  }
});

test("what the trainer would refuse is said", () => {
  const rows = [row({}), row({ name: "A" }), row({ name: "../up" }), row({ name: "b", prompt: " " }), row({ name: "c", seed: "-1" })];
  const found = rows.map((one) => problemOf(one, rows));
  for (const [index, words] of [/taken/, /taken/, /nickname names files/, /prompt is empty/, /whole number/].entries()) assert.match(found[index], words);
  assert.equal(problemOf(row({ name: "d", seed: "12" }), []), "");
});
