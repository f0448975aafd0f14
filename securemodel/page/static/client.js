// Asks a service: one POST to every party at the same time, each with its own share; adds what comes back.
// No DOM: runs in browsers, workers and Node 20 or newer.

import { add, asHalves, decode, encode, fromHex, join, joined, randomBytes, sha256, split, toHex } from "./share.js";

const LENGTH = "Inference-Header-Content-Length";
const MAX_ANSWER = 64 * 2 ** 20; // bytes
const MAX_PROBLEM = 2 ** 16;
const AGAIN = new Set(["draining", "peer_down", "no_preprocessing", "queue_full", "rate", "share_missing", "result_lost"]);
const CONSEQUENCES = new Set(["share_missing", "unreachable", "deadline"]); // often of another party's refusal
const MAX_TEXT = 500;

/** Why there is no answer. `code` is the party's (docs/service.md) or one of: unreachable, bad_answer, disagree. */
export class Problem extends Error {
  constructor(code, what, { party = "", fix = "", status = 0, retryAfter = null } = {}) {
    super([party && `${party}: `, what, fix && ` (${fix})`].join("").slice(0, MAX_TEXT));
    Object.assign(this, { name: "Problem", code, party, fix, status, retryAfter });
  }
}

/** A service as its service.json has it, and the model in it of that name (the first without one). */
export function modelOf(service, name) {
  if (service?.securemodel_service !== 1) throw new Problem("service", "this is no service.json of version 1");
  const model = name === undefined ? service.models[0] : service.models.find((found) => found.name === name);
  if (!model) throw new Problem("not_found", `the service has no model ${name}`);
  return model;
}

/** Numbers of one row of a tensor whose shape without the rows is `shape`. */
export function sizeOf(shape) {
  return shape.slice(1).reduce((size, length) => size * length, 1);
}

/**
 * One request, split for `parties` parties. `inputs` are arrays of numbers, in the order of the card's. Returns
 * {id, rows, parts}: for each party its header, the bytes of its tensors, and the share that they stand for.
 */
export async function request(card, inputs, parties, { deadlineMs = 10000, form = "seed", random = randomBytes, now = Date.now } = {}) {
  const id = toHex(random(16));
  const tensors = await Promise.all(card.inputs.map(async (port, tensor) => {
    const encoded = encode(inputs[tensor], port.frac_bits, port.limit, port.kind);
    const rows = inputs[tensor].length / sizeOf(port.shape);
    return { port, rows, shares: await split(encoded, parties, { id, tensor, form, random }) };
  }));
  const rows = tensors[0].rows;
  if (!(rows >= 1) || tensors.some((tensor) => tensor.rows !== rows)) {
    throw new Problem("shape", "the inputs are not the same number of whole rows");
  }
  const ranks = Array.from({ length: parties }, (_, rank) => rank);
  const datas = ranks.map((rank) => joined(tensors.map(({ shares }) => shares[rank].bytes)));
  const commit = toHex(await sha256(...await Promise.all(datas.map((data) => sha256(data)))));
  const parameters = { securemodel: 1, program: card.digest, commit, time: now(), deadline_ms: deadlineMs };
  const parts = ranks.map((rank) => ({
    header: { id, inputs: tensors.map(({ port, shares }) => described(port, rows, shares[rank])), parameters },
    data: datas[rank],
    shares: tensors.map(({ shares }) => shares[rank]),
  }));
  return { id, rows, parts };
}

function described(port, rows, share) {
  return {
    name: port.name,
    shape: [rows, ...port.shape.slice(1)],
    datatype: "INT64",
    parameters: { binary_data_size: share.bytes.length, share: share.form },
  };
}

/** A body: the JSON header's bytes and those of the tensors, and how many the former are. */
export function framed(header, data) {
  const text = new TextEncoder().encode(JSON.stringify(header));
  return { length: text.length, body: joined([text, data]) };
}

/** Asks the parties of one service. `key` is an API key; it is kept in this object alone. */
export class Client {
  constructor(service, { key = "", fetch = globalThis.fetch.bind(globalThis), attempts = 4 } = {}) {
    modelOf(service);
    Object.assign(this, { service, key, fetch, attempts });
  }

  /** The answer to one request of up to `model.rows` rows: {outputs, run, row, batch, version, parties, ms, tries}. */
  async infer(name, inputs, options = {}) {
    const [found] = await this.inferMany(name, [inputs], options);
    if (found.problem) throw found.problem;
    return found.answer;
  }

  /**
   * Several requests at once, at most 256: {answer} or {problem} for each. What a party refuses for a moment is asked
   * again under a new id with new shares, until `deadlineMs` is over.
   */
  async inferMany(name, list, { deadlineMs = 10000, signal, form } = {}) {
    const model = modelOf(this.service, name), results = list.map(() => null), end = Date.now() + deadlineMs;
    for (let attempt = 1; ; attempt++) {
      const left = list.map((_, index) => index).filter((index) => !results[index]?.answer);
      const inputs = left.map((index) => list[index]), began = performance.now();
      const made = await Promise.all(inputs.map((one) => request(model.card, one, this.service.parties.length, { deadlineMs, form })));
      const prepared = performance.now() - began;
      const found = await this.#exchange(model, made, deadlineMs, signal);
      found.forEach((one, at) => {
        results[left[at]] = one;
        if (one.answer) Object.assign(one.answer, { tries: attempt }, { ms: { prepare: prepared, ...one.answer.ms } });
      });
      const problems = found.filter((one) => one.problem).map((one) => one.problem);
      const pause = Math.max(0.25 * 2 ** attempt, ...problems.map((problem) => problem.retryAfter ?? 0)) * 1000;
      const again = problems.some((problem) => AGAIN.has(problem.code));
      if (!again || attempt >= this.attempts || Date.now() + pause > end || signal?.aborted) return results;
      await new Promise((done) => setTimeout(done, pause));
    }
  }

  /** Sends requests to all parties, and puts together what belongs together. */
  async #exchange(model, made, deadlineMs, signal) {
    const limit = AbortSignal.timeout(deadlineMs + 5000), began = performance.now();
    const until = signal ? AbortSignal.any([signal, limit]) : limit;
    const told = await Promise.all(this.service.parties.map((party, rank) => {
      const parts = made.map((one) => one.parts[rank]);
      return this.#ask(party, model, parts, until).catch((problem) => made.map(() => ({ problem })));
    }));
    const answered = performance.now();
    return made.map((one, index) => {
      const parts = told.map((answers) => answers[index]);
      try {
        const answer = together(this.service, model, one, parts);
        answer.ms = { wait: answered - began, add: performance.now() - answered };
        return { answer };
      } catch (problem) {
        return { problem };
      }
    });
  }

  /** What one party answers to its parts of several requests: {header, data, sent, received} or {problem} for each. */
  async #ask(party, model, parts, signal) {
    const one = parts.length === 1;
    const path = `/v2/models/${encodeURIComponent(model.name)}/${one ? "infer" : "infer_many"}`;
    const header = one ? parts[0].header : { requests: parts.map((part) => part.header) };
    const { length, body } = framed(header, joined(parts.map((part) => part.data)));
    const reply = await this.#post(party, path, length, body, signal);
    const told = one ? { responses: [{ status: 200, header: reply.header }] } : reply.header;
    if (!Array.isArray(told.responses) || told.responses.length !== parts.length) {
      throw new Problem("bad_answer", "it did not answer every request", { party: party.name });
    }
    let at = 0;
    const sent = Math.round(body.length / parts.length), received = Math.round(reply.size / parts.length);
    return told.responses.map((response) => {
      if (response?.status !== 200) return { problem: problemOf(party, response?.status, response?.problem) };
      const size = dataSize(response.header), data = reply.data.subarray(at, at + size);
      at += size;
      return { header: response.header, data, sent, received };
    });
  }

  /** One POST; where the connection is lost, the same body under the same id again. */
  async #post(party, path, length, body, signal) {
    const headers = { "Content-Type": "application/octet-stream", [LENGTH]: String(length) };
    if (this.key) headers.Authorization = `Bearer ${this.key}`;
    const url = party.url.replace(/\/+$/, "") + path;
    const options = { method: "POST", headers, body, signal, credentials: "omit", cache: "no-store", redirect: "error", referrerPolicy: "no-referrer" };
    for (let wait = 300; ; wait *= 2) {
      try {
        const response = await this.fetch(url, options);
        if (!response.ok) throw problemOf(party, response.status, await problemIn(response));
        return cut(party, response.headers.get(LENGTH), await bytesOf(response, MAX_ANSWER));
      } catch (error) {
        if (error instanceof Problem) throw error;
        if (signal.aborted || wait > 1200) throw lost(party, signal);
        await new Promise((done) => setTimeout(done, wait));
      }
    }
  }
}

function lost(party, signal) {
  const stopped = signal.reason?.name === "AbortError";
  if (stopped) return new Problem("stopped", "stopped before its answer came", { party: party.name });
  return new Problem("unreachable", "it cannot be reached or does not answer in time", { party: party.name, fix: "is this device on the network? Try again later" });
}

/** The bytes of a response, at most `limit` of them. */
async function bytesOf(response, limit) {
  const parts = [], reader = response.body.getReader();
  for (let size = 0; ; ) {
    const { done, value } = await reader.read();
    if (done) return joined(parts);
    if ((size += value.length) > limit) {
      await reader.cancel();
      throw new Problem("bad_answer", "the answer is too long");
    }
    parts.push(value);
  }
}

async function problemIn(response) {
  try {
    return JSON.parse(new TextDecoder().decode(await bytesOf(response, MAX_PROBLEM)));
  } catch {
    return null; // not from the service, but from something in between
  }
}

function problemOf(party, status, told) {
  const text = (name) => (typeof told?.[name] === "string" ? told[name] : "");
  const after = Number(told?.retry_after);
  return new Problem(text("code") || "unknown", text("what") || `it refused with HTTP status ${Number(status) || "unknown"}`, {
    party: party.name, fix: text("fix"), status: Number(status) || 0, retryAfter: after > 0 ? after : null,
  });
}

function cut(party, length, bytes) {
  const size = Number(length);
  try {
    if (!/^\d+$/.test(length) || size > bytes.length) throw new Error();
    const header = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(0, size)));
    return { header, data: bytes.subarray(size), size: bytes.length };
  } catch {
    throw new Problem("bad_answer", "its answer cannot be read", { party: party.name });
  }
}

function dataSize(header) {
  return (header?.outputs ?? []).reduce((size, output) => size + (output?.parameters?.binary_data_size ?? 0), 0);
}

/** Adds the parties' shares of one answer, if they are of one and the same run. */
function together(service, model, made, parts) {
  const refused = parts.map((part) => part.problem).filter(Boolean);
  if (refused.length) throw refused.find((problem) => !CONSEQUENCES.has(problem.code)) ?? refused[0];
  const read = parts.map((part, rank) => outputsOf(service.parties[rank], model, made, part));
  const first = parts[0].header;
  const place = ({ header: { model_version: version, parameters } }) => JSON.stringify([version, parameters?.run, parameters?.row]);
  const other = parts.findIndex((part) => place(part) !== place(parts[0]));
  if (other > 0) {
    const names = `${service.parties[0].name} and ${service.parties[other].name}`;
    throw new Problem("disagree", `${names} answered from different runs, so nothing was added up`, { fix: "ask again; tell the service if it goes on" });
  }
  return {
    outputs: model.card.outputs.map((port, at) => ({
      name: port.name,
      kind: port.kind,
      shape: [made.rows, ...port.shape.slice(1)],
      values: decode(join(read.map((shares) => shares[at])), port.frac_bits),
    })),
    rows: made.rows,
    version: first.model_version,
    run: first.parameters.run,
    row: first.parameters.row,
    batch: first.parameters.batch,
    parties: parts.map(({ sent, received }, rank) => ({
      name: service.parties[rank].name, sent, received, shares: made.parts[rank].shares, answer: read[rank],
    })),
  };
}

/** One party's shares of the outputs, if they are what the model's card says. */
function outputsOf(party, model, made, { header, data }) {
  let at = 0;
  return model.card.outputs.map((port, index) => {
    const told = header.outputs?.[index], size = 8 * made.rows * sizeOf(port.shape);
    const shape = JSON.stringify([made.rows, ...port.shape.slice(1)]);
    const right = header.id === made.id && told?.name === port.name && told.datatype === "INT64"
      && JSON.stringify(told.shape) === shape && told.parameters?.frac_bits === port.frac_bits
      && told.parameters.binary_data_size === size && data.length >= at + size;
    if (!right) throw new Problem("bad_answer", "its answer is not one to this request", { party: party.name });
    return asHalves(data.subarray(at, (at += size)));
  });
}
