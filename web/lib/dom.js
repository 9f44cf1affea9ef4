// Elements in one line each: `el("button", {class: "x", onclick: f}, "text", child)`.

const SVG = "http://www.w3.org/2000/svg";

export const el = (tag, properties = {}, ...children) => fill(document.createElement(tag), properties, children);

export const svg = (tag, properties = {}, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

/** Replace what is in an element. */
export const put = (element, ...children) => element.replaceChildren(...wanted(children));

/** Set the text where it differs, so that a reader of the screen is not told the same again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Show or hide. */
export function toggle(element, isShown) {
  element.hidden = !isShown;
}

/** A button that says what it does, with a word of explanation. */
export const button = (label, title, onclick, properties = {}) =>
  el("button", { type: "button", class: "fls-button", title, onclick, ...properties }, label);

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...wanted(children));
  return element;
}

const wanted = (children) => children.flat().filter((child) => child !== null && child !== undefined && child !== false);
