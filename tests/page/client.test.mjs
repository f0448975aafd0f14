// client.js with parties that double their shares, and with parties that refuse, lie, or are not there.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Client, Problem, modelOf } from "../../securemodel/page/static/client.js";
import { add, asBytes, asHalves, seedStream, toHex } from "../../securemodel/page/static/share.js";

const NAMES = ["bank", "shop", "union"];
const LENGTH = "Inference-Header-Content-Length";
const card = {
  digest: "ab".repeat(32),
  inputs: [{ name: "x", shape: [-1, 2], frac_bits: 16, kind: "real", limit: 1000 }],
  outputs: [{ name: "y", shape: [-1, 2], frac_bits: 16, kind: "scores" }],
};

function service(parties) {
  return {
    securemodel_service: 1,
    parties: NAMES.slice(0, parties).map((name) => ({ name, url: `https://${name}.example/` })),
    models: [{ name: "double", rows: 4, card }],
  };
}

/** The whole answer of one party to a request of its: twice its share. */
async function doubled({ id, inputs: [{ shape, parameters }] }, data) {
  const count = shape[0] * shape[1];
  const share = parameters.share === "seed" ? await seedStream(data, id, 0, count) : asHalves(data);
  const out = { name: "y", shape, datatype: "INT64", parameters: { binary_data_size: 8 * count, frac_bits: 16 } };
  const header = { id, model_name: "double", model_version: "1", outputs: [out], parameters: { run: `${id}:1`, row: 0, batch: 8 } };
  return { header, data: asBytes(add(share.slice(), share)) };
}

function response(status, header, data = new Uint8Array()) {
  const text = new TextEncoder().encode(JSON.stringify(header));
  return new Response(new Blob([text, data]), { status, headers: { [LENGTH]: String(text.length) } });
}

/** A network of parties that double. `change(call)` may answer instead; `calls` are all POSTs, as they came. */
function network(change = () => undefined) {
  const calls = [];
  const fetch = async (url, { headers, body, credentials, redirect, referrerPolicy }) => {
    assert.deepEqual([credentials, redirect, referrerPolicy], ["omit", "error", "no-referrer"]);
    const size = Number(headers[LENGTH]), header = JSON.parse(new TextDecoder().decode(body.subarray(0, size)));
    const call = { party: new URL(url).hostname.split(".")[0], path: new URL(url).pathname, headers, header, data: body.slice(size), body };
    calls.push(call);
    const other = await change(call, calls);
    if (other) return other;
    if (!header.requests) {
      const made = await doubled(header, call.data);
      return response(200, made.header, made.data);
    }
    const responses = [], datas = [];
    let start = 0;
    for (const one of header.requests) {
      const length = one.inputs[0].parameters.binary_data_size, made = await doubled(one, call.data.slice(start, (start += length)));
      responses.push({ status: 200, header: made.header });
      datas.push(made.data);
    }
    return response(200, { responses }, new Uint8Array(await new Blob(datas).arrayBuffer()));
  };
  return { calls, fetch };
}

const refused = (status, told) => response(status, told);
const asking = (net, parties = 2, more = {}) => new Client(service(parties), { fetch: net.fetch, ...more });
const problem = async (promise) => promise.then(() => assert.fail("no error"), (error) => (assert.ok(error instanceof Problem), error));

for (const parties of [2, 3]) {
  for (const form of ["seed", "values"]) {
    test(`${parties} parties, ${form}: answers are the sum, and one commit ties all bodies together`, async () => {
      const net = network(), found = await asking(net, parties).infer("double", [[1, -2.5, 0, 999]], { form });
      assert.deepEqual(Array.from(found.outputs[0].values), [2, -5, 0, 1998]);
      assert.deepEqual([found.rows, found.outputs[0].shape, found.batch, found.tries], [2, [2, 2], 8, 1]);
      const { commit } = net.calls[0].header.parameters;
      assert.match(commit, /^[0-9a-f]{64}$/);
      for (const { header, path } of net.calls) {
        assert.equal(path, "/v2/models/double/infer");
        assert.equal(header.parameters.commit, commit);
        assert.match(header.id, /^[0-9a-f]{32}$/);
        assert.ok(Math.abs(header.parameters.time - Date.now()) < 60000);
      }
      assert.equal(new Set(net.calls.map(({ header }) => header.id)).size, 1);
    });
  }
}

test("two requests with the same input have nothing in common", async () => {
  const net = network(), client = asking(net);
  await client.infer("double", [[1, 2]], { form: "values" });
  await client.infer("double", [[1, 2]], { form: "values" });
  const words = net.calls.flatMap(({ data }) => Array.from(new BigInt64Array(data.slice().buffer)));
  assert.equal(new Set(words).size, words.length);
  assert.equal(new Set(net.calls.map(({ header }) => header.id)).size, 2);
  assert.equal(new Set(net.calls.map(({ header }) => header.parameters.commit)).size, 2);
});

test("a key goes into the header alone", async () => {
  const net = network();
  await asking(net, 2, { key: "s3cret" }).infer("double", [[1, 2]]);
  for (const { headers, path, header } of net.calls) {
    assert.equal(headers.Authorization, "Bearer s3cret");
    assert.ok(!`${path}${JSON.stringify(header)}`.includes("s3cret"));
  }
});

test("a connection that breaks gets the same bytes again", async () => {
  let broken = 2;
  const net = network(({ party }) => {
    if (party === "shop" && broken-- > 0) throw new TypeError("network");
  });
  const found = await asking(net).infer("double", [[1, 2]]);
  assert.deepEqual(Array.from(found.outputs[0].values), [2, 4]);
  const bodies = net.calls.filter(({ party }) => party === "shop").map(({ body }) => toHex(body));
  assert.deepEqual([bodies.length, new Set(bodies).size, found.tries], [3, 1, 1]);
});

test("what is refused for a moment is asked again with a new id and new shares", async () => {
  for (const code of ["queue_full", "result_lost", "share_missing", "peer_down"]) {
    const net = network(({ party }, calls) => party === "shop" && calls.length <= 2 && refused(503, { code, what: "later" }));
    const found = await asking(net).infer("double", [[1, 2]]);
    assert.equal(found.tries, 2);
    const [first, second] = net.calls.filter(({ party }) => party === "bank");
    assert.notEqual(first.header.id, second.header.id);
    assert.notEqual(toHex(first.data), toHex(second.data));
  }
});

test("other refusals are final, and told with the party's words", async () => {
  const told = { code: "budget", what: "used up", fix: "come back tomorrow", retry_after: 3600 };
  const net = network(({ party }) => party === "shop" && refused(429, told));
  const error = await problem(asking(net).infer("double", [[1, 2]]));
  assert.deepEqual([error.code, error.party, error.message], ["budget", "shop", "shop: used up (come back tomorrow)"]);
  assert.equal(net.calls.length, 2);
});

test("the cause is told, not what follows from it at the other party", async () => {
  const net = network(({ party }) => (party === "bank" ? refused(504, { code: "share_missing", what: "no share of shop" })
    : refused(403, { code: "model_not_allowed", what: "not with this key" })));
  assert.equal((await problem(asking(net).infer("double", [[1, 2]]))).code, "model_not_allowed");
});

test("nothing is asked again after the deadline", async () => {
  const net = network(({ party }) => party === "shop" && refused(503, { code: "queue_full", what: "later", retry_after: 5 }));
  assert.equal((await problem(asking(net).infer("double", [[1, 2]], { deadlineMs: 1000 }))).code, "queue_full");
  assert.equal(net.calls.length, 2);
});

const lies = {
  "another run": (header) => (header.parameters.run = "other"),
  "another row": (header) => (header.parameters.row = 5),
  "another version": (header) => (header.model_version = "2"),
};
for (const [name, lie] of Object.entries(lies)) {
  test(`${name} at one party: nothing is added, and both are named`, async () => {
    const net = network(async ({ party, header, data }) => {
      if (party !== "shop") return undefined;
      const made = await doubled(header, data);
      lie(made.header);
      return response(200, made.header, made.data);
    });
    const error = await problem(asking(net).infer("double", [[1, 2]]));
    assert.equal(error.code, "disagree");
    assert.match(error.message, new RegExp(`bank and shop name another ${name.split(" ")[1]}`));
  });
}

const nonsense = {
  "no body": () => new Response("", { status: 200 }),
  "no JSON": () => new Response("hello", { status: 200, headers: { [LENGTH]: "5" } }),
  "a length beyond the body": () => new Response("{}", { status: 200, headers: { [LENGTH]: "999" } }),
  "another id": (made) => response(200, { ...made.header, id: "00".repeat(16) }, made.data),
  "no outputs": (made) => response(200, { ...made.header, outputs: [] }, made.data),
  "outputs null": (made) => response(200, { ...made.header, outputs: null }, made.data),
  "another shape": (made) => response(200, { ...made.header, outputs: [{ ...made.header.outputs[0], shape: [1, 1] }] }, made.data),
  "other fractional bits": (made) => {
    const [out] = made.header.outputs, parameters = { ...out.parameters, frac_bits: 8 };
    return response(200, { ...made.header, outputs: [{ ...out, parameters }] }, made.data);
  },
  "bytes missing": (made) => response(200, made.header, made.data.subarray(0, 8)),
  "a number": () => response(200, 5),
  null: () => response(200, null),
};
for (const [name, answer] of Object.entries(nonsense)) {
  test(`an answer that is wrong (${name}) is an error with the party's name`, async () => {
    const net = network(async ({ party, header, data }) => (party === "shop" ? answer(await doubled(header, data)) : undefined));
    const error = await problem(asking(net).infer("double", [[1, 2]]));
    assert.deepEqual([error.code, error.party], ["bad_answer", "shop"]);
  });
}

test("a refusal that is not the service's own has at least its status", async () => {
  const net = network(({ party }) => party === "bank" && new Response("<html>Bad gateway</html>", { status: 502 }));
  const error = await problem(asking(net).infer("double", [[1, 2]]));
  assert.deepEqual([error.code, error.message], ["unknown", "bank: it refused with HTTP status 502"]);
});

test("many requests go in one POST, and each has an answer or a problem of its own", async () => {
  const net = network(async ({ party, header, data }) => {
    if (party !== "shop") return undefined;
    const first = await doubled(header.requests[0], data.slice(0, 32));
    const third = await doubled(header.requests[2], data.slice(64));
    const responses = [{ status: 200, header: first.header }, { status: 429, problem: { code: "budget", what: "used up" } }, { status: 200, header: third.header }];
    return response(200, { responses }, new Uint8Array(await new Blob([first.data, third.data]).arrayBuffer()));
  });
  const found = await asking(net).inferMany("double", [[[1, 2]], [[3, 4]], [[5, 6, 7, 8]]]);
  // The bank answered the second one, too: its bytes lie between those of the others.
  assert.deepEqual(found.map(({ answer, problem: told }) => (answer ? Array.from(answer.outputs[0].values) : told.code)), [[2, 4], "budget", [10, 12, 14, 16]]);
  assert.deepEqual(net.calls.map(({ path }) => path), Array(2).fill("/v2/models/double/infer_many"));
});

test("inputs that cannot be shared are refused with the place, before anything is sent", async () => {
  const net = network(), client = asking(net);
  for (const [values, place] of [[[1, NaN], 1], [[1001, 0], 0], [[0, -Infinity], 1]]) {
    await assert.rejects(client.infer("double", [values]), (error) => error instanceof RangeError && error.index === place);
  }
  for (const inputs of [[[1, 2, 3]], [[]]]) assert.equal((await problem(client.infer("double", inputs))).code, "shape");
  assert.equal(net.calls.length, 0);
});

test("a file that is no service.json, and a model that is not there", () => {
  for (const found of [null, {}, { securemodel_service: 2 }]) assert.throws(() => modelOf(found), /no service.json/);
  assert.throws(() => modelOf(service(2), "triple"), /triple/);
  assert.equal(modelOf(service(2)).name, "double");
});

test("text of a party is cut to a length", async () => {
  const net = network(() => refused(400, { code: "bad_header", what: "x".repeat(100000) }));
  assert.ok((await problem(asking(net).infer("double", [[1, 2]]))).message.length <= 500);
});
