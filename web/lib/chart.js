// A chart of curves over steps, drawn as SVG: sharp at every zoom of the canvas, and coloured by the page's theme.
//
// `makeChart()` gives its element and `show(lines)`. A line is {label, colour, curve, style}, style being faint (raw points), solid
// or dotted (a few measurements, joined). Pointing at the chart shows the values at that step.

import { innerRange, thin, ticks, valueAt } from "./curve.js";
import { el, put, svg } from "./dom.js";
import { number, tick } from "./format.js";

const MARGIN = { left: 44, right: 8, top: 6, bottom: 18 };
const EDGE = 4; // px that the first and last point keep from the frame, so that their dots are whole
const OUTLIERS = 0.01; // the share of raw points at each end that may leave the picture
const STYLES = { faint: drawDots, solid: drawLine, dotted: drawJoined };

export function makeChart({ title = "Loss" } = {}) {
  const picture = svg("svg", { class: "fls-chart", role: "img" });
  const legend = el("div", { class: "fls-legend" });
  const room = el("div", { class: "fls-room" }, picture);
  const element = el("figure", { class: "fls-figure" }, legend, room);
  const view = { lines: [], title, pointed: null };

  const draw = () => {
    const { clientWidth: width, clientHeight: height } = room;
    if (!width || !height) return;
    const frame = makeFrame(view.lines, width, height);
    picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    picture.setAttribute("aria-label", described(view));
    put(picture, ...axes(frame, height), plot(frame, view), pointer(frame, view));
    showLegend(legend, view);
  };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const frame = makeFrame(view.lines, room.clientWidth, room.clientHeight);
    view.pointed = frame.stepAt(((event.clientX - box.left) / box.width) * room.clientWidth);
    draw();
  });
  picture.addEventListener("pointerleave", () => {
    view.pointed = null;
    draw();
  });
  new ResizeObserver(draw).observe(room);

  const show = (lines, name = title) => {
    view.lines = lines.filter(({ curve }) => curve.steps.length);
    view.title = name;
    draw();
  };
  return { element, room, show };
}

/** Where steps and values lie in the picture. */
export function makeFrame(lines, width, height) {
  const [low, high] = valueRange(lines);
  const last = Math.max(1, ...lines.map(({ curve }) => curve.steps[curve.steps.length - 1] ?? 0));
  const inner = { width: Math.max(1, width - MARGIN.left - MARGIN.right), height: height - MARGIN.top - MARGIN.bottom };
  return {
    ...inner,
    low,
    high,
    last,
    x: (step) => EDGE + (step / last) * (inner.width - 2 * EDGE),
    y: (value) => inner.height - ((value - low) / (high - low)) * inner.height,
    stepAt: (x) => Math.round(Math.min(1, Math.max(0, (x - MARGIN.left - EDGE) / (inner.width - 2 * EDGE))) * last),
  };
}

function valueRange(lines) {
  const ranges = lines.map(({ curve, style }) => innerRange(curve.values, style === "faint" ? OUTLIERS : 0));
  if (!ranges.length) return [0, 1];
  const low = Math.min(...ranges.map((range) => range[0]));
  const high = Math.max(...ranges.map((range) => range[1]));
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
}

function axes({ width, height, low, high, last, x, y }, whole) {
  const values = ticks(low, high, 4);
  const steps = ticks(0, last, Math.max(2, Math.floor(width / 90))).filter((step) => Number.isInteger(step) && step <= last);
  return [
    ...values.map((value) => {
      const at = MARGIN.top + y(value);
      return svg("line", { class: "fls-grid", x1: MARGIN.left, x2: MARGIN.left + width, y1: at, y2: at });
    }),
    ...values.map((value) =>
      svg("text", { class: "fls-tick", x: MARGIN.left - 6, y: MARGIN.top + y(value) + 3.5, "text-anchor": "end" }, tick(value)),
    ),
    ...steps.map((step) => {
      const at = MARGIN.left + x(step);
      const anchor = at > MARGIN.left + width - 14 ? "end" : step === 0 ? "start" : "middle";
      return svg("text", { class: "fls-tick", x: at, y: whole - 4, "text-anchor": anchor }, tick(step));
    }),
  ];
}

/** The curves, cut off where they leave the frame. */
function plot(frame, { lines }) {
  const box = { x: MARGIN.left, y: MARGIN.top, width: frame.width, height: frame.height, overflow: "hidden" };
  return svg("svg", box, ...lines.flatMap((line) => STYLES[line.style](line, frame)));
}

const dots = (curve, frame) => pathOf(curve, frame, (x, y) => `M${x} ${y}h0`);

function drawDots({ curve, colour }, frame) {
  const size = Math.max(2.6, 5 - curve.steps.length / 40); // a few points can be larger
  return [svg("path", { class: "fls-dots", d: dots(curve, frame), style: `stroke:${colour};stroke-width:${size}` })];
}

function drawLine({ curve, colour }, frame) {
  const d = pathOf(curve, frame, (x, y, index) => `${index ? "L" : "M"}${x} ${y}`);
  const only = curve.steps.length === 1 ? [svg("path", { class: "fls-points", d: dots(curve, frame), style: `stroke:${colour}` })] : [];
  return [svg("path", { class: "fls-line", d, style: `stroke:${colour}` }), ...only];
}

function drawJoined({ curve, colour }, frame) {
  const d = pathOf(curve, frame, (x, y, index) => `${index ? "L" : "M"}${x} ${y}`);
  return [
    svg("path", { class: "fls-line fls-thin", d, style: `stroke:${colour}` }),
    svg("path", { class: "fls-points", d: dots(curve, frame), style: `stroke:${colour}` }),
  ];
}

function pathOf(curve, frame, piece) {
  const { steps, values } = thin(curve, Math.max(1, Math.round(frame.width)));
  return steps.map((step, index) => piece(frame.x(step).toFixed(1), frame.y(values[index]).toFixed(1), index)).join("");
}

function pointer(frame, { lines, pointed }) {
  if (pointed === null) return null;
  const at = MARGIN.left + frame.x(pointed);
  const marks = lines
    .filter(({ style }) => style !== "faint")
    .map(({ curve, colour }) => ({ value: valueAt(curve, pointed), colour }))
    .filter(({ value }) => value !== null && value >= frame.low && value <= frame.high)
    .map(({ value, colour }) => svg("circle", { cx: at, cy: MARGIN.top + frame.y(value), r: 3, style: `fill:${colour}` }));
  return svg("g", { class: "fls-pointer" }, svg("line", { x1: at, x2: at, y1: MARGIN.top, y2: MARGIN.top + frame.height }), ...marks);
}

function showLegend(legend, { lines, pointed }) {
  const entries = lines.map(({ label, colour, curve, style }) => {
    const value = pointed === null ? curve.values[curve.values.length - 1] : valueAt(curve, pointed);
    const swatch = el("span", { class: `fls-swatch fls-${style}`, style: `background:${colour}` });
    return el("span", { class: `fls-entry fls-entry-${style}` }, swatch, `${label} `, el("b", {}, number(value)));
  });
  const step = pointed === null ? null : el("span", { class: "fls-entry fls-quiet" }, `step ${pointed}`);
  put(legend, ...entries, step);
}

function described({ lines, title }) {
  const parts = lines.map(({ label, curve }) => `${label} ${number(curve.values[curve.values.length - 1])}`);
  const last = Math.max(0, ...lines.map(({ curve }) => curve.steps[curve.steps.length - 1]));
  return parts.length ? `${title} up to step ${last}: ${parts.join(", ")}` : `${title}: nothing yet`;
}
