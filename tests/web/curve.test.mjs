// Curves: thinned without losing a peak, smoothed without a bias, labelled with round numbers.

import assert from "node:assert/strict";
import { test } from "node:test";

import { makeFrame } from "../../web/lib/chart.js";
import { addPoint, emptyCurve, innerRange, smooth, thin, ticks, valueAt } from "../../web/lib/curve.js";

const curveOf = (values) => ({ steps: values.map((_, index) => index + 1), values });

test("thinning keeps the highest and the lowest point of ten thousand", () => {
  const values = Array.from({ length: 10000 }, (_, index) => Math.sin(index));
  values[1234] = 50;
  values[8765] = -50;
  const thinned = thin(curveOf(values), 200);
  assert.ok(thinned.steps.length <= 400);
  assert.equal(thinned.values[thinned.steps.indexOf(1235)], 50);
  assert.equal(thinned.values[thinned.steps.indexOf(8766)], -50);
  assert.ok(thinned.steps.every((step, index) => index === 0 || step > thinned.steps[index - 1]));
});

test("a smoothed constant is that constant from the first step on", () => {
  for (const value of smooth(curveOf([3, 3, 3, 3]), 10).values) assert.ok(Math.abs(value - 3) < 1e-12);
});

test("a smoothed curve lies between its values and follows them", () => {
  const { values } = smooth(curveOf([...Array(50).fill(1), ...Array(200).fill(0)]), 10);
  assert.ok(values[60] > 0.2 && values[60] < 0.6);
  assert.ok(values[249] < 1e-6);
});

test("a point for an earlier step takes the place of all behind it; what is no number is left out", () => {
  const curve = emptyCurve();
  for (const [step, value] of [[1, 5], [2, 6], [3, 7], [2, 8], [4, NaN], [5, null]]) addPoint(curve, step, value);
  assert.deepEqual(curve, { steps: [1, 2], values: [5, 8] });
});

test("the value at a step is the newest that is not behind it", () => {
  const curve = { steps: [0, 40, 80], values: [3, 2, 1] };
  assert.deepEqual([-1, 0, 39, 40, 500].map((step) => valueAt(curve, step)), [null, 3, 3, 2, 1]);
});

test("ticks are round and lie within", () => {
  assert.deepEqual(ticks(0, 1, 4), [0, 0.5, 1]);
  assert.deepEqual(ticks(0, 240, 3), [0, 100, 200]);
  assert.deepEqual(ticks(0.0001, 0.00031, 3), [0.0001, 0.0002, 0.0003]);
});

test("the outermost points do not set the range", () => {
  assert.deepEqual(innerRange([1000, ...Array(98).fill(1), -1000], 0.01), [1, 1]);
});

test("first and last step lie inside the frame, and pointing at them finds them", () => {
  const frame = makeFrame([{ curve: curveOf([1, 2, 3, 4]), style: "solid" }], 400, 150);
  assert.ok(frame.x(0) >= 0 && frame.x(4) <= frame.width);
  assert.ok(frame.y(4) >= 0 && frame.y(1) <= frame.height);
  assert.equal(frame.stepAt(44 + frame.x(3)), 3);
});
