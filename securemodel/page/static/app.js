// The page: builds itself from service.json, gathers rows, asks, and shows what came of it.

import { decode, join, toHex } from "./share.js";
import { prepare } from "./recipe.js";
import { readRows, writeCsv } from "./table.js";
import { Client, Problem, modelOf, sizeOf } from "./client.js";
import { Pad, paint, pictureOf } from "./draw.js";
import { bars } from "./plot.js";
import { at, download, make, sizeText, table } from "./view.js";

const WAYS = { draw: "Draw", picture: "Pictures", form: "Type", table: "CSV file" };
const MAX_POST = 2 ** 20, ROWS_OF_REQUEST = 32, REQUESTS_OF_POST = 8; // bytes; progress is shown after each POST
const MAX_FIELDS = 64, SHOWN_ROWS = 50, SHOWN_BARS = 40, SHOWN_WORDS = 16, SHOWN_PICTURES = 12, MAX_PICTURES = 1000;
const state = { service: null, client: null, model: null, way: "", pad: null, rows: [], names: [], results: [], paused: null };

start();

async function start() {
  if (!globalThis.crypto?.subtle) return notice("This page works only over https, or as the offline page from a disk.");
  at("service-file").addEventListener("change", async (event) => openText(await event.target.files[0].text()));
  at("service-load").addEventListener("click", () => openUrl(at("service-url").value));
  const embedded = at("service-json");
  if (embedded) return openText(embedded.textContent);
  if (location.protocol !== "file:") return openUrl("");
  at("connect").hidden = false;
  notice("Which service?");
}

async function openUrl(url) {
  try {
    const place = `${url.replace(/\/+$/, "").replace(/\/service\.json$/, "")}${url ? "/" : ""}service.json`;
    const response = await fetch(place, { credentials: "omit", referrerPolicy: "no-referrer" });
    if (!response.ok) throw new Error(`the service answered with HTTP status ${response.status}`);
    openText(await response.text());
  } catch (error) {
    notice(`The service cannot be reached: ${error.message}`);
  }
}

function openText(text) {
  try {
    const service = JSON.parse(text);
    modelOf(service);
    show(service);
  } catch (error) {
    notice(`This is not a service.json that the page can read: ${error.message}`);
  }
}

function notice(text) {
  at("notice").textContent = text;
  at("notice").hidden = !text;
}

function show(service) {
  state.service = service;
  state.client = new Client(service);
  document.title = at("name").textContent = service.name;
  at("model").replaceChildren(...service.models.map((model) => make("option", { value: model.name }, model.name)));
  at("model-line").hidden = service.models.length < 2;
  at("key-line").hidden = !service.keys;
  listen();
  choose(service.models[0].name);
  showTrust();
  at("foot").textContent = `Computed by ${names(service.parties.map((party) => party.name))}; helper: ${service.dealer}.`;
  for (const id of ["ask", "revealed"]) at(id).hidden = false;
  at("connect").hidden = true;
  notice("");
}

function names(list) {
  return list.length < 2 ? list.join() : `${list.slice(0, -1).join(", ")} and ${list.at(-1)}`;
}

function listen() {
  if (state.pad) return;
  state.pad = new Pad(at("pad"), 28, 28, (text) => (at("status").textContent = text));
  const clicks = { go: () => ask(), pause, retry, save, compare, clear: () => state.pad.clear(), example: () => state.pad.example() };
  for (const [id, act] of Object.entries(clicks)) at(id).addEventListener("click", act);
  at("model").addEventListener("change", (event) => choose(event.target.value));
  at("pictures").addEventListener("change", () => gatherAndShow(at("previews"), previews));
  at("swap").addEventListener("change", () => gatherAndShow(at("previews"), previews));
  at("csv").addEventListener("change", () => gatherAndShow(at("csv-found"), found));
}

// ---- the model's inputs

function imagePort(card) {
  const [port] = card.inputs;
  return card.inputs.length === 1 && port.shape.length === 4 && [1, 3].includes(port.shape[1]) && port.kind === "real" ? port : null;
}

/** The shape of a row that a person gives: before the steps of the recipe that change it. */
function givenShape(card, port) {
  const steps = stepsOf(card, port), shape = port.shape.slice(1);
  return steps.some(([name]) => name === "one_hot") ? shape.slice(0, -1) : shape;
}

function stepsOf(card, port) {
  return card.recipe?.[port.name] ?? [];
}

function sizeOfRow(card) {
  return card.inputs.reduce((size, port) => size + givenSize(card, port), 0);
}

function givenSize(card, port) {
  return sizeOf([-1, ...givenShape(card, port)]);
}

/** The names of the columns of a table, or null where the model has none but their order. */
function columnsOf(card) {
  if (card.inputs.length === 1 && !card.inputs[0].columns && sizeOfRow(card) > 1) return null;
  return card.inputs.flatMap((port) => {
    const size = givenSize(card, port);
    return port.columns ?? (size === 1 ? [port.name] : Array.from({ length: size }, (_, place) => `${port.name}_${place + 1}`));
  });
}

function choose(name) {
  state.model = modelOf(state.service, name);
  const { card } = state.model, image = imagePort(card), columns = columnsOf(card), size = sizeOfRow(card);
  const ways = image ? [...(image.shape[1] === 1 ? ["draw"] : []), "picture"] : [...(size <= MAX_FIELDS ? ["form"] : []), "table"];
  at("ways").hidden = ways.length < 2;
  at("ways").replaceChildren(at("ways").firstElementChild, ...ways.map((way) => make("label", {},
    make("input", { type: "radio", name: "way", value: way, checked: way === ways[0], onchange: () => take(way) }), make("span", {}, WAYS[way]))));
  at("csv-help").textContent = columns
    ? `The first line names the columns. Wanted: ${columns.slice(0, 40).join(", ")}${columns.length > 40 ? ", …" : ""}.`
    : `The first line names the columns. The model has no names for its ${size} columns: they are taken in their order.`;
  at("fields").replaceChildren(...(size <= MAX_FIELDS ? (columns ?? Array.from({ length: size }, (_, place) => `column ${place + 1}`)) : [])
    .map((column) => make("label", {}, column, make("input", { type: "text", inputMode: "decimal", autocomplete: "off", name: column }))));
  take(ways[0]);
}

function take(way) {
  state.way = way;
  for (const name of Object.keys(WAYS)) at(`way-${name}`).hidden = name !== way;
  state.rows = [];
  faults([]);
}

/** What the chosen way gives: rows of numbers and a name for each. Throws an Error whose `.faults` are lines. */
async function gather() {
  const { card } = state.model, image = imagePort(card);
  if (state.way === "draw") {
    if (state.pad.empty) throw new Error("Draw something first, or take the example.");
    const { cells, height, width } = state.pad;
    return { rows: [[pictured(card, image, cells, [1, height, width])]], names: ["drawing"] };
  }
  if (state.way === "picture") {
    const files = [...at("pictures").files];
    if (files.length === 0) throw new Error("Choose a picture first.");
    if (files.length > MAX_PICTURES) throw new Error(`At most ${MAX_PICTURES} pictures at once.`);
    const rows = [];
    for (const file of files) {
      const { pixels, shape } = await pictureOf(file);
      rows.push([pictured(card, image, at("swap").checked ? pixels.map((x) => 255 - x) : pixels, shape)]);
    }
    return { rows, names: files.map((file) => file.name) };
  }
  if (state.way === "form") {
    const fields = [...at("fields").querySelectorAll("input")], cells = fields.map((field) => field.value.trim().replace(",", "."));
    const bad = fields.filter((_, place) => cells[place] === "" || !Number.isFinite(Number(cells[place])));
    for (const field of fields) field.setAttribute("aria-invalid", String(bad.includes(field)));
    bad[0]?.focus();
    if (bad.length) throw new Error(`A number is missing or wrong: ${bad.map((field) => field.name).join(", ")}.`);
    return { rows: [prepared(card, divided(card, cells.map(Number)))], names: ["typed"] };
  }
  const [file] = at("csv").files;
  if (!file) throw new Error("Choose a CSV file first.");
  const read = readRows(await file.text(), columnsOf(card), sizeOfRow(card));
  return { rows: read.rows.map((row) => prepared(card, divided(card, row))), names: read.lines.map((line) => `line ${line}`), unused: read.unused };
}

/** What is shared of a picture with values from 0 to 255. What the recipe leaves open: the size, and 0 to 1 for 0 to 255. */
function pictured(card, port, pixels, shape) {
  const [, channels, height, width] = port.shape, listed = stepsOf(card, port), has = (...kinds) => listed.some(([name]) => kinds.includes(name));
  const steps = shape[0] === 1 ? listed.filter(([name]) => name !== "grayscale") : listed;
  if (shape[0] === 3 && channels === 1 && !has("grayscale")) return pictured(card, port, prepare([["grayscale"]], pixels, shape)[0], [1, ...shape.slice(1)]);
  return prepare([...(has("resize") ? [] : [["resize", height, width]]), ...steps, ...(has("divide", "subtract") ? [] : [["divide", 255]])], pixels, shape)[0];
}

/** A row's numbers, cut up among the inputs. */
function divided(card, row) {
  let start = 0;
  return card.inputs.map((port) => row.slice(start, (start += givenSize(card, port))));
}

/** What is shared of a row: the numbers of each input after the model's recipe. */
function prepared(card, parts) {
  return card.inputs.map((port, index) => prepare(stepsOf(card, port), parts[index], givenShape(card, port))[0]);
}

async function gatherAndShow(place, view) {
  faults([]);
  place.replaceChildren();
  try {
    place.replaceChildren(...view(await gather()));
  } catch (error) {
    faults(error.faults ?? [error.message]);
  }
}

/** The first pictures as the model gets them, from darkest to lightest. */
function previews({ rows, names: titles }) {
  const [, channels, height, width] = imagePort(state.model.card).shape;
  return rows.slice(0, SHOWN_PICTURES).map(([values], index) => {
    const low = values.reduce((least, x) => Math.min(least, x)), span = values.reduce((most, x) => Math.max(most, x)) - low || 1;
    const canvas = make("canvas", { width: 84, height: 84, role: "img", "aria-label": `${titles[index]} as the model gets it` });
    paint(canvas, values.map((x) => (255 * (x - low)) / span), channels, height, width);
    return canvas;
  });
}

function found({ rows, unused }) {
  return [`${rows.length} rows.${unused.length ? ` Left out: ${unused.join(", ")}.` : ""}`];
}

function faults(lines) {
  at("faults").hidden = lines.length === 0;
  at("faults").replaceChildren(...lines.map((line) => make("p", {}, line)));
}

// ---- asking

async function ask() {
  faults([]);
  try {
    const { rows, names: titles } = await gather();
    Object.assign(state, { rows, names: titles, results: rows.map(() => null) });
  } catch (error) {
    return faults(error.faults ?? [error.message]);
  }
  await run(state.rows.map((_, index) => index));
}

async function retry() {
  await run(state.rows.map((_, index) => index).filter((index) => !state.results[index]?.outputs));
}

function pause() {
  if (state.paused) {
    state.paused.go();
    state.paused = null;
  } else {
    let go;
    state.paused = { until: new Promise((done) => (go = done)) };
    state.paused.go = go;
  }
  at("pause").textContent = state.paused ? "Go on" : "Pause";
  at("status").textContent = state.paused ? "Paused after the rows that are under way." : "Going on.";
}

/** Asks for these rows, some at a time, and shows each result as soon as it is there. */
async function run(indices) {
  busy(true, indices.length);
  state.client.key = at("key").value.trim();
  const bytes = state.rows[0].reduce((size, part) => size + 8 * part.length, 0);
  const rowsOfRequest = Math.max(1, Math.min(ROWS_OF_REQUEST, state.model.rows, Math.floor(MAX_POST / bytes)));
  const rowsOfPost = rowsOfRequest * Math.max(1, Math.min(REQUESTS_OF_POST, Math.floor(MAX_POST / bytes / rowsOfRequest)));
  for (let done = 0; done < indices.length; done += rowsOfPost) {
    await state.paused?.until;
    await post(indices.slice(done, done + rowsOfPost), rowsOfRequest);
    progress(Math.min(done + rowsOfPost, indices.length), indices.length);
  }
  busy(false);
  showResults();
}

async function post(indices, rowsOfRequest) {
  const groups = [];
  for (let start = 0; start < indices.length; start += rowsOfRequest) groups.push(indices.slice(start, start + rowsOfRequest));
  let told;
  try {
    told = await state.client.inferMany(state.model.name, groups.map(inputsOf));
  } catch (error) {
    told = groups.map(() => ({ problem: outOfRange(error) }));
  }
  told.forEach(({ answer, problem }, group) => groups[group].forEach((index, row) => {
    state.results[index] = problem ? { problem } : { outputs: answer.outputs.map((output) => rowOf(output, row)) };
  }));
  state.answer = told.find((one) => one.answer)?.answer ?? state.answer;
}

/** The inputs of one request: those of its rows, one after the other. */
function inputsOf(indices) {
  return state.model.card.inputs.map((_, part) => {
    const parts = indices.map((index) => state.rows[index][part]), out = new Float64Array(parts.length * parts[0].length);
    parts.forEach((values, place) => out.set(values, place * values.length));
    return out;
  });
}

function outOfRange(error) {
  return error instanceof Problem ? error : new Problem("input", error.message);
}

function rowOf({ name, kind, shape, values }, row) {
  const size = sizeOf(shape);
  return { name, kind, values: Array.from(values.subarray(row * size, (row + 1) * size)) };
}

function busy(working, count = 0) {
  at("go").disabled = working;
  at("work").hidden = at("pause").hidden = !working || count < 2;
  if (working) {
    at("retry").hidden = true;
    at("status").textContent = "Asking …";
    progress(0, count);
  }
}

function progress(done, count) {
  at("progress").max = count;
  at("progress").value = done;
  if (count > 1 && done) at("status").textContent = `${done} of ${count} rows`;
}

// ---- results

function labelOf(index) {
  return String(state.model.card.labels?.[index] ?? index);
}

function numberText(value, kind) {
  if (kind === "probabilities") return `${(100 * value).toFixed(1)} %`;
  return kind === "class" ? labelOf(value) : value.toFixed(3);
}

function bestOf({ kind, values }) {
  if (kind === "class") return labelOf(values[0]);
  return values.length === 1 ? numberText(values[0], kind) : labelOf(values.indexOf(Math.max(...values)));
}

function showResults() {
  const failed = state.results.filter((result) => !result.outputs);
  at("retry").hidden = failed.length === 0;
  at("status").textContent = `${state.results.length - failed.length} of ${state.results.length} answered.`;
  faults([...new Set(failed.map((result) => result.problem.message))]);
  at("result").hidden = failed.length === state.results.length;
  if (at("result").hidden) return;
  at("answers").replaceChildren(...(state.results.length === 1 ? one(state.results[0]) : many()));
  showSent();
  at("result-title").focus();
}

function one({ outputs }) {
  return outputs.flatMap((output) => {
    const labels = output.values.map((_, index) => labelOf(index)), text = (value) => numberText(value, output.kind);
    const answer = make("p", { className: "answer" }, bestOf(output));
    if (output.values.length === 1) return [answer];
    const what = output.kind === "probabilities" ? "Probability" : "Score";
    return [answer, make("div", { className: "pair" }, ...(labels.length <= SHOWN_BARS ? [bars(labels, output.values, text)] : []),
      table(`${what} of each answer`, ["Answer", what], output.values.map((value, index) => [labels[index], text(value)])))];
  });
}

function many() {
  const rows = state.results.slice(0, SHOWN_ROWS).map((result, index) => result.outputs
    ? [state.names[index], ...result.outputs.flatMap((output) => [bestOf(output), sure(output)])]
    : [state.names[index], `failed: ${result.problem.code}`, ""]);
  const rest = state.results.length - rows.length;
  return [table("Answers", ["Row", ...state.model.card.outputs.flatMap(() => ["Answer", "Largest value"])], rows),
    ...(rest > 0 ? [make("p", {}, `${rest} more rows are in the CSV.`)] : [])];
}

function sure({ kind, values }) {
  return kind === "class" ? "" : numberText(Math.max(...values), kind);
}

function save() {
  const { outputs } = state.model.card, done = state.results.find((result) => result.outputs);
  const heads = outputs.flatMap((port, place) => {
    const { values } = done.outputs[place];
    return [`${port.name} answer`, ...values.map((_, index) => (values.length === 1 ? port.name : `${port.name} ${labelOf(index)}`))];
  });
  const rows = state.results.map((result, index) => [state.names[index], ...(result.outputs
    ? result.outputs.flatMap((output) => [bestOf(output), ...output.values]) : heads.map(() => ""))]);
  download(`${state.model.name}.csv`, "text/csv", writeCsv(["row", ...heads], rows));
}

// ---- what is revealed

function showTrust() {
  const { parties, leader, trust } = state.service;
  at("trust").replaceChildren(
    make("h3", {}, "Who would have to work together"),
    make("ul", {}, ...trust.map((sentence) => make("li", {}, sentence))),
    table("Organizations that compute", ["Name", "Address", "Part"], parties.map((party) =>
      [party.name, party.url, party.name === leader ? "computes, forms the batches" : "computes"])));
}

function words(halves) {
  const count = Math.min(SHOWN_WORDS, halves.length / 2);
  const text = Array.from({ length: count }, (_, place) => [halves[2 * place + 1], halves[2 * place]]
    .map((half) => half.toString(16).padStart(8, "0")).join(""));
  return make("code", { className: "words" }, text.join(" ") + (halves.length / 2 > count ? " …" : ""));
}

function showSent() {
  const { answer, model } = state, { plan } = model.card;
  const [first] = model.card.inputs, sum = join(answer.parties.map((party) => party.shares[0].halves));
  const blocks = answer.parties.map(({ name, shares: [share] }) => make("div", { className: "share" },
    make("h4", {}, `${name} gets`),
    make("p", {}, share.form === "seed" ? "a seed of 32 random bytes, which stands for these numbers:" : "these numbers:"),
    ...(share.form === "seed" ? [make("code", { className: "words" }, toHex(share.bytes))] : []),
    words(share.halves)));
  const together = make("div", { className: "share own" }, make("h4", {}, "Only here: added together"), words(sum),
    make("p", {}, `which is your input: ${Array.from(decode(sum.subarray(0, 16), first.frac_bits), (x) => x.toFixed(2)).join(", ")}, …`));
  const facts = [
    ...answer.parties.map(({ name, sent, received }) => [`To ${name}`, `${sizeText(sent)} sent, ${sizeText(received)} received`]),
    ["Between the organizations", planText(plan, answer.batch)],
    ["Time", `${ms(answer.ms.prepare)} to split, ${ms(answer.ms.wait)} until all had answered, ${ms(answer.ms.add)} to add`],
    ["Batch", `row ${answer.row + 1} of a batch for ${answer.batch}, run ${answer.run}, version ${answer.version}`],
  ];
  at("sent").replaceChildren(make("h3", {}, "What left this browser"),
    make("p", {}, `The first ${SHOWN_WORDS} words of 64 bits of each share of “${first.name}”, as sent. A share by itself is `
      + "random: for every other input it could have been the same."),
    make("div", { className: "shares" }, ...blocks, together), table("Cost of this request", ["What", "How much"], facts));
}

function planText(plan, batch) {
  const bytes = plan?.bytes_by_size?.[batch];
  return `${plan?.rounds ?? "?"} rounds${Number.isFinite(bytes) ? `, ${sizeText(bytes)} for the whole batch` : ""}`;
}

function ms(time) {
  return `${time.toFixed(time < 10 ? 1 : 0)} ms`;
}

/** Fetches every party's copy of this page, and compares it with the list in service.json. */
async function compare() {
  at("copies").textContent = "Comparing …";
  const rows = await Promise.all(state.service.parties.map(async (party) => {
    const wrong = [];
    for (const [path, mark] of Object.entries(party.page ?? {})) {
      if (await copyOf(party, path) !== mark) wrong.push(path);
    }
    const count = Object.keys(party.page ?? {}).length;
    const same = JSON.stringify(party.page) === JSON.stringify(state.service.parties[0].page);
    return [party.name, !count ? "serves no page" : wrong.length ? `differs: ${wrong.join(", ")}` : same ? `the same, ${count} files` : "lists other files"];
  }));
  at("copies").replaceChildren(table("Copies of this page", ["Organization", "Its copy"], rows),
    make("p", { className: "help" }, "A page that lies could lie here, too: “securemodel page verify” and the offline page do not depend on it."));
}

async function copyOf(party, path) {
  try {
    const response = await fetch(`${party.url.replace(/\/+$/, "")}/${path}`, { credentials: "omit", cache: "no-store", redirect: "error" });
    const found = new Uint8Array(await crypto.subtle.digest("SHA-384", await response.arrayBuffer()));
    return `sha384-${btoa(String.fromCharCode(...found))}`;
  } catch {
    return "";
  }
}
