// The editor of ValidationConfig's prompt library: a row a prompt, written back into the widget's JSON when it is kept.

import { button, el, put, say } from "./dom.js";
import { plural } from "./format.js";
import { emptyRow, problemOf, readLibrary, writeLibrary } from "./prompts.js";

const WIDGET = "user_prompt_library";

/** Give a new ValidationConfig the button that opens the editor. */
export function addPromptEditor(node) {
  const library = node.widgets?.find(({ name }) => name === WIDGET);
  if (!library) return;
  const opener = node.addWidget("button", "Edit the prompt library", null, () => {
    openEditor(String(library.value ?? ""), (text) => {
      library.value = text;
      library.callback?.(text);
      node.setDirtyCanvas?.(true, true);
    });
  });
  opener.serialize = false;
  opener.tooltip = "Named prompts as rows: nickname, prompt, seed, negative prompt.";
}

/** Show the editor for the JSON; `keep(text)` gets the new one. */
export function openEditor(text, keep) {
  const { rows, problem } = readLibrary(text);
  const view = { rows: rows.length ? rows : [emptyRow()] };
  const list = el("ol", { class: "fls-prompts" });
  const count = el("span", { class: "fls-quiet", role: "status" });
  const done = button("Keep", "Write the prompts into the node", () => {
    keep(writeLibrary(view.rows));
    dialog.close();
  }, { class: "fls-button fls-first" });
  const add = button("Add a prompt", "One more row", () => {
    view.rows.push(emptyRow());
    draw();
    list.lastChild?.querySelector("input")?.focus();
  });
  const cancel = button("Cancel", "Leave the node as it is", () => dialog.close());
  const anew = problem && el("div", { class: "fls-warning" }, `${problem} `, button("Start anew", "Begin with an empty library", () => {
    anew.remove();
    list.hidden = add.hidden = false;
    check();
  }));
  const bar = el("div", { class: "fls-bar" }, add, count, cancel, done);
  const dialog = el("dialog", { class: "fls fls-editor", "aria-label": "Prompt library" }, el("h2", {}, "Prompt library"), anew, list, bar);

  const check = () => {
    const problems = view.rows.map((row) => problemOf(row, view.rows));
    [...list.children].forEach((item, index) => say(item.querySelector(".fls-problem"), problems[index]));
    say(count, plural(view.rows.filter(({ prompt }) => prompt.trim()).length, "prompt"));
    done.disabled = problems.some(Boolean) || list.hidden;
  };
  const draw = () => {
    put(list, ...view.rows.map((row, index) => rowOf(row, index, check, () => {
      view.rows.splice(index, 1);
      draw();
      add.focus();
    })));
    check();
  };
  dialog.addEventListener("keydown", (event) => event.stopPropagation());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  list.hidden = add.hidden = Boolean(problem);
  draw();
  dialog.showModal();
}

function rowOf(row, index, changed, remove) {
  const field = (name, label, tag, properties = {}) => {
    const input = el(tag, { class: "fls-input", ...properties, oninput: () => {
      row[name] = input.value;
      changed();
    } });
    input.value = row[name];
    return el("label", { class: `fls-field fls-field-${name}` }, label, input);
  };
  return el(
    "li",
    {},
    field("name", "Nickname", "input", { maxlength: 80 }),
    field("seed", "Seed", "input", { inputmode: "numeric", placeholder: "as all" }),
    el("button", { type: "button", class: "fls-close", title: "Remove this prompt", "aria-label": `Remove prompt ${index + 1}`, onclick: remove }, "×"),
    field("prompt", "Prompt", "textarea", { rows: 2, placeholder: "a photo of <token> in a park" }),
    field("negative", "Negative prompt", "textarea", { rows: 1, placeholder: "as all" }),
    el("p", { class: "fls-problem", role: "alert" }),
  );
}
