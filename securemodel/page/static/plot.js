// Shows answers as bars and tables, and what was revealed to get them.

import { decode, join, toHex } from "./share.js";
import { writeCsv } from "./table.js";
import { draw, make, sizeText, table } from "./view.js";

const LINE = 24, NAME = 84, BAR = 190, AMOUNT = 66; // units of the drawing
const SHOWN_ROWS = 50, SHOWN_BARS = 40, SHOWN_WORDS = 16;

/** One row's outputs out of an answer: {name, kind, values} each. */
export function rowOf({ outputs, rows }, row) {
	return outputs.map(({ name, kind, values }) => {
		const size = values.length / rows;
		return { name, kind, values: Array.from(values.subarray(row * size, (row + 1) * size)) };
	});
}

/** A bar for each value, with its label and its number as text; `best` is marked by a sign and in bold. */
function bars(labels, values, numbers, best) {
	const low = Math.min(0, ...values), span = Math.max(0, ...values) - low || 1, place = (value) => NAME + ((value - low) / span) * BAR;
	const lines = values.map((value, index) => {
		const y = LINE * index, label = labels[index].slice(0, 10);
		const width = Math.max(Math.abs(place(value) - place(0)), 1);
		return draw("g", { class: index === best ? "best" : "" },
			draw("text", { x: NAME - 8, y: y + 16, "text-anchor": "end" }, index === best ? `▸ ${label}` : label),
			draw("rect", { x: Math.min(place(0), place(value)), y: y + 3, width, height: LINE - 6, rx: 3 }),
			draw("text", { x: NAME + BAR + 8, y: y + 16 }, numbers[index]));
	});
	const height = LINE * values.length, viewBox = `0 0 ${NAME + BAR + AMOUNT} ${height}`;
	return draw("svg", { viewBox, class: "bars", role: "img", "aria-label": `Bars; the longest is ${labels[best]}` },
		...lines, draw("line", { x1: place(0), x2: place(0), y1: 0, y2: height }));
}

function labelOf({ labels }, index) {
	return String(labels?.[index] ?? index);
}

function textOf(card, kind, value) {
	if (kind === "probabilities") return `${(100 * value).toFixed(1)} %`;
	return kind === "class" ? labelOf(card, value) : value.toFixed(3);
}

function largest(values) {
	return values.reduce((best, value, index) => (value > values[best] ? index : best), 0);
}

/** What each value of an output stands for: its class; of the k best, the one that the output of classes says. */
function labelsOf(card, outputs, values) {
	const top = outputs.find(({ kind, values: { length } }) => kind === "class" && length > 1);
	return values.map((_, index) => labelOf(card, top?.values[index] ?? index));
}

/** The best of an output, and how good it is where that is known. */
function best(card, outputs, { kind, values }) {
	const place = kind === "class" ? 0 : largest(values), text = textOf(card, kind, values[place]);
	return values.length === 1 || kind === "class" ? [text] : [labelsOf(card, outputs, values)[place], text];
}

/** One row's answer: the best in large letters, then bars and a table. */
export function one(card, outputs) {
	return outputs.flatMap((output) => {
		const { kind, values } = output, labels = labelsOf(card, outputs, values), numbers = values.map((value) => textOf(card, kind, value));
		const answer = make("p", { className: "answer" }, best(card, outputs, output)[0]);
		if (kind === "class" || values.length === 1) return values.length === 1 ? [answer] : [];
		const what = kind === "probabilities" ? "Probability" : "Score", rows = labels.map((label, index) => [label, numbers[index]]);
		return [answer, make("div", { className: "pair" }, ...(values.length > SHOWN_BARS ? [] : [bars(labels, values, numbers, largest(values))]),
			table(`${what} of each answer`, ["Answer", what], rows))];
	});
}

/** Answers of many rows, by name: the first ones, and how many more there are. */
export function many(card, names, results) {
	const rows = results.slice(0, SHOWN_ROWS).map(({ outputs, problem }, index) => [names[index],
		outputs ? outputs.map((output) => best(card, outputs, output).join(": ")).join("; ") : `failed: ${problem.code ?? "input"}`]);
	return [table("Answers", ["Row", "Answer"], rows), `${results.length} rows; the CSV file has all of them.`];
}

/** All answers as a CSV text. */
export function csv(card, names, results) {
	const { outputs: sample } = results.find(({ outputs }) => outputs);
	const heads = sample.flatMap(({ name, values }) => [`${name} answer`, ...values.map((_, index) => `${name} ${labelOf(card, index)}`)]);
	const cells = (outputs) => outputs?.flatMap((output) => [best(card, outputs, output)[0], ...output.values]) ?? heads.map(() => "");
	return writeCsv(["row", ...heads, "problem"],
		results.map(({ outputs, problem }, index) => [names[index], ...cells(outputs), problem?.message ?? ""]));
}

function words(halves, start) {
	const word = (place) => [halves[2 * place + 1], halves[2 * place]].map((half) => half.toString(16).padStart(8, "0")).join("");
	const length = Math.min(SHOWN_WORDS, halves.length / 2 - start);
	return make("code", {}, Array.from({ length }, (_, place) => word(start + place)).join(" "));
}

/** What each party was sent of the first input, what that adds up to, and what the request cost. */
export function sent({ parties, ms, batch, row, run, version, tries }, { inputs: [port], plan }) {
	const sum = join(parties.map(({ shares: [share] }) => share.halves)), begin = Math.max(0, sum.findIndex((half, place) => half !== sum[place & 1]) >> 1);
	const own = decode(sum.subarray(2 * begin, 2 * (begin + SHOWN_WORDS)), port.frac_bits);
	const box = (title, ...parts) => make("div", { className: "share" }, make("h4", {}, title), ...parts);
	const blocks = parties.map(({ name, shares: [{ form, bytes, halves }] }) => box(`${name} gets`,
		...(form === "seed" ? ["32 random bytes,", make("code", {}, toHex(bytes)), "which these numbers follow from:"] : ["these numbers:"]),
		words(halves, begin)));
	const mine = ["which is your input:", make("code", {}, Array.from(own, (x) => Number(x.toPrecision(4))).join(" "))];
	const bytes = plan.bytes_by_size?.[batch], time = (value) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;
	return [make("h3", {}, "What left this browser"),
		make("p", {}, `${SHOWN_WORDS} words of 64 bits of “${port.name}”, from word ${begin + 1} on, where yours first change. `
			+ "One share alone is random: it could be one of any other input."),
		make("div", { className: "shares" }, ...blocks, box("Added together, only here", words(sum, begin), ...mine)),
		table("Cost of this request", ["What", "How much"], [
			...parties.map(({ name, sent: up, received }) => [name, `${sizeText(up)} sent, ${sizeText(received)} received`]),
			["Between the parties", `${plan.rounds} rounds${bytes >= 0 ? `, ${sizeText(bytes)} for the whole batch` : ""}`],
			["Time", `${time(ms.prepare)} to split, ${time(ms.wait)} until all had answered, ${time(ms.add)} to add`],
			["Where", `row ${row + 1} in a batch of ${batch}, run ${run}, version ${version}${tries > 1 ? `, asked ${tries} times` : ""}`]])];
}

/** Who takes part, and who would have to work together. */
export function trusted({ parties, leader, dealer, trust }) {
	return [make("h3", {}, "Who would have to work together"), make("ul", {}, ...trust.map((sentence) => make("li", {}, sentence))),
		table("Who takes part", ["Name", "Address", "Part"], [
			...parties.map(({ name, url }) => [name, url, name === leader ? "computes, forms the batches" : "computes"]),
			[dealer, "", "deals random numbers, sees no data"]])];
}
