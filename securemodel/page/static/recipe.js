// What a client does to a row before it is shared: what the model's card lists, with public numbers, as
// securemodel.edge.recipe does. No DOM.

import { sizeOf } from "./share.js";

const STEPS = {
	divide: (values, shape, by) => [perChannel(values, shape, by, (x, y) => x / y), shape],
	subtract: (values, shape, by) => [perChannel(values, shape, by, (x, y) => x - y), shape],
	clamp: (values, shape, low, high) => [values.map((x) => Math.min(Math.max(x, low), high)), shape],
	resize,
	grayscale,
	one_hot: oneHot,
	pad_ids: padIds,
};

/** The values of a row after all steps, [name, ...numbers] each, and their shape. */
export function prepare(steps, values, shape) {
	return steps.reduce(([now, form], [name, ...numbers]) => {
		if (!Object.hasOwn(STEPS, name)) throw new Error(`the recipe's step “${name}” is not known here`);
		return STEPS[name](now, form, ...numbers);
	}, [Float64Array.from(values), shape]);
}

/** By one number, or one for each channel, which is the first axis. */
function perChannel(values, shape, by, apply) {
	if (typeof by === "number") return values.map((x) => apply(x, by));
	if (by.length !== shape[0]) throw new Error(`the recipe is for ${by.length} channels, not ${shape[0]}`);
	return values.map((x, place) => apply(x, by[Math.floor((place * by.length) / values.length)]));
}

/** The last two axes: linear between pixel centers, wider where pixels get fewer, so that each counts. */
function resize(values, shape, tall, wide) {
	const [height, width] = shape.slice(-2), across = triangle(width, wide), down = triangle(height, tall);
	const lines = values.length / width, middle = new Float64Array(lines * wide), out = new Float64Array((lines / height) * tall * wide);
	for (let line = 0; line < lines; line++) mix(values, line * width, across, middle, line * wide, 1);
	for (let layer = 0; layer < lines / height; layer++) {
		for (let x = 0; x < wide; x++) mix(middle, layer * height * wide + x, down, out, layer * tall * wide + x, wide);
	}
	return [out, [...shape.slice(0, -2), tall, wide]];
}

/** For each pixel of `out`, the first of the `size` pixels that it is made of, and their weights. */
function triangle(size, out) {
	const ratio = size / out, reach = Math.max(ratio, 1);
	return Array.from({ length: out }, (_, index) => {
		const center = (index + 0.5) * ratio - 0.5, first = Math.max(0, Math.ceil(center - reach)), weights = [];
		for (let at = first; at <= Math.min(size - 1, center + reach); at++) weights.push(1 - Math.abs(at - center) / reach);
		const sum = weights.reduce((total, weight) => total + weight);
		return [first, weights.map((weight) => weight / sum)];
	});
}

function mix(from, start, rules, to, place, stride) {
	rules.forEach(([first, weights], index) => {
		to[place + index * stride] = weights.reduce((sum, weight, at) => sum + weight * from[start + (first + at) * stride], 0);
	});
}

function grayscale(values, shape) {
	if (shape[0] !== 3) throw new Error(`the recipe is for 3 colors, not ${shape[0]}`);
	const size = values.length / 3;
	const gray = (_, at) => 0.299 * values[at] + 0.587 * values[at + size] + 0.114 * values[at + 2 * size];
	return [Float64Array.from({ length: size }, gray), [1, ...shape.slice(1)]];
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

/** The input of a model that takes one picture, gray or in color; else undefined. */
export function pictureInput({ inputs: [port, ...others] }) {
	return !others.length && port.kind === "real" && port.shape.length === 4 && [1, 3].includes(port.shape[1]) ? port : undefined;
}

function stepsOf(card, port) {
	return card.recipe?.[port.name] ?? [];
}

/** The shape of an input of one row as a person gives it: classes for unit vectors. */
function givenShape(card, port) {
	return port.shape.slice(1, stepsOf(card, port).some(([name]) => name === "one_hot") ? -1 : undefined);
}

function givenSize(card, port) {
	return sizeOf([1, ...givenShape(card, port)]);
}

/** How many numbers a row has as a person gives it. */
export function widthOf(card) {
	return card.inputs.reduce((size, port) => size + givenSize(card, port), 0);
}

/** The names of a row's numbers; null where the card has none for its only input. */
export function columnsOf(card) {
	if (card.inputs.length === 1 && !card.inputs[0].columns && widthOf(card) > 1) return null;
	const numbered = ({ name }, size) => (size > 1 ? Array.from({ length: size }, (_, place) => `${name}_${place + 1}`) : [name]);
	return card.inputs.flatMap((port) => port.columns ?? numbered(port, givenSize(card, port)));
}

/** What is shared of a row of numbers, for each input. */
export function fromNumbers(card, row) {
	let start = 0;
	return card.inputs.map((port) =>
		prepare(stepsOf(card, port), row.slice(start, (start += givenSize(card, port))), givenShape(card, port))[0]);
}

/** What is shared of a picture from 0 to 255 (channels, height, width), also of one that the recipe leaves open. */
export function fromPicture(card, pixels, shape) {
	const port = pictureInput(card), steps = stepsOf(card, port), gray = shape[0] === 1, [channels, ...size] = port.shape.slice(1);
	const has = (...names) => steps.some(([name]) => names.includes(name));
	const [values, form] = prepare([
		...(!gray && channels === 1 && !has("grayscale") ? [["grayscale"]] : []),
		...(has("resize") ? [] : [["resize", ...size]]),
		...steps.filter(([name]) => !gray || name !== "grayscale"),
		...(has("divide", "subtract") ? [] : [["divide", 255]]),
	], pixels, shape);
	if (String(form) !== String([channels, ...size])) throw new Error(`the model takes ${channels} × ${size.join(" × ")} numbers`);
	return [values];
}
