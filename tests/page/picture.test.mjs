// recipe.js: from what a person gives to what is shared, where the recipe leaves something open.
import assert from "node:assert/strict";
import { test } from "node:test";

import { columnsOf, fromNumbers, fromPicture, pictureInput, prepare, widthOf } from "../../securemodel/page/static/recipe.js";

const port = (shape, more = {}) => ({ name: "x", shape: [-1, ...shape], kind: "real", ...more });
const card = (inputs, recipe = {}) => ({ inputs, recipe });

test("which models take a picture", () => {
  for (const shape of [[1, 28, 28], [3, 4, 4]]) assert.ok(pictureInput(card([port(shape)])));
  for (const inputs of [[port([2, 4, 4])], [port([16])], [port([1, 4, 4]), port([2])], [port([1, 4, 4], { kind: "index" })]]) {
    assert.equal(pictureInput(card(inputs)), undefined);
  }
});

test("a picture without a recipe is resized and runs from 0 to 1", () => {
  const [values] = fromPicture(card([port([1, 2, 2])]), new Float64Array(3 * 16).fill(255), [3, 4, 4]);
  assert.equal(values.length, 4);
  for (const value of values) assert.ok(Math.abs(value - 1) < 1e-12);
});

test("a drawing is gray already, whatever the recipe says", () => {
  const steps = [["grayscale"], ["resize", 2, 2], ["divide", 255], ["subtract", 0.5]];
  const [values] = fromPicture(card([port([1, 2, 2])], { x: steps }), [0, 255, 255, 0], [1, 2, 2]);
  assert.deepEqual(Array.from(values), [-0.5, 0.5, 0.5, -0.5]);
});

test("a drawing for a model of colors does not fit", () => {
  assert.throws(() => fromPicture(card([port([3, 2, 2])]), [0, 0, 0, 0], [1, 2, 2]), /3 × 2 × 2/);
});

test("every pixel counts when a picture shrinks, and a constant stays one", () => {
  const pixels = new Float64Array(100);
  for (let at = 0; at < 100; at++) {
    pixels.fill(0);
    pixels[at] = 1;
    assert.ok(prepare([["resize", 3, 3]], pixels, [1, 10, 10])[0].some((value) => value > 0), `pixel ${at}`);
  }
  for (const value of prepare([["resize", 7, 3]], pixels.fill(5), [1, 10, 10])[0]) assert.ok(Math.abs(value - 5) < 1e-12);
});

test("columns have names where the card has some", () => {
  assert.deepEqual(columnsOf(card([port([3])])), null);
  assert.deepEqual(columnsOf(card([port([2], { columns: ["age", "debt"] })])), ["age", "debt"]);
  assert.deepEqual(columnsOf(card([port([1]), { ...port([2]), name: "y" }])), ["x", "y_1", "y_2"]);
});

test("a row is cut up among the inputs, and classes become unit vectors", () => {
  const two = card([port([3], { kind: "index" }), { ...port([2, 3]), name: "y" }], { y: [["one_hot", 3]] });
  assert.equal(widthOf(two), 5);
  assert.deepEqual(fromNumbers(two, [7, 8, 9, 2, 0]).map((part) => Array.from(part)), [[7, 8, 9], [0, 0, 1, 1, 0, 0]]);
  assert.throws(() => fromNumbers(two, [7, 8, 9, 3, 0]), /from 0 to 2/);
});

test("steps that are not known are refused by name", () => {
  for (const name of ["sharpen", "constructor", "__proto__"]) assert.throws(() => prepare([[name]], [1], [1]), new RegExp(name));
});
