// The page: builds itself from service.json, gathers rows, asks, and shows what came of it.

import { readRows } from "./table.js";
import { Client, SAFE, modelOf, urlOf } from "./client.js";
import { columnsOf, fromNumbers, fromPicture, pictureInput, widthOf } from "./recipe.js";
import { at, download, make, table } from "./view.js";
import { Pad, paint, pictureOf } from "./draw.js";
import { csv, many, one, rowOf, sent, trusted } from "./plot.js";

const WAYS = { draw: "Draw", picture: "Pictures", form: "Type", table: "CSV file" };
const GATHER = { draw: drawn, picture: pictures, form: filledIn, table: fromTable };
const MAX_POST = 2 ** 20, ROWS_OF_REQUEST = 32, ROWS_OF_POST = 256; // bytes; progress is shown after each POST
const MAX_FIELDS = 64, SHOWN_NAMES = 40, SHOWN_PICTURES = 12;
const state = { rows: [], names: [], results: [], resume: null, paused: null };
const pad = new Pad(at("pad"), 28, 28, say);

start();

function start() {
	const load = () => openUrl(at("service-url").value), clear = () => pad.clear(), example = () => pad.example();
	const clicks = { pause, retry, compare, save, load, clear, example };
	for (const [id, act] of Object.entries(clicks)) at(id).onclick = act;
	for (const id of ["pictures", "swap", "csv"]) at(id).onchange = () => checked(show);
	at("model").onchange = ({ target }) => choose(target.value);
	at("service-file").onchange = async ({ target }) => openText(await target.files[0].text());
	at("form").onsubmit = (event) => {
		event.preventDefault();
		ask();
	};
	const embedded = at("service-json");
	if (!globalThis.crypto?.subtle) notice("This page works over https only, or from a disk as one file.");
	else if (embedded) openText(embedded.textContent);
	else if (location.protocol !== "file:") openUrl(".");
	else notice("", (at("connect").hidden = false));
}

async function openUrl(url) {
	try {
		const response = await fetch(urlOf({ url }, "service.json"), SAFE);
		if (!response.ok) throw new Error(`HTTP status ${response.status}`);
		openText(await response.text());
	} catch (error) {
		notice(`The service cannot be reached: ${error.message}`);
	}
}

function openText(text) {
	try {
		const service = JSON.parse(text), model = modelOf(service);
		Object.assign(state, { service, client: new Client(service) });
		document.title = at("name").textContent = service.name;
		at("model").replaceChildren(...service.models.map(({ name }) => make("option", { value: name }, name)));
		at("model-line").hidden = service.models.length < 2;
		at("key-line").hidden = !service.keys;
		at("trust").replaceChildren(...trusted(service));
		choose(model.name);
		at("ask").hidden = at("revealed").hidden = false;
		at("connect").hidden = true;
		notice("");
	} catch (error) {
		notice(`This is no service.json that the page can read: ${error.message}`);
	}
}

function notice(text) {
	at("notice").textContent = text;
	at("notice").hidden = !text;
}

function say(text) {
	at("status").textContent = text;
}

function faults(lines) {
	at("faults").hidden = !lines.length;
	at("faults").replaceChildren(...lines.map((line) => make("p", {}, line)));
}

/** Makes the page one for this model. */
function choose(name) {
	state.model = modelOf(state.service, name);
	const { card } = state.model, picture = pictureInput(card), columns = columnsOf(card), length = widthOf(card), few = length <= MAX_FIELDS;
	const ways = picture ? [...(picture.shape[1] === 1 ? ["draw"] : []), "picture"] : [...(few ? ["form"] : []), "table"];
	const radio = (value) => make("input", { type: "radio", name: "way", value, checked: value === ways[0], onchange: () => take(value) });
	at("ways").hidden = ways.length < 2;
	at("ways").replaceChildren(at("ways").firstElementChild, ...ways.map((way) => make("label", {}, radio(way), ` ${WAYS[way]}`)));
	at("csv-help").textContent = `The first line names the columns. ${columns
		? `Wanted: ${columns.slice(0, SHOWN_NAMES).join(", ")}${columns.length > SHOWN_NAMES ? ", …" : ""}.`
		: `The model takes ${length} columns in their order, whatever their names.`}`;
	const fields = few && !picture ? columns ?? Array.from({ length }, (_, place) => `column ${place + 1}`) : [];
	at("fields").replaceChildren(...fields.map((title) =>
		make("label", {}, title, make("input", { type: "text", inputMode: "decimal", autocomplete: "off", title }))));
	at("result").hidden = at("retry").hidden = true;
	at("sent").replaceChildren();
	say("");
	take(ways[0]);
}

function take(way) {
	state.way = way;
	for (const name of Object.keys(WAYS)) at(`way-${name}`).hidden = name !== way;
	faults([]);
}

// Rows: each way gives {rows, names}, or throws an Error.

function drawn(card) {
	if (pad.empty) throw new Error("Draw something first, or take the example.");
	return { rows: [fromPicture(card, pad.cells, [1, pad.height, pad.width])], names: ["drawing"] };
}

async function pictures(card) {
	const files = [...at("pictures").files], rows = [];
	if (!files.length) throw new Error("Choose a picture first.");
	for (const file of files) {
		const { pixels, shape } = await pictureOf(file);
		rows.push(fromPicture(card, at("swap").checked ? pixels.map((x) => 255 - x) : pixels, shape));
	}
	return { rows, names: files.map(({ name }) => name) };
}

function filledIn(card) {
	const fields = [...at("fields").querySelectorAll("input")], cells = fields.map(({ value }) => value.trim());
	const bad = fields.filter((_, place) => cells[place] === "" || !Number.isFinite(Number(cells[place])));
	for (const field of fields) field.setAttribute("aria-invalid", bad.includes(field));
	bad[0]?.focus();
	if (bad.length) throw new Error(`A number is missing or wrong: ${bad.map(({ title }) => title).join(", ")}.`);
	return { rows: [fromNumbers(card, cells.map(Number))], names: ["typed"] };
}

async function fromTable(card) {
	const [file] = at("csv").files;
	if (!file) throw new Error("Choose a CSV file first.");
	const { rows, lines, unused } = readRows(await file.text(), columnsOf(card), widthOf(card));
	return { rows: rows.map((row) => fromNumbers(card, row)), names: lines.map((line) => `line ${line}`), unused };
}

/** Hands rows on; what is wrong with them is told. */
async function checked(use) {
	faults([]);
	try {
		const { card } = state.model;
		await use(await GATHER[state.way](card), card);
	} catch (error) {
		at("previews").replaceChildren();
		at("csv-found").textContent = "";
		faults(error.faults ?? [error.message]);
	}
}

/** What was read out of files. */
function show({ rows, names, unused }, card) {
	if (unused) at("csv-found").textContent = `${rows.length} rows.${unused.length ? ` Left out: ${unused.join(", ")}.` : ""}`;
	else at("previews").replaceChildren(...rows.slice(0, SHOWN_PICTURES).map(([values], index) => preview(values, names[index], card)));
}

function preview(values, name, card) {
	const low = values.reduce((least, x) => Math.min(least, x)), span = values.reduce((most, x) => Math.max(most, x)) - low || 1;
	const canvas = make("canvas", { width: 84, height: 84, role: "img", "aria-label": `${name}, as the model gets it` });
	paint(canvas, values.map((x) => (255 * (x - low)) / span), ...pictureInput(card).shape.slice(1));
	return canvas;
}

function ask() {
	return checked(async ({ rows, names }) => {
		Object.assign(state, { rows, names, results: rows.map(() => ({})) });
		await run([...rows.keys()]);
	});
}

function retry() {
	faults([]);
	run(state.results.flatMap(({ outputs }, index) => (outputs ? [] : [index])));
}

function pause() {
	if (state.resume) state.resume();
	else state.paused = new Promise((done) => (state.resume = done));
	if (at("pause").textContent !== "Pause") state.resume = state.paused = null;
	at("pause").textContent = state.paused ? "Go on" : "Pause";
	say(state.paused ? "Paused, after the rows that are under way." : "Going on.");
}

/** Asks for these rows, some at a time. */
async function run(indices) {
	const count = indices.length, bytes = 8 * state.rows[0].reduce((size, part) => size + part.length, 0);
	const fit = (most) => Math.max(1, Math.min(most, Math.floor(MAX_POST / bytes)));
	const size = fit(state.model.card.row_independent === false ? 1 : Math.min(ROWS_OF_REQUEST, state.model.rows)), step = size * Math.floor(fit(ROWS_OF_POST) / size);
	state.client.key = at("key").value.trim();
	busy(true, count);
	for (let done = 0; done < count; ) {
		await state.paused;
		await post(indices.slice(done, done + step), size);
		done = Math.min(done + step, count);
		Object.assign(at("progress"), { max: count, value: done });
		if (count > 1) say(`${done} of ${count} rows`);
	}
	busy(false);
	showResults();
}

function busy(working, count) {
	at("go").disabled = at("model").disabled = working;
	at("work").hidden = at("pause").hidden = !(working && count > 1);
	at("retry").hidden = true;
	at("progress").value = 0;
	at("pause").textContent = "Pause";
	state.resume = state.paused = null;
	say("Asking …");
}

async function post(indices, size) {
	const groups = Array.from({ length: Math.ceil(indices.length / size) }, (_, group) => indices.slice(group * size, (group + 1) * size));
	const inputs = groups.map((group) => state.rows[0].map((_, part) => group.flatMap((index) => Array.from(state.rows[index][part]))));
	const told = await state.client.inferMany(state.model.name, inputs).catch((problem) => groups.map(() => ({ problem })));
	told.forEach(({ answer, problem }, group) => groups[group].forEach((index, row) => {
		state.results[index] = problem ? { problem } : { outputs: rowOf(answer, row) };
	}));
	state.answer = told.find(({ answer }) => answer)?.answer ?? state.answer;
}

function showResults() {
	const { results, names, answer, model: { card } } = state, failed = results.filter(({ outputs }) => !outputs);
	say(`${results.length - failed.length} of ${results.length} answered.`);
	faults([...new Set(failed.map(({ problem }) => problem.message))]);
	at("retry").hidden = !failed.length;
	at("result").hidden = failed.length === results.length;
	if (at("result").hidden) return;
	at("answers").replaceChildren(...(results.length > 1 ? many(card, names, results) : one(card, results[0].outputs)));
	at("sent").replaceChildren(...sent(answer, card));
	at("result-title").focus();
}

function save() {
	download(`${state.model.name}.csv`, "text/csv", csv(state.model.card, state.names, state.results));
}

/** Compares every party's copy of this page with the first party's list in service.json. */
async function compare() {
	const { parties } = state.service, list = parties[0].page ?? {}, paths = Object.keys(list);
	at("copies").textContent = "Comparing …";
	const rows = await Promise.all(parties.map(async (party) => {
		const marks = await Promise.all(paths.map((path) => markOf(party, path)));
		const wrong = paths.filter((path, index) => marks[index] !== list[path] || party.page?.[path] !== list[path]);
		return [party.name, wrong.length ? `differs: ${wrong.join(", ")}` : `${paths.length} files as listed`];
	}));
	at("copies").replaceChildren(table("Copies of this page", ["Party", "Its copy"], rows), make("p", { className: "help" },
		"A page that lies could lie here, too: “securemodel page verify” compares without it."));
}

async function markOf(party, path) {
	try {
		const response = await fetch(urlOf(party, path), SAFE);
		return `sha384-${btoa(String.fromCharCode(...new Uint8Array(await crypto.subtle.digest("SHA-384", await response.arrayBuffer()))))}`;
	} catch {
		return "";
	}
}
