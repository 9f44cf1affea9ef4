// A word at the edge of the page that can be clicked: ComfyUI's own toasts hold text only.

import { button, el } from "./dom.js";

const SECONDS = 20;

/** Show a sentence, with a picture if there is one, and a button; it goes away by itself. */
export function notify({ title, text, picture = null, action = "", onAction = () => {} }) {
  const close = () => notice.remove();
  const act = () => {
    close();
    onAction();
  };
  const notice = el(
    "div",
    { class: "fls fls-notice", role: "status" },
    picture && el("img", { src: picture, alt: "" }),
    el("div", { class: "fls-notice-text" }, el("b", {}, title), el("p", {}, text), action && button(action, action, act, { class: "fls-button fls-first" })),
    el("button", { type: "button", class: "fls-close", "aria-label": "Close", onclick: close }, "×"),
  );
  document.body.append(notice);
  setTimeout(close, SECONDS * 1000);
}
