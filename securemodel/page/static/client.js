// Asks a service: one POST to every party at the same time, each with its own share; adds what comes back.
// No DOM: runs in browsers, workers and Node 20 or newer.

import { asHalves, decode, encode, join, joined, randomBytes, sizeOf, split, toHex } from "./share.js";

const LENGTH = "Inference-Header-Content-Length";
const MAX_ANSWER = 2 ** 26, MAX_TEXT = 500; // bytes; characters
const TRIES = 4, WAIT = 300, LATE = 5000; // milliseconds
const PASSING = ["draining", "no_preprocessing", "peer_down", "queue_full", "rate", "result_lost", "share_missing"];
const FOLLOWING = ["deadline", "share_missing", "unreachable"]; // often because another party refused
/** How everything is fetched: without cookies, referrers, caches and detours. */
export const SAFE = { credentials: "omit", referrerPolicy: "no-referrer", cache: "no-store", redirect: "error" };

/** Why there is no answer. `code` is a party's (docs/service.md), or bad_answer, disagree, service, unreachable. */
export class Problem extends Error {
	constructor(code, what, { party = "", fix = "", retryAfter = 0 } = {}) {
		super(`${party && `${party}: `}${what}${fix && ` (${fix})`}`.slice(0, MAX_TEXT));
		Object.assign(this, { code, party, retryAfter });
	}
}

/** The model of this name in a parsed service.json; its first one without a name. */
export function modelOf(service, name) {
	if (service?.securemodel_service !== 1) throw new Problem("service", "this is no service.json of version 1");
	const model = service.models.find((found) => name === undefined || found.name === name);
	if (!model) throw new Problem("not_found", `the service has no model ${name ?? ""}`);
	return model;
}

/** The address of a path at a party. */
export function urlOf(party, path) {
	return `${party.url.replace(/\/+$/, "")}/${path}`;
}

/** What each party is sent, by rank: {header, data, shares}. A tensor is {name, shape, shares}, the rows first. */
export function message(id, program, tensors, { time, deadlineMs, commit = toHex(randomBytes(32)) }) {
	const parts = tensors[0].shares.map((_, rank) => tensors.map((tensor) => tensor.shares[rank]));
	const datas = parts.map((shares) => joined(shares.map(({ bytes }) => bytes)));
	const parameters = { securemodel: 1, program, commit, time, deadline_ms: deadlineMs };
	const input = ({ name, shape }, { bytes, form: share }) =>
		({ name, shape, datatype: "INT64", parameters: { binary_data_size: bytes.length, share } });
	return parts.map((shares, rank) => ({
		header: { id, inputs: tensors.map((tensor, index) => input(tensor, shares[index])), parameters }, data: datas[rank], shares,
	}));
}

/** A request under a new id with new shares: {id, rows, parts}. `inputs` are arrays of numbers in the card's order. */
async function request(card, inputs, parties, { deadlineMs, form }) {
	const id = toHex(randomBytes(16)), rows = inputs[0].length / sizeOf(card.inputs[0].shape);
	const tensors = await Promise.all(card.inputs.map(async ({ name, shape, frac_bits, limit, kind }, tensor) => {
		if (!Number.isInteger(rows) || !rows || inputs[tensor].length !== rows * sizeOf(shape)) {
			throw new Problem("shape", `${name}: not whole rows, or not as many as of the first input`);
		}
		const encoded = encode(inputs[tensor], frac_bits, limit, kind);
		return { name, shape: [rows, ...shape.slice(1)], shares: await split(encoded, parties, { id, tensor, form }) };
	}));
	return { id, rows, parts: message(id, card.digest, tensors, { time: Date.now(), deadlineMs }) };
}

/** Asks the parties of one service. `key` is an API key; it is kept in this object alone. */
export class Client {
	constructor(service, { key = "", fetch = globalThis.fetch.bind(globalThis) } = {}) {
		modelOf(service);
		Object.assign(this, { service, key, fetch });
	}

	/** {outputs, rows, run, row, batch, version, parties, ms, tries} for up to `model.rows` rows. */
	async infer(name, inputs, options) {
		const [{ answer, problem }] = await this.inferMany(name, [inputs], options);
		if (problem) throw problem;
		return answer;
	}

	/**
	 * Up to 256 requests: {answer} or {problem} for each. What is refused for a moment is asked again, under a new id
	 * with new shares, until `deadlineMs` is over.
	 */
	async inferMany(name, list, { deadlineMs = 10000, form } = {}) {
		const { service: { parties } } = this, model = modelOf(this.service, name), out = [], end = Date.now() + deadlineMs;
		let left = [...list.keys()];
		for (let tries = 1; ; tries++) {
			const began = performance.now();
			const made = await Promise.all(left.map((index) => request(model.card, list[index], parties.length, { deadlineMs, form })));
			const shared = performance.now(), signal = AbortSignal.timeout(deadlineMs + LATE);
			const told = await Promise.all(parties.map((party, rank) => this.#ask(party, model, made.map(({ parts }) => parts[rank]), signal)));
			const answered = performance.now();
			made.forEach((one, at) => {
				try {
					const answer = together(this.service, model, one, told.map((answers) => answers[at]));
					const ms = { prepare: shared - began, wait: answered - shared, add: performance.now() - answered };
					out[left[at]] = { answer: { ...answer, tries, ms } };
				} catch (problem) {
					out[left[at]] = { problem };
				}
			});
			left = left.filter((index) => PASSING.includes(out[index].problem?.code));
			const wait = Math.max(WAIT * 2 ** tries, ...left.map((index) => 1000 * out[index].problem.retryAfter));
			if (!left.length || tries === TRIES || Date.now() + wait > end) return out;
			await sleep(wait);
		}
	}

	/** One party's answers to its parts of some requests: {header, data, sent, received} or {problem} for each. */
	async #ask(party, model, parts, signal) {
		try {
			const one = parts.length === 1, path = `v2/models/${encodeURIComponent(model.name)}/${one ? "infer" : "infer_many"}`;
			const text = JSON.stringify(one ? parts[0].header : { requests: parts.map(({ header }) => header) });
			const head = new TextEncoder().encode(text), body = joined([head, ...parts.map(({ data }) => data)]);
			const { header, data, size } = await this.#post(party, path, head.length, body, signal);
			const responses = one ? [{ status: 200, header }] : header.responses, share = (bytes) => Math.round(bytes / parts.length);
			let start = 0;
			return parts.map((_, index) => {
				const { status, header: told, problem } = responses[index];
				if (status !== 200) return { problem: problemOf(party, status, problem) };
				const length = told.outputs.reduce((sum, { parameters }) => sum + parameters.binary_data_size, 0);
				return { header: told, data: data.subarray(start, (start += length)), sent: share(body.length), received: share(size) };
			});
		} catch (error) { // one that is not ours comes of an answer that is not what it should be
			const problem = error instanceof Problem ? error : new Problem("bad_answer", "its answer cannot be read", { party: party.name });
			return parts.map(() => ({ problem }));
		}
	}

	/** One POST. Where the connection is lost, the same body under the same id again. */
	async #post(party, path, length, body, signal) {
		const headers = { "Content-Type": "application/octet-stream", [LENGTH]: String(length) };
		if (this.key) headers.Authorization = `Bearer ${this.key}`;
		for (let tries = 1; ; tries++) {
			try {
				const response = await this.fetch(urlOf(party, path), { ...SAFE, method: "POST", headers, body, signal });
				const bytes = await bytesOf(response), size = Number(response.headers.get(LENGTH));
				if (!response.ok) throw problemOf(party, response.status, parsed(bytes));
				return { header: parsed(bytes.subarray(0, size)), data: bytes.subarray(size), size: bytes.length };
			} catch (error) {
				if (error instanceof Problem) throw error;
				if (signal.aborted || tries === TRIES) throw new Problem("unreachable", "cannot be reached in time", { party: party.name });
				await sleep(WAIT * 2 ** tries);
			}
		}
	}
}

function sleep(time) {
	return new Promise((done) => setTimeout(done, time));
}

/** The bytes of a response, if they are not too many. */
async function bytesOf(response) {
	const parts = [], reader = response.body.getReader();
	for (let size = 0; ; ) {
		const { done, value } = await reader.read();
		if (done) return joined(parts);
		if ((size += value.length) > MAX_ANSWER) {
			await reader.cancel();
			throw new Problem("bad_answer", "an answer is too long");
		}
		parts.push(value);
	}
}

/** The JSON of some bytes; null where there is none. */
function parsed(bytes) {
	try {
		return JSON.parse(new TextDecoder().decode(bytes));
	} catch {
		return null;
	}
}

function problemOf({ name: party }, status, told) {
	const text = (name, other) => (typeof told?.[name] === "string" ? told[name] : other);
	const retryAfter = Math.max(0, Number(told?.retry_after)) || 0, what = text("what", `it refused with HTTP status ${status}`);
	return new Problem(text("code", "unknown"), what, { party, fix: text("fix", ""), retryAfter });
}

/**
 * Adds the parties' shares of one answer, if they are of the same run. `parts` are {header, data, sent, received} or
 * {problem} by rank.
 */
export function together({ parties }, { card }, { id, rows, parts: made }, parts) {
	const problems = parts.flatMap(({ problem }) => problem ?? []);
	if (problems.length) throw problems.find(({ code }) => !FOLLOWING.includes(code)) ?? problems[0];
	const shares = parts.map((part, rank) => outputsOf(parties[rank].name, card, id, rows, part));
	const places = parts.map(({ header }) => ({ version: header.model_version, ...header.parameters }));
	for (const name of ["version", "run", "row"]) {
		const other = places.findIndex((place) => place[name] !== places[0][name]);
		if (other > 0) throw new Problem("disagree", `${parties[0].name} and ${parties[other].name} name another ${name}, so nothing was added`);
	}
	const outputs = card.outputs.map(({ name, kind, shape, frac_bits }, index) => ({
		name, kind, shape: [rows, ...shape.slice(1)], values: decode(join(shares.map((share) => share[index])), frac_bits),
	}));
	const sides = parts.map(({ sent, received }, rank) => ({ name: parties[rank].name, sent, received, shares: made?.[rank].shares }));
	const { version, run, row, batch } = places[0];
	return { outputs, rows, version, run, row, batch, parties: sides };
}

/** One party's shares of the outputs, if they are what the card says. */
function outputsOf(party, card, id, rows, { header, data }) {
	let start = 0;
	return card.outputs.map(({ name, shape, frac_bits }, index) => {
		const told = header.outputs[index], size = 8 * rows * sizeOf(shape);
		const right = header.id === id && told?.name === name && told.datatype === "INT64" && told.parameters.frac_bits === frac_bits
			&& String(told.shape) === String([rows, ...shape.slice(1)]) && told.parameters.binary_data_size === size;
		if (!right || data.length < start + size) throw new Problem("bad_answer", "its answer does not belong to the request", { party });
		return asHalves(data.subarray(start, (start += size)));
	});
}
