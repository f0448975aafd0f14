// What a client does to a row before it is shared, as the model's card lists it: steps of a closed list, with public
// numbers. The same as securemodel.edge.recipe, for one row instead of many. No DOM.

const STEPS = {
  divide: (values, shape, by) => [perChannel(values, shape, by, (x, y) => x / y), shape],
  subtract: (values, shape, by) => [perChannel(values, shape, by, (x, y) => x - y), shape],
  clamp: (values, shape, low, high) => [values.map((x) => Math.min(Math.max(x, low), high)), shape],
  resize,
  grayscale,
  one_hot: oneHot,
  pad_ids: padIds,
};

/** The values of a row after all steps, and their shape. Steps are [name, ...numbers]; an Error says what does not fit. */
export function prepare(steps, values, shape) {
  return steps.reduce(([now, form], [name, ...numbers]) => {
    if (!Object.hasOwn(STEPS, name)) throw new Error(`this page does not know the step “${name}” of the model's recipe`);
    return STEPS[name](now, form, ...numbers);
  }, [Float64Array.from(values), shape]);
}

/** By one number, or one for each channel, which is the first axis. */
function perChannel(values, shape, by, apply) {
  if (typeof by === "number") return values.map((x) => apply(x, by));
  if (by.length !== shape[0]) throw new Error(`the recipe is for ${by.length} channels, the input has ${shape[0]}`);
  return values.map((x, place) => apply(x, by[Math.floor((place * by.length) / values.length)]));
}

/** The last two axes: linear between pixel centers, widened where pixels get fewer, so that every pixel counts. */
function resize(values, shape, tall, wide) {
  const [height, width] = shape.slice(-2), across = triangle(width, wide), down = triangle(height, tall);
  const lines = values.length / width, middle = new Float64Array(lines * wide);
  for (let line = 0; line < lines; line++) mix(values, line * width, 1, across, middle, line * wide, 1);
  const layers = lines / height, out = new Float64Array(layers * tall * wide);
  for (let layer = 0; layer < layers; layer++) {
    for (let x = 0; x < wide; x++) mix(middle, layer * height * wide + x, wide, down, out, layer * tall * wide + x, wide);
  }
  return [out, [...shape.slice(0, -2), tall, wide]];
}

/** For each pixel of `out`, the first of the `size` pixels that it is made of, and their weights. */
function triangle(size, out) {
  const ratio = size / out, reach = Math.max(ratio, 1);
  return Array.from({ length: out }, (_, index) => {
    const center = (index + 0.5) * ratio;
    const first = Math.max(0, Math.ceil(center - reach - 0.5)), last = Math.min(size - 1, Math.floor(center + reach - 0.5));
    const weights = Array.from({ length: last - first + 1 }, (_, at) => Math.max(0, 1 - Math.abs(first + at + 0.5 - center) / reach));
    const sum = weights.reduce((total, weight) => total + weight);
    return [first, weights.map((weight) => weight / sum)];
  });
}

function mix(from, start, stride, rules, to, place, step) {
  rules.forEach(([first, weights], index) => {
    to[place + index * step] = weights.reduce((sum, weight, at) => sum + weight * from[start + (first + at) * stride], 0);
  });
}

function grayscale(values, shape) {
  if (shape[0] !== 3) throw new Error(`the recipe is for 3 colors, the input has ${shape[0]}`);
  const size = values.length / 3;
  const gray = (at) => 0.299 * values[at] + 0.587 * values[at + size] + 0.114 * values[at + 2 * size];
  return [Float64Array.from({ length: size }, (_, at) => gray(at)), [1, ...shape.slice(1)]];
}

function oneHot(values, shape, classes) {
  const out = new Float64Array(values.length * classes);
  values.forEach((value, at) => {
    if (!Number.isInteger(value) || value < 0 || value >= classes) {
      throw new Error(`number ${at + 1} is not a whole number from 0 to ${classes - 1}`);
    }
    out[at * classes + value] = 1;
  });
  return [out, [...shape, classes]];
}

function padIds(values, shape, length, filler) {
  if (values.length > length) throw new Error(`${values.length} ids, but the model takes at most ${length}`);
  const out = new Float64Array(length).fill(filler);
  out.set(values);
  return [out, [length]];
}
