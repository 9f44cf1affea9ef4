// A run as a row of the history: its newest picture, name, state, how far it is, and a box to compare it with others.

import { el, put, say } from "./dom.js";
import { ago, number } from "./format.js";
import { STATES } from "./words.js";

/** {element, show(run)}: the row stays while what it tells changes, so that neither focus nor a click is lost. */
export function makeRow({ id, name }, { server, comparison, open }) {
  const choose = () => {
    comparison.choose({ id, name }, box.checked);
    box.style.accentColor = comparison.colourOf(id);
  };
  const box = el("input", { type: "checkbox", class: "fls-choose", title: "Compare", "aria-label": `Compare ${name}`, onchange: choose });
  const picture = el("span", { class: "fls-thumbnail" });
  const word = el("span");
  const when = el("span", { class: "fls-quiet" });
  const far = el("span", { class: "fls-quiet" });
  const state = el("span", { class: "fls-run-state" }, el("span", { class: "fls-dot" }), word, when);
  const text = el("span", { class: "fls-run-text" }, el("span", { class: "fls-run-name" }, name), state, far);
  const card = el("button", { type: "button", class: "fls-run", title: id, onclick: () => open(id) }, picture, text);
  const element = el("li", {}, box, card);
  let thumbnail = null;

  const show = (run) => {
    element.dataset.outcome = run.state;
    say(word, STATES[run.state] ?? run.state);
    say(when, ` · ${run.base} · ${ago(run.changed, Date.now() / 1000)}`);
    say(far, howFar(run));
    if (run.thumbnail !== thumbnail) put(picture, run.thumbnail && el("img", { src: server.fileUrl(id, run.thumbnail), alt: "", loading: "lazy" }));
    thumbnail = run.thumbnail;
  };
  return { element, show };
}

function howFar({ step, steps, loss, held_out }) {
  const parts = [steps && `${step} / ${steps}`, loss !== null && `loss ${number(loss)}`, held_out !== null && `held out ${number(held_out)}`];
  return parts.filter(Boolean).join(" · ");
}
