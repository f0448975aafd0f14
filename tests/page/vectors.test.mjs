// share.js, recipe.js and client.js against vectors/share-v1.json, which the Python client and the parties run, too.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { message, together } from "../../securemodel/page/static/client.js";
import { prepare } from "../../securemodel/page/static/recipe.js";
import * as share from "../../securemodel/page/static/share.js";

const vectors = JSON.parse(readFileSync(new URL("../../vectors/share-v1.json", import.meta.url)));

const halves = (texts) => new Uint32Array(BigInt64Array.from(texts, BigInt).buffer);
const texts = (values) => Array.from(new BigInt64Array(values.slice().buffer), String);
const given = (parts) => {
  const queue = parts.map(share.fromHex);
  return (count) => {
    const next = queue.shift();
    assert.equal(next.length, count);
    return next;
  };
};

function each(name, run) {
  assert.ok(vectors[name].length > 0);
  vectors[name].forEach((found, index) => test(`${name} ${found.name ?? index}`, () => run(found)));
}

each("encode", ({ kind, frac_bits: bits, limit, x, e, refused }) => {
  const encode = () => share.encode(x.map(Number), bits, Number(limit), kind);
  if (refused === undefined) assert.deepEqual(texts(encode()), e);
  else assert.throws(encode, (error) => error instanceof RangeError && error.index === Number(refused));
});

each("stream", async ({ seed, id, tensor, count, values }) => {
  assert.deepEqual(texts(await share.seedStream(share.fromHex(seed), id, tensor, count)), values);
});

each("split", async ({ id, tensor, form, e, random, shares, data }) => {
  const found = await share.split(halves(e), shares.length, { id, tensor, form, random: given(random) });
  assert.deepEqual(found.map((one) => texts(one.halves)), shares);
  assert.deepEqual(found.map((one) => share.toHex(one.bytes)), data);
  assert.deepEqual(texts(share.join(found.map((one) => one.halves))), e);
});

each("add", ({ frac_bits: bits, shares, sum, x }) => {
  const total = share.join(shares.map(halves));
  assert.deepEqual(texts(total), sum);
  assert.deepEqual(Array.from(share.decode(total, bits)), x.map(Number));
});

each("request", async ({ id, program, time, deadline_ms: deadlineMs, form, tensors, commit, headers, data }) => {
  const made = await Promise.all(tensors.map(async ({ name, shape, e, random }, tensor) => ({
    name, shape, shares: await share.split(halves(e), headers.length, { id, tensor, form, random: given(random) }),
  })));
  const parts = await message(id, program, made, { time: Number(time), deadlineMs, commit });
  assert.deepEqual(parts.map((part) => JSON.stringify(part.header)), headers);
  assert.deepEqual(parts.map((part) => share.toHex(part.data)), data);
  assert.equal(parts[0].header.parameters.commit, commit);
});

each("answer", ({ headers, data, x, run, row, version, refused }) => {
  const parts = headers.map((header, rank) => ({ header: JSON.parse(header), data: share.fromHex(data[rank]) }));
  const service = { parties: [{ name: "bank" }, { name: "shop" }] };
  const card = { outputs: [{ name: "y", kind: "scores", shape: [-1, 3], frac_bits: 16 }] };
  const add = () => together(service, { card }, { id: parts[0].header.id, rows: 1 }, parts);
  if (refused) return assert.throws(add, (error) => error.code === "disagree" && error.message.includes(refused));
  const found = add();
  assert.deepEqual(Array.from(found.outputs[0].values), x.map(Number));
  assert.deepEqual([found.run, String(found.row), found.version], [run, row, version]);
});

each("recipe", ({ recipe, shape, x, result_shape: form, result }) => {
  const [values, made] = prepare(recipe, x.map(Number), shape.slice(1));
  assert.deepEqual([shape[0], ...made], form);
  values.forEach((value, at) => assert.ok(Math.abs(value - Number(result[at])) <= 1e-12 * Math.max(1, Math.abs(value))));
});

test("more random bytes than one call gives, and every part of them is random", () => {
  const bytes = share.randomBytes(200_001);
  for (let at = 0; at + 4096 < bytes.length; at += 4096) assert.ok(new Set(bytes.subarray(at, at + 4096)).size > 200);
  assert.ok(bytes.subarray(-64).some((byte) => byte));
});
