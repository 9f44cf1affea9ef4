// The chosen runs' curves in one chart, each in a colour of its own that its row bears too.

import { makeChart } from "./chart.js";
import { smooth } from "./curve.js";
import { el, toggle } from "./dom.js";

const COLOURS = ["#4a90e2", "#e0821e", "#3aa76d", "#b565d8", "#d9534f", "#2aa7b8", "#a0883a", "#8a7cf0"];
const MEMORY_SHARE = 25;
const VIEWS = {
  Loss: { style: "solid", curveOf: ({ curves, steps }) => smooth(curves.loss, Math.max(3, steps / MEMORY_SHARE)) },
  "Held out": { style: "dotted", curveOf: ({ curves }) => curves.heldOut },
  "Learning rate": { style: "solid", curveOf: ({ curves }) => curves.learningRate },
};

export function makeComparison({ feeds }) {
  const chart = makeChart();
  const chosen = new Map(); // id -> {name, colour, state, unwatch}
  let shown = "Loss";
  const tabs = Object.keys(VIEWS).map((name) => el("button", { type: "button", class: "fls-tab", onclick: () => turn(name) }, name));
  const element = el("section", { class: "fls-charts", "aria-label": "Comparison", hidden: true }, el("div", { class: "fls-tabs", role: "group" }, ...tabs), chart.element);

  const draw = () => {
    toggle(element, chosen.size > 0);
    for (const tab of tabs) tab.setAttribute("aria-pressed", tab.textContent === shown);
    const { style, curveOf } = VIEWS[shown];
    const lines = [...chosen.values()].filter(({ state }) => state);
    chart.show(lines.map(({ name, colour, state }) => ({ label: name, colour, curve: curveOf(state), style })), shown);
  };
  const turn = (name) => {
    shown = name;
    draw();
  };
  const choose = ({ id, name }, isChosen) => {
    chosen.get(id)?.unwatch();
    chosen.delete(id);
    if (isChosen) {
      const taken = new Set([...chosen.values()].map(({ colour }) => colour));
      const entry = { name, colour: COLOURS.find((colour) => !taken.has(colour)) ?? COLOURS[0], state: null };
      chosen.set(id, entry);
      toggle(element, true);
      entry.unwatch = feeds.watch(id, () => element.isConnected && !document.hidden, ({ state }) => {
        entry.state = state;
        draw();
      });
    }
    draw();
  };
  const wake = () => chosen.forEach((entry, id) => feeds.wake(id));
  return {
    element,
    choose,
    wake,
    colourOf: (id) => chosen.get(id)?.colour ?? "",
    /** Runs that are no longer there are no longer compared. */
    keep: (runs) => {
      const there = new Set(runs.map(({ id }) => id));
      for (const [id, { name }] of [...chosen]) if (!there.has(id)) choose({ id, name }, false);
    },
  };
}
