// A curve: two arrays of equal length, steps rising and values, and what is done to them before they are drawn.
//
// A run that goes on does the steps after its last checkpoint again, so a point for an earlier step takes the place of all that
// lay behind it.

export const emptyCurve = () => ({ steps: [], values: [] });

export const copyCurve = ({ steps, values }) => ({ steps: steps.slice(), values: values.slice() });

/** Add a point to a curve of one's own. */
export function addPoint(curve, step, value) {
  if (!Number.isFinite(value)) return;
  cutFrom(curve, step);
  curve.steps.push(step);
  curve.values.push(value);
}

/** Take away the points from that step on. */
export function cutFrom(curve, step) {
  let length = curve.steps.length;
  while (length && curve.steps[length - 1] >= step) length -= 1;
  curve.steps.length = curve.values.length = length;
}

/** The running mean of the values that forgets over so many steps; the beginning is not pulled towards zero. */
export function smooth({ steps, values }, memory) {
  let sum = 0;
  let weight = 0;
  const means = values.map((value, index) => {
    const keep = index ? Math.exp(-(steps[index] - steps[index - 1]) / memory) : 0;
    sum = sum * keep + value * (1 - Math.exp(-1 / memory));
    weight = weight * keep + (1 - Math.exp(-1 / memory));
    return sum / weight;
  });
  return { steps, values: means };
}

/** At most two points for each of so many columns, the smallest and the largest, so that no peak is lost. */
export function thin({ steps, values }, columns) {
  if (steps.length <= 2 * columns) return { steps, values };
  const kept = emptyCurve();
  for (let column = 0; column < columns; column += 1) {
    const from = Math.floor((column * steps.length) / columns);
    const to = Math.floor(((column + 1) * steps.length) / columns);
    let low = from;
    let high = from;
    for (let index = from; index < to; index += 1) {
      if (values[index] < values[low]) low = index;
      if (values[index] > values[high]) high = index;
    }
    for (const index of new Set([Math.min(low, high), Math.max(low, high)])) {
      kept.steps.push(steps[index]);
      kept.values.push(values[index]);
    }
  }
  return kept;
}

/** The value at the last step that is not behind this one, or null. */
export function valueAt({ steps, values }, step) {
  let low = 0;
  let high = steps.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle + 1;
    else high = middle;
  }
  return low ? values[low - 1] : null;
}

/** The smallest and largest value, but for the outermost share of each end, which may lie outside the picture. */
export function innerRange(values, share) {
  const sorted = values.slice().sort((a, b) => a - b);
  const cut = Math.floor(sorted.length * share);
  return [sorted[cut], sorted[sorted.length - 1 - cut]];
}

/** About so many round numbers from low to high. */
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let number = Math.ceil(low / step - 1e-9); number * step <= high + step * 1e-9; number += 1) {
    found.push(Number((number * step).toPrecision(12)));
  }
  return found;
}
