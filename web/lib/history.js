// The sidebar tab: all runs, the newest first; one of them in full; several of them compared.

import { makeComparison } from "./comparison.js";
import { makeDeeds } from "./deeds.js";
import { button, el, put, say, toggle } from "./dom.js";
import { makeRow } from "./history_row.js";
import { makeRunPage } from "./run_page.js";
import { watchSight } from "./seen.js";

const ASK_AGAIN = 3000; // ms, while a run trains
const BUSY = ["running", "paused"];

export function makeHistory(context) {
  const deeds = makeDeeds(context);
  const comparison = makeComparison(context);
  const note = el("p", { class: "fls-quiet fls-empty", role: "status" });
  const rows = el("ul", { class: "fls-runs" });
  const refresh = button("Refresh", "Look for runs again", () => load());
  const bar = el("div", { class: "fls-bar" }, el("span", { class: "fls-title" }, "Runs"), refresh);
  const list = el("div", { class: "fls-list" }, bar, comparison.element, note, rows);
  const root = el("div", { class: "fls fls-sidebar" }, list);
  const view = { runs: [], page: null };
  const rowsById = new Map();
  let timer = null;
  let order = null;

  const load = async () => {
    clearTimeout(timer);
    try {
      view.runs = await context.server.runs();
      say(note, view.runs.length ? "" : "No run yet. Load the template “Train a LoRA and test it” and press Run.");
    } catch (error) {
      say(note, error.message);
    }
    draw();
    if (sight.isSeen() && view.runs.some(({ state }) => BUSY.includes(state))) timer = setTimeout(load, ASK_AGAIN);
  };
  const draw = () => {
    toggle(note, Boolean(note.textContent));
    comparison.keep(view.runs);
    const there = view.runs.map(({ id }) => id);
    for (const id of rowsById.keys()) if (!there.includes(id)) rowsById.delete(id);
    for (const run of view.runs) {
      if (!rowsById.has(run.id)) rowsById.set(run.id, makeRow(run, { ...context, comparison, open }));
      rowsById.get(run.id).show(run);
    }
    if (there.join("\n") !== order) put(rows, ...there.map((id) => rowsById.get(id).element));
    order = there.join("\n");
  };
  const open = async (id) => {
    const run = view.runs.find((other) => other.id === id) ?? (await context.server.run(id));
    view.page?.end();
    view.page = makeRunPage(run, { ...context, deeds, back });
    put(root, view.page.element);
    view.page.focus();
  };
  const back = () => {
    view.page?.end();
    view.page = null;
    put(root, list);
    load();
    refresh.focus();
  };
  const sight = watchSight(root, () => {
    if (!view.page) load();
    comparison.wake();
  });
  return {
    element: root,
    /** A run has begun or ended. */
    changed: () => sight.isSeen() && !view.page && load(),
    open,
  };
}
