// Numbers as people read them: losses, seconds, memory, and how long ago.

/** Four figures at most: 0.2134, 12.3, 0.00012. */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e");
  return String(Number(value.toPrecision(size < 1 ? 3 : 4)));
}

/** A label on an axis: short, and exact for round numbers. */
export function tick(value) {
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential().replace("e+", "e");
  return String(value);
}

/** 7 s, 1:05 min, 2:03 h. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const pad = (value) => String(value).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)}:${pad(whole % 60)} min`;
  const minutes = Math.round(whole / 60);
  return `${Math.floor(minutes / 60)}:${pad(minutes % 60)} h`;
}

/** How fast, as steps a second or seconds a step, whichever is above 1. */
export function pace(perSecond) {
  if (!perSecond) return "–";
  return perSecond >= 1 ? `${number(Number(perSecond.toPrecision(3)))} steps/s` : `${number(Number((1 / perSecond).toPrecision(3)))} s/step`;
}

export const gibibytes = (value) => `${value.toFixed(value < 10 ? 1 : 0)} GiB`;

/** just now, 5 min ago, 3 h ago, or the date; both in seconds since 1970. */
export function ago(then, now) {
  const passed = now - then;
  if (passed < 60) return "just now";
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (passed < 86400) return `${Math.floor(passed / 3600)} h ago`;
  return new Date(then * 1000).toLocaleDateString();
}

/** The time of day of an event. */
export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });

export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
