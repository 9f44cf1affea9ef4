// Warnings, and the last events as text, folded away until somebody wants to read them.

import { el, put, say, toggle } from "./dom.js";
import { clock, plural } from "./format.js";

const MOST_SHOWN = 100;

export function makeLog() {
  const warning = el("p", { class: "fls-warning", role: "note" });
  const title = el("summary", {});
  const list = el("ol", { class: "fls-lines", tabindex: "0", "aria-label": "Events, the newest first" });
  const details = el("details", { class: "fls-log" }, title, list);
  const element = el("section", { class: "fls-events" }, warning, details);
  let shown = null;

  const show = ({ lines, warnings }) => {
    const newest = warnings[warnings.length - 1];
    toggle(warning, Boolean(newest));
    if (newest) say(warning, newest.text);
    warning.title = newest?.text ?? "";
    say(title, warnings.length ? `Events · ${plural(warnings.length, "warning")}` : "Events");
    toggle(element, lines.length > 0);
    if (details.open && shown !== lines) put(list, ...lines.slice(-MOST_SHOWN).reverse().map(entry));
    shown = details.open ? lines : null;
  };
  return { element, details, show };
}

const entry = ({ time, kind, text }) =>
  el("li", { class: `fls-${kind}` }, el("time", {}, clock(time)), " ", text);
