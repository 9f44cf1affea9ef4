// What can be asked of a run: pause, continue, save, a picture of a typed prompt, stop. Each is obeyed within a step.

import { button, el, say, toggle } from "./dom.js";

const NOTE_SECONDS = 6;
const ASKED = {
  stop: "Asked to stop: it ends its step and saves.",
  pause: "Asked to pause: it ends its step and saves.",
  continue: "Asked to go on.",
  save: "Asked to save after this step.",
  sample: "Asked for pictures after this step.",
};

/** `ask(command, prompt)` and `resume()` return promises; a null `resume` leaves that button out. */
export function makeControls(ask, resume) {
  const note = el("p", { class: "fls-note", role: "status" });
  let timer = null;
  const tell = (text) => {
    say(note, text);
    clearTimeout(timer);
    timer = setTimeout(() => say(note, ""), NOTE_SECONDS * 1000);
  };
  const send = async (command, prompt) => {
    tell(ASKED[command]);
    try {
      await ask(command, prompt);
    } catch (error) {
      tell(error.message);
    }
  };
  const prompt = el("input", { class: "fls-input", type: "text", placeholder: "a prompt, or empty for all", "aria-label": "Prompt to picture" });
  const picture = button("Picture it", "Make a picture now, of this prompt or of all validation prompts", () => send("sample", prompt.value.trim()));
  prompt.addEventListener("keydown", (event) => {
    event.stopPropagation(); // letters are shortcuts of the canvas
    if (event.key === "Enter" && !event.isComposing) picture.click();
  });
  const pause = button("Pause", "Save and wait; the process keeps its memory", () => send("pause"));
  const go = button("Continue", "Go on training", () => send("continue"), { class: "fls-button fls-first" });
  const save = button("Save now", "Save a checkpoint and its LoRA now", () => send("save"));
  const stop = button("Stop and save", "End the training; everything is saved and can go on later", () => send("stop"), {
    class: "fls-button fls-last",
  });
  const again = button("Go on", "Queue it again: it goes on at the step it had", () => resume?.(), { class: "fls-button fls-first" });
  const sampling = el("div", { class: "fls-row" }, prompt, picture);
  const buttons = el("div", { class: "fls-row" }, pause, go, again, save, stop);
  const element = el("section", { class: "fls-controls", "aria-label": "Training" }, buttons, sampling, note);

  const show = (outcome) => {
    const isBusy = outcome === "running" || outcome === "paused";
    const isResumable = Boolean(resume) && ["stopped", "interrupted", "failed"].includes(outcome);
    toggle(pause, outcome === "running");
    toggle(go, outcome === "paused");
    toggle(again, isResumable);
    toggle(save, isBusy);
    toggle(stop, isBusy);
    toggle(sampling, isBusy);
    toggle(buttons, isBusy || isResumable);
    if (!isBusy) say(note, "");
  };
  return { element, show };
}
