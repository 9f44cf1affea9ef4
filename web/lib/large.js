// The large view: a picture as big as the window allows, the base's beside it. Left and right go through the prompts, up and down
// through the steps, Escape closes.

import { button, el, put, say } from "./dom.js";
import { pairsAt, pictureSteps } from "./pictures.js";

export function showLarge(pictures, step, key, urlOf) {
  const steps = pictureSteps(pictures);
  const view = { step, key };
  const row = el("div", { class: "fls-large-row" });
  const prompt = el("p", { class: "fls-large-prompt", "aria-live": "polite" });
  const help = el("p", { class: "fls-quiet" });
  const close = button("Close", "Close (Escape)", () => dialog.close());
  const dialog = el("dialog", { class: "fls fls-large", "aria-label": "Picture" }, row, prompt, el("div", { class: "fls-bar" }, help, close));

  const draw = () => {
    const pairs = pairsAt(pictures, view.step);
    const pair = pairs.find((other) => other.key === view.key) ?? pairs[0];
    view.key = pair.key;
    put(row, pair.base && framed(pair.base, "base", urlOf, pair), framed(pair.path, pair.step ? `step ${pair.step}` : "base", urlOf, pair));
    say(prompt, pair.prompt);
    say(help, [pairs.length > 1 && "← → prompts", steps.length > 1 && "↑ ↓ steps", "Esc closes"].filter(Boolean).join(" · "));
  };
  const move = (by, among, name, of) => {
    const next = among[among.indexOf(of) + by];
    if (next !== undefined) view[name] = next;
    draw();
  };
  const keysOfStep = () => pairsAt(pictures, view.step).map((pair) => pair.key);
  const keys = {
    ArrowLeft: () => move(-1, keysOfStep(), "key", view.key),
    ArrowRight: () => move(1, keysOfStep(), "key", view.key),
    ArrowUp: () => move(-1, steps, "step", view.step),
    ArrowDown: () => move(1, steps, "step", view.step),
  };
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation(); // the canvas has keys of its own
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  draw();
  dialog.showModal();
  close.focus();
}

function framed(path, words, urlOf, { prompt }) {
  return el("figure", {}, el("img", { src: urlOf(path), alt: `${prompt}, ${words}` }), el("figcaption", {}, words));
}
