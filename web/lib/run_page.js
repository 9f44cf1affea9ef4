// One run in the sidebar: its panel, and what can be done with it.

import { button, el, toggle } from "./dom.js";
import { makeView } from "./view.js";
import { outcomeOf } from "./words.js";

/** `back()` returns to the list. */
export function makeRunPage(run, { server, feeds, deeds, back }) {
  const { id, name, has_workflow } = run;
  const toList = button("‹ Runs", "Back to the list of runs", back, { "aria-label": "Back to the runs" });
  const which = el("select", { class: "fls-input", "aria-label": "Which LoRA" });
  const copy = button("Copy LoRA…", "Copy the LoRA to ComfyUI's LoRA folder", () => deeds.copy(run, which.value));
  const open = button("Open workflow", "The graph that this run was queued with, in a new tab", () => deeds.open(run));
  const remove = button("Delete…", "Delete the run's folder", async () => (await deeds.remove(run)) && back(), { class: "fls-button fls-last" });
  const kept = { told: "", steps: run.checkpoints };
  const look = async (shown) => {
    const told = `${shown.server} ${shown.state.checkpoints.join()}`;
    if (shown.isGone || told === kept.told) return;
    kept.told = told;
    try {
      kept.steps = (await server.run(id)).checkpoints; // older ones are deleted as new ones come
    } catch {
      return; // the panel has said already that the server does not answer
    }
    offer(shown);
  };
  const offer = (shown) => {
    const choices = choicesOf(shown, kept.steps);
    const known = [...which.options].map(({ value }) => value).join();
    if (known !== choices.join()) which.replaceChildren(...choices.map((choice) => el("option", { value: choice }, wordsFor(choice))));
    toggle(which, choices.length > 1);
    toggle(copy, choices.length > 0);
  };
  const onShown = (shown) => {
    remove.disabled = ["running", "paused"].includes(outcomeOf(shown));
    offer(shown);
    look(shown);
  };
  const resume = has_workflow ? () => deeds.resume(run) : null;
  toggle(open, has_workflow);
  toggle(which, false);
  toggle(copy, false);
  const view = makeView({ server, feeds, id, resume, onShown });
  const element = el(
    "div",
    { class: "fls-page" },
    el("div", { class: "fls-bar" }, toList, el("span", { class: "fls-title", title: id }, name)),
    el("div", { class: "fls-row" }, open, copy, which, remove),
    view.element,
  );
  return { element, end: view.end, focus: () => toList.focus() };
}

/** What can be copied: the finished LoRA first, else the newest checkpoint's; then the others that are `kept`. */
function choicesOf({ state, server }, kept) {
  const steps = kept.slice().reverse().map(String);
  const final = server === "finished" ? ["final"] : [];
  const best = state.best && steps.includes(String(state.best.step)) ? ["best"] : [];
  return [...final, ...best, ...steps];
}

const wordsFor = (choice) => ({ final: "final", best: "best held-out loss" })[choice] ?? `step ${choice}`;
