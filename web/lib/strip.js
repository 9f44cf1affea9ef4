// The strip of pictures: each prompt's newest picture with the base's beside it; earlier steps are a click away.

import { button, el, put, say, toggle } from "./dom.js";
import { pairsAt, pictureSteps } from "./pictures.js";

/** `urlOf(path)` says where a picture is; `enlarge(pictures, step, key)` shows it large. */
export function makeStrip(urlOf, enlarge) {
  const view = { pictures: [], preview: null, chosen: null, shown: "" };
  const label = el("span", { class: "fls-title" });
  const earlier = button("‹", "The pictures of an earlier step", () => turn(-1), { "aria-label": "Earlier pictures" });
  const later = button("›", "The pictures of a later step", () => turn(1), { "aria-label": "Later pictures" });
  const row = el("div", { class: "fls-strip" });
  const making = el("img", { class: "fls-making", alt: "The picture that is being made", title: "A picture in the making", hidden: true });
  const element = el("section", { class: "fls-pictures", "aria-label": "Pictures" }, el("div", { class: "fls-bar" }, label, earlier, later), making, row);

  const stepNow = (steps) => (steps.includes(view.chosen) ? view.chosen : steps[steps.length - 1]);
  const turn = (by) => {
    const steps = pictureSteps(view.pictures);
    const next = steps[steps.indexOf(stepNow(steps)) + by];
    view.chosen = next === steps[steps.length - 1] ? null : (next ?? view.chosen);
    draw();
  };
  const draw = () => {
    const steps = pictureSteps(view.pictures);
    const step = stepNow(steps);
    toggle(element, steps.length > 0 || Boolean(view.preview));
    toggle(earlier, steps.length > 1);
    toggle(later, steps.length > 1);
    earlier.disabled = step === steps[0];
    later.disabled = step === steps[steps.length - 1];
    const pairs = pairsAt(view.pictures, step);
    say(label, titleOf(step, pairs));
    const shown = JSON.stringify(pairs);
    if (shown === view.shown) return; // the same pictures are not loaded again each second
    view.shown = shown;
    put(row, ...pairs.map((pair) => card(pair, urlOf, () => enlarge(view.pictures, pair.step, pair.key))));
  };
  return {
    element,
    show: ({ pictures, preview }) => {
      Object.assign(view, { pictures, preview });
      toggle(making, Boolean(preview?.path));
      const source = preview?.path ? `${urlOf(preview.path)}?${preview.time}` : ""; // the same file is written again and again
      if (source && making.getAttribute("src") !== source) making.src = source;
      draw();
    },
  };
}

function titleOf(step, pairs) {
  if (step === undefined) return "A picture in the making";
  if (step === 0) return "The base, before training";
  return pairs.some(({ base }) => base) ? `Base and step ${step}` : `Step ${step}`;
}

function card({ prompt, path, base, score }, urlOf, onclick) {
  const picture = (source, words) => el("img", { src: urlOf(source), alt: words, loading: "lazy", draggable: "false" });
  const images = [base && picture(base, `${prompt}, by the base`), picture(path, prompt)];
  const note = score === null ? prompt : `${prompt} · ${score.toFixed(1)}`;
  return el(
    "button",
    { type: "button", class: "fls-card", title: `${prompt}\nClick to enlarge`, onclick },
    el("span", { class: "fls-pair" }, ...images),
    el("span", { class: "fls-caption" }, note),
  );
}
