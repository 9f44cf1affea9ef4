// The panel of one run: how it stands, its curves, pictures, memory, what can be asked of it, and what happened.
//
// It is drawn from `{state, server, isLost, isGone}` alone (feeds.js), so a finished run looks as it did while it trained.

import { makeChart } from "./chart.js";
import { makeControls } from "./controls.js";
import { smooth } from "./curve.js";
import { el, put, say, toggle } from "./dom.js";
import { isOver } from "./fold.js";
import { showLarge } from "./large.js";
import { makeLog } from "./log.js";
import { makeStrip } from "./strip.js";
import { explanation, headline, memoryRows, outcomeOf, progress, speed } from "./words.js";

const LEAST_CHART = 120; // px
const EMPTY_HEIGHT = 64;
const GAP = 8; // between the parts, as in flux_lora.css
const SMOOTHED_SHARE = 25; // the smoothed line remembers so much of the run: a 25th

export const VIEWS = {
  Loss: ({ curves, steps }) => [
    { label: "each step", colour: "var(--fls-loss)", curve: curves.loss, style: "faint" },
    { label: "smoothed", colour: "var(--fls-loss)", curve: smooth(curves.loss, Math.max(3, steps / SMOOTHED_SHARE)), style: "solid" },
    { label: "held out", colour: "var(--fls-held-out)", curve: curves.heldOut, style: "dotted" },
  ],
  "Learning rate": ({ curves }) => [{ label: "learning rate", colour: "var(--fls-rate)", curve: curves.learningRate, style: "solid" }],
  Gradient: ({ curves, steps }) => [
    { label: "norm", colour: "var(--fls-gradient)", curve: curves.gradient, style: "faint" },
    { label: "smoothed", colour: "var(--fls-gradient)", curve: smooth(curves.gradient, Math.max(3, steps / SMOOTHED_SHARE)), style: "solid" },
  ],
};

/** `server` and `id` say whose run; `resume` queues it again, or is null. */
export function makePanel({ server, id, resume = null }) {
  const urlOf = (path) => server.fileUrl(id, path);
  const head = makeHead();
  const charts = makeCharts();
  const strip = makeStrip(urlOf, (pictures, step, key) => showLarge(pictures, step, key, urlOf));
  const memory = el("section", { class: "fls-memory", "aria-label": "Memory" });
  const controls = makeControls((command, prompt) => server.ask(id, command, prompt), resume);
  const log = makeLog();
  const inner = el("div", { class: "fls-inner" }, head.element, charts.element, controls.element, strip.element, memory, log.element);
  let shown = null;

  const show = (run, message = "") => {
    shown = { run, message };
    head.show(run, message);
    charts.show(run.state);
    strip.show(isOver(outcomeOf(run)) ? { ...run.state, preview: null } : run.state);
    put(memory, ...memoryRows(run.state).map(memoryRow));
    controls.show(outcomeOf(run));
    log.show(run.state);
  };
  log.details.addEventListener("toggle", () => shown && log.show(shown.run.state));
  const growth = () => Math.max(0, charts.room.offsetHeight - LEAST_CHART);
  return {
    element: inner,
    show,
    /** The height that everything needs, with the chart at its smallest; px. */
    leastHeight: () => {
      const heights = [...inner.children].map(({ offsetHeight }) => offsetHeight).filter(Boolean);
      const needed = heights.reduce((sum, height) => sum + height + GAP, 0) - growth();
      return Math.max(EMPTY_HEIGHT, needed);
    },
  };
}

function makeHead() {
  const dot = el("span", { class: "fls-dot", "aria-hidden": "true" });
  const word = el("span", { class: "fls-headline", role: "status" });
  const rate = el("span", { class: "fls-quiet" });
  const bar = el("div", { class: "fls-progress", role: "progressbar", "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": "Progress" }, el("span"));
  const far = el("span", { class: "fls-far" });
  const why = el("p", { class: "fls-why" });
  const element = el("header", { class: "fls-head" }, el("div", { class: "fls-bar" }, dot, word, far, rate), bar, why);

  const show = (run, message) => {
    const outcome = outcomeOf(run);
    const { share, text, isPhase } = progress(run);
    element.dataset.outcome = run.isLost ? "lost" : outcome;
    say(word, headline(run));
    say(far, text);
    say(rate, speed(run));
    const percent = Math.round(100 * Math.min(1, share));
    bar.firstChild.style.width = `${percent}%`;
    bar.setAttribute("aria-valuenow", percent);
    bar.classList.toggle("fls-phase", isPhase);
    const sentence = explanation(run, message);
    toggle(why, Boolean(sentence));
    say(why, sentence);
  };
  return { element, show };
}

/** The chart, and the choice of what it shows. */
function makeCharts() {
  const chart = makeChart();
  let chosen = "Loss";
  let shown = null;
  const choose = (name) => {
    chosen = name;
    for (const tab of tabs) tab.setAttribute("aria-pressed", tab.textContent === name);
    if (shown) chart.show(VIEWS[chosen](shown), chosen);
  };
  const tabs = Object.keys(VIEWS).map((name) => el("button", { type: "button", class: "fls-tab", onclick: () => choose(name) }, name));
  const element = el("section", { class: "fls-charts", "aria-label": "Curves" }, el("div", { class: "fls-tabs", role: "group" }, ...tabs), chart.element);
  choose(chosen);
  const show = (state) => {
    if (shown?.curves === state.curves) return;
    shown = state;
    toggle(element, state.curves.loss.steps.length > 0);
    chart.show(VIEWS[chosen](state), chosen);
  };
  return { element, room: chart.room, show };
}

function memoryRow({ label, text, share, isOver: isAbove }) {
  const width = Math.min(100, Math.round(100 * (share ?? 0)));
  const bar = share === null ? null : el("span", { class: "fls-gauge", "aria-hidden": "true" }, el("span", { style: `width:${width}%` }));
  return el("div", { class: isAbove ? "fls-memory-row fls-over" : "fls-memory-row" }, el("span", {}, label), bar, el("span", { class: "fls-quiet" }, text));
}
