// The page asks for a trainer that waits once the queue is empty, once a wish, and takes no offence at a refusal.

import assert from "node:assert/strict";
import { test } from "node:test";

import { makeStandby } from "../../web/lib/standby.js";

/** The page's side of a server: `left` says how many graphs its queue has, `asked` counts the questions. */
function pageOf(answer) {
  const page = { asked: 0 };
  const api = { addEventListener: (kind, heard) => (page.left = (count) => heard({ detail: count === null ? null : { exec_info: { queue_remaining: count } } })) };
  const standby = makeStandby(api, { standby: () => ((page.asked += 1), answer()) });
  return Object.assign(page, standby);
}

test("it asks at once where nothing is queued, and again only for another wish", async () => {
  const page = pageOf(() => Promise.reject(new Error("refused")));
  page.wish();
  page.left(0);
  page.left(null);
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(page.asked, 1);
  page.wish();
  assert.equal(page.asked, 2);
});

test("while graphs are queued it waits until they are done", () => {
  const page = pageOf(() => Promise.resolve());
  page.left(2);
  page.wish();
  page.left(1);
  assert.equal(page.asked, 0);
  page.left(0);
  page.left(0);
  assert.equal(page.asked, 1);
});
