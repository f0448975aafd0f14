"""The HTTP front over a desk that answers at once: addresses, refusals, CORS, ids, keys, many requests in one."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from securemodel.edge import sharing, wire
from securemodel.edge.sealing import RELAY_PATH
from securemodel.service import headers
from securemodel.service.app import make_app
from securemodel.service.desk import STATUS, Refused
from securemodel.service.logs import Handler, Log
from securemodel.service.problems import MEANING
from securemodel.service.relay import Relay
from tests.edge.conftest import VECTORS
from tests.service.front import CARD, NOW_MS, SERVICE, WEIGHTS, Desk, Keys, ask, call, infer, messages, settings

INFER = "/v2/models/line/infer"
X = [[1, -2, 3, 2**62]]


def one(message: wire.Message, *, desk: Desk | None = None, path: str = INFER, head: Any = (), **more: Any):
    app = make_app(desk or Desk(), settings(**more))
    return asyncio.run(infer(app, message, path, **dict(head)))


def test_the_sum_of_all_parties_answers_is_the_result() -> None:
    x = np.array([[0, 1, -1, 2**16 - 1], [2**62, -(2**63), 2**63 - 1, 5]], dtype=np.int64)
    shares = []
    for rank, message in enumerate(messages(x, parties=3)):
        reply = one(message, rank=rank)
        assert reply.status == 200 and reply.headers["content-type"] == "application/octet-stream"
        length = int(reply.headers["inference-header-content-length"])
        answer = wire.read_answer(reply.body[:length], reply.body[length:])
        assert (answer.model, answer.version, answer.run, answer.row, answer.batch) == (
            "line",
            "2",
            "0123456789abcdef:1",
            0,
            2,
        )
        assert answer.frac_bits == {"y": 16}
        shares.append(answer.shares["y"])
    assert sharing.add(shares).tolist() == (x @ WEIGHTS).tolist()


def test_the_desk_is_told_what_was_asked() -> None:
    desk = Desk()
    message = messages(X, deadline_ms=2000)[0]
    assert one(message, desk=desk).status == 200
    (submission,) = desk.asked.values()
    header = json.loads(message.header)
    assert (submission.id, submission.model, submission.version, submission.rows) == (header["id"], "line", None, 1)
    assert submission.commit == header["parameters"]["commit"] and len(submission.body_digest) == 32
    assert submission.key_id == "open" and submission.shares[0].dtype == np.int64
    assert one(message, desk=desk, path="/v2/models/line/versions/1/infer").code == "id_reused"


def test_the_same_request_with_a_new_time_is_the_same_and_other_bytes_are_not() -> None:
    desk, id = Desk(), "0" * 32
    first, again = messages(X, id=id)[0], None
    header = json.loads(first.header)
    header["parameters"]["time"] += 1
    again = wire.Message(json.dumps(header, indent=1).encode(), first.data)
    replies = [one(message, desk=desk) for message in (first, again, first)]
    assert [reply.status for reply in replies] == [200] * 3
    assert replies[0].body == replies[1].body == replies[2].body
    other = wire.Message(first.header, bytes([first.data[0] ^ 1]) + first.data[1:])
    assert one(other, desk=desk).code == "id_reused"


@pytest.mark.parametrize(
    "case", json.loads((VECTORS / "share-v1.json").read_text())["request"], ids=lambda case: case["name"]
)
def test_vectors_of_requests(case: dict[str, Any]) -> None:
    ports = [{"name": tensor["name"], "shape": [-1, *tensor["shape"][1:]]} for tensor in case["tensors"]]
    card = {**CARD, "digest": case["program"], "sizes": [64], "inputs": ports}
    rows = case["tensors"][0]["shape"][0]
    for rank, (text, data) in enumerate(zip(case["headers"], case["data"], strict=True)):
        desk = Desk(models={"line": {2: card}})
        desk.refuse = None
        taken: list[Any] = []

        async def submit(request: Any, taken: list[Any] = taken) -> Any:
            taken.append(request)
            raise Refused("draining", "seen")

        desk.submit = submit  # type: ignore[method-assign]
        message = wire.Message(text.encode(), bytes.fromhex(data))
        assert one(message, desk=desk, rank=rank, now_ms=lambda: int(case["time"])).code == "draining"
        assert taken[0].rows == rows and taken[0].commit == case["commit"]
        for share, tensor in zip(taken[0].shares, case["tensors"], strict=True):
            assert [str(value) for value in share.reshape(-1)] == tensor["shares"][rank]


@pytest.mark.parametrize(
    "case", json.loads((VECTORS / "share-v1.json").read_text())["refused"], ids=lambda case: case["name"]
)
def test_vectors_of_refusals(case: dict[str, Any]) -> None:
    message = wire.Message(case["header"].encode(), bytes.fromhex(case["data"]))
    desk = Desk()
    assert one(message, desk=desk, rank=case["rank"]).code == case["code"]
    assert not desk.asked


def changed(**parameters: Any) -> wire.Message:
    message = messages(X)[0]
    header = json.loads(message.header)
    header["parameters"].update(parameters)
    return wire.Message(json.dumps(header).encode(), message.data)


def renamed(name: str) -> wire.Message:
    message = messages(X)[0]
    return wire.Message(message.header.replace(b'"x"', json.dumps(name).encode()), message.data)


@pytest.mark.parametrize(
    ("message", "code", "where"),
    [
        (changed(program="0" * 64), "wrong_program", "parameters.program"),
        (changed(time=NOW_MS - 3_600_000), "clock_skew", "parameters.time"),
        (changed(time=NOW_MS + 120_001), "clock_skew", "parameters.time"),
        (changed(deadline_ms=0), "bad_header", "parameters.deadline_ms"),
        (messages([[1, 2, 3]])[0], "shape", "inputs[0].shape"),
        (messages([[1, 2, 3, 4]] * 9)[0], "too_large", ""),
        (messages([1, 2, 3, 4])[0], "shape", "inputs[0].shape"),
        (renamed("z"), "shape", "inputs"),
        (renamed("\x1b"), "bad_header", "inputs[0]"),
        (renamed("\ud800"), "bad_header", ""),
        (wire.Message(b"[]", b""), "bad_header", ""),
        (wire.Message(b"[" * 5000, b""), "bad_header", ""),
    ],
)
def test_what_is_refused(message: wire.Message, code: str, where: str) -> None:
    desk = Desk()
    reply = one(message, desk=desk)
    assert reply.code == code and reply.status == STATUS[code] and reply.json.get("where", "") == where
    assert not desk.asked


def test_a_clock_that_is_off_is_told_the_time() -> None:
    assert one(changed(time=NOW_MS - 200_000)).json["server_time"] == NOW_MS
    assert one(changed(time=NOW_MS - 119_000)).status == 200


def test_seeds_are_not_for_the_leader() -> None:
    message = messages(X)[1]
    assert one(message, rank=1).status == 200
    assert one(message, rank=0).code == "bad_header"


def test_every_refusal_of_the_desk_keeps_its_words() -> None:
    for code, status in STATUS.items():
        desk = Desk(
            refuse=Refused(code, "what", where="where", why="why", fix="fix", retry_after=2.2, parties=["hospital"])
        )
        reply = one(messages(X)[0], desk=desk)
        assert reply.status == status and reply.code == code and reply.headers["retry-after"] == "2"
        problem = reply.json
        assert [problem[name] for name in ("what", "where", "why", "fix", "detail")] == [
            "what",
            "where",
            "why",
            "fix",
            "what",
        ]
        assert problem["error"] == "what: fix" and problem["retry_after"] == 2.2 and problem["parties"] == ["hospital"]
        assert problem["type"] == f"/docs#{code}" and problem["title"] == MEANING[code]
    assert list(MEANING) == list(STATUS)


def test_a_mistake_of_ours_is_told_by_its_kind_alone() -> None:
    reply = one(messages(X)[0], desk=Desk(refuse=ZeroDivisionError("secret 12345")))
    assert reply.code == "internal" and b"12345" not in reply.body and "ZeroDivisionError" in reply.json["what"]


PLAIN = {
    "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": 16}}],
    "parameters": {"binary_data_output": True},
}


def test_a_log_on_a_full_disk_stops_no_request() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full:
        app = make_app(Desk(), settings(log=Log(full)))
        assert asyncio.run(infer(app, messages([[1, 2, 3, 4]])[0])).status == 200


def test_plain_numbers_are_refused_unread() -> None:
    text = json.dumps(PLAIN).encode()
    app = make_app(Desk(), settings())

    async def unread(body: list[bytes], head: dict[str, str]) -> list[bytes]:
        left = list(body)
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        async def send(message: Any) -> None:
            sent.append(message)

        lines = [(b"host", b"h"), *((name.encode(), value.encode()) for name, value in head.items())]
        scope = {
            "type": "http",
            "method": "POST",
            "path": INFER,
            "raw_path": INFER.encode(),
            "root_path": "",
            "headers": lines,
        }
        await app({**scope, "query_string": b""}, receive, send)
        assert sent[0]["status"] == 415 and json.loads(sent[1]["body"])["code"] == "plaintext_refused"
        return left

    length = {"inference-header-content-length": str(len(text))}
    assert asyncio.run(unread([text, b"secret numbers"], length)) == [b"secret numbers"]
    plain = json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "INT64", "data": [7]}]}).encode()
    assert asyncio.run(unread([plain], {})) == [plain]
    assert asyncio.run(unread([plain], {"content-type": "application/json"})) == [plain]


def test_a_missing_or_odd_content_type_is_no_refusal() -> None:
    for head in ({}, {"content_type": "application/octet-stream"}, {"content_type": "text/plain"}):
        assert one(messages(X)[0], head=head).status == 200


def test_bodies_of_another_length_than_their_header_says() -> None:
    message = messages(X)[0]
    app = make_app(Desk(), settings())
    length = {"inference-header-content-length": str(len(message.header))}

    def send(body: bytes | list[bytes], more: Any = (), gone: bool = False):
        return asyncio.run(call(app, "POST", INFER, body, {**length, **dict(more)}, gone))

    assert send([message.body[:7], message.body[7:300], message.body[300:]]).status == 200
    assert send([message.body, b"x"]).code == "bad_header"
    assert send(message.body[:-1]).code == "bad_header"
    assert send(message.header[:-1]).code == "bad_header"
    assert send(message.body, {"content-length": str(10**6)}).code == "too_large"
    assert send(message.body, {"content-length": "9" * 400}).code == "too_large"
    assert send([message.header, *[bytes(1 << 16)] * 20]).code == "too_large"
    assert send(message.body, {"inference-header-content-length": "100000"}).code == "too_large"
    assert send(message.body[:-1], gone=True).status == 0
    for wrong in ("0", "-1", "1e3", "", "٣", "9" * 40):
        head = {"inference-header-content-length": wrong}
        assert send(message.body, head).code in ("bad_header", "too_large")


def test_bodies_that_are_being_read_have_a_limit_together() -> None:
    message = messages(X)[0]
    head = {"inference-header-content-length": str(len(message.header))}

    async def run() -> None:
        app = make_app(Desk(), settings(reading=len(message.body) + 10))
        waiting = asyncio.Event()

        async def receive() -> Any:
            if not waiting.is_set():
                waiting.set()
                return {"type": "http.request", "body": message.body[:20], "more_body": True}
            await asyncio.sleep(60)

        async def send(_: Any) -> None: ...

        lines = [(b"host", b"h"), *((name.encode(), value.encode()) for name, value in head.items())]
        scope = {"type": "http", "method": "POST", "path": INFER, "raw_path": b"", "root_path": "", "headers": lines}
        slow = asyncio.create_task(app({**scope, "query_string": b""}, receive, send))
        await waiting.wait()
        assert (await call(app, "POST", INFER, message.body, head)).code == "queue_full"
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        for _ in range(3):
            assert (await call(app, "POST", INFER, message.body, head)).status == 200

    asyncio.run(run())


def test_headers_that_count_are_there_once() -> None:
    message = messages(X)[0]
    app = make_app(Desk(), settings(keys=Keys()))
    lines = [
        (b"host", b"bank.example"),
        (b"inference-header-content-length", str(len(message.header)).encode()),
        (b"authorization", b"Bearer " + Keys.lines.encode()),
        (b"accept", b"*/*"),
    ]
    send = lambda head: asyncio.run(call(app, "POST", INFER, message.body, head))
    assert send(lines).status == 200
    for name, value in lines[:3]:
        reply = send([*lines, (name, value)])
        assert reply.code == "bad_header" and name.decode() in reply.json["what"]
    assert send([*lines, lines[3]]).status == 200
    assert send(lines[1:]).code == "bad_header"


def test_keys() -> None:
    message = messages(X)[0]
    keys = Keys()
    bearer = lambda key: {"authorization": f"Bearer {key}"}
    assert one(message, keys=keys, head=bearer(keys.lines)).status == 200
    assert one(message, keys=keys, head={"authorization": f"bearer  {keys.lines}"}).status == 200
    assert one(message, keys=keys, head=bearer(keys.others)).code == "model_not_allowed"
    for head in ({}, bearer("x"), bearer(""), {"authorization": keys.lines}, {"authorization": f"Basic {keys.lines}"}):
        reply = one(message, keys=keys, head=head)
        assert reply.code == "key" and reply.headers["www-authenticate"] == "Bearer"
        assert ("ask the operator" if head == bearer("x") else "Authorization: Bearer KEY") in reply.json["fix"]
    desk = Desk()
    assert one(message, desk=desk, keys=keys, head=bearer(keys.lines)).status == 200
    path = f"/v2/requests/{json.loads(message.header)['id']}"
    mine, theirs, nobody = (
        ask(desk, ("GET", path, b"", head), keys=keys)[0] for head in (bearer(keys.lines), bearer(keys.others), {})
    )
    assert mine.status == 200 and theirs.code == "not_found" and nobody.code == "key"


def test_requests_with_one_key_at_once_and_a_second() -> None:
    async def run() -> None:
        desk = Desk(hold=asyncio.Event())
        app = make_app(desk, settings(running_per_key=2, running=3, burst=6, per_second=0.001))
        begun = [asyncio.create_task(infer(app, messages(X)[0])) for _ in range(2)]
        await asyncio.sleep(0)
        while len(desk.asked) < 2:
            await asyncio.sleep(0.001)
        refused = await infer(app, messages(X)[0])
        assert refused.code == "rate" and refused.headers["retry-after"] == "1"
        desk.hold.set()
        assert [reply.status for reply in await asyncio.gather(*begun)] == [200, 200]
        assert [(await infer(app, messages(X)[0])).status for _ in range(3)] == [200] * 3
        refused = await infer(app, messages(X)[0])
        assert refused.code == "rate" and refused.json["retry_after"] > 100

    asyncio.run(run())


def test_requests_of_all_clients_at_once() -> None:
    async def run() -> None:
        desk = Desk(hold=asyncio.Event())
        app = make_app(desk, settings(running=1))
        begun = asyncio.create_task(infer(app, messages(X)[0]))
        while not desk.asked:
            await asyncio.sleep(0.001)
        assert (await infer(app, messages(X)[0])).code == "queue_full"
        desk.hold.set()
        assert (await begun).status == 200
        assert (await infer(app, messages(X)[0])).status == 200

    asyncio.run(run())


def test_answers_can_be_asked_for_later() -> None:
    async def run() -> None:
        desk = Desk(hold=asyncio.Event())
        app = make_app(desk, settings())
        message = messages(X)[0]
        id = json.loads(message.header)["id"]
        later = await infer(app, message, prefer="respond-async, wait=5")
        assert later.status == 202 and later.json == {"id": id, "state": "received"}
        path = later.headers["location"]
        assert path == f"/v2/requests/{id}"
        waiting = await call(app, "GET", path)
        assert waiting.status == 202 and waiting.json["state"] == "held"
        assert (await call(app, "DELETE", path)).status == 204 and desk.withdrawn == [id]
        desk.hold.set()
        while not desk.answers:
            await asyncio.sleep(0.001)
        answered, again = await call(app, "GET", path), await infer(app, message)
        assert answered.status == again.status == 200 and answered.body == again.body
        desk.refuse = Refused("budget", "none are left")
        assert (await infer(app, messages(X)[0], prefer="respond-async")).code == "budget"

    asyncio.run(run())


def test_a_version_that_is_removed_answers_what_it_was_asked_before() -> None:
    async def run() -> None:
        message = messages(X)[0]
        desk = Desk(hold=asyncio.Event())
        app = make_app(desk, settings())
        asking = asyncio.create_task(infer(app, message, INFER))
        while not desk.asked:
            await asyncio.sleep(0)
        desk.models = {"line": {3: {**CARD, "digest": "ef" * 32}}}  # the answer is of version 2
        desk.hold.set()
        assert (await asking).status == 200
        assert (await call(app, "GET", f"/v2/requests/{next(iter(desk.asked))}")).status == 200
        assert (await infer(app, messages(X)[0], "/v2/models/line/versions/2/infer")).code == "not_found"

    asyncio.run(run())


def test_a_client_that_leaves_does_not_stop_its_request() -> None:
    async def run() -> None:
        desk = Desk(hold=asyncio.Event())
        app = make_app(desk, settings())
        task = asyncio.create_task(infer(app, messages(X)[0]))
        while not desk.asked:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        desk.hold.set()
        while not desk.answers:
            await asyncio.sleep(0.001)

    asyncio.run(run())


def many(parts: list[wire.Message]) -> wire.Message:
    header = {"requests": [json.loads(part.header) for part in parts]}
    return wire.Message(json.dumps(header).encode(), b"".join(part.data for part in parts))


def test_many_requests_have_a_status_each() -> None:
    good, other = messages(X)[0], messages([[5, 6, 7, 8], [0, 0, 0, 1]])[0]
    desk = Desk()
    reply = one(many([good, changed(time=0), other, good]), desk=desk, path="/v2/models/line/infer_many")
    assert reply.status == 200
    header, data = reply.parts()
    answers = header["responses"]
    assert [answer["status"] for answer in answers] == [200, 400, 200, 200]
    assert answers[1]["problem"]["code"] == "clock_skew" and answers[1]["problem"]["server_time"] == NOW_MS
    single = one(good)
    expected, first = single.parts()
    assert answers[0]["header"] == answers[3]["header"] == expected and data[:24] == data[-24:] == first
    assert answers[2]["header"]["outputs"][0]["shape"] == [2, 3] and len(data) == 24 + 48 + 24


def test_many_requests_whose_bytes_cannot_be_told_apart() -> None:
    path, good = "/v2/models/line/infer_many", messages(X)[0]
    bad = wire.Message(good.header.replace(b'"binary_data_size":32', b'"binary_data_size":-1'), good.data)
    assert one(many([good, bad]), path=path).code == "bad_header"
    assert one(wire.Message(many([good, good]).header, good.data), path=path).code == "bad_header"
    assert one(wire.Message(many([good]).header, good.data * 2), path=path).code == "bad_header"
    assert one(many([good] * 257), path=path).code == "bad_header"
    assert one(many([]), path=path).code == "bad_header"
    assert one(wire.Message(b'{"requests":[7]}', b""), path=path).code == "bad_header"
    plain = wire.Message(json.dumps({"requests": [PLAIN]}).encode(), bytes(16))
    assert one(plain, path=path).code == "plaintext_refused"
    assert one(many([good]), path=path, max_body=100).code == "too_large"
    assert one(many([good] * 5), path=path, burst=4).code == "rate"


def test_addresses() -> None:
    desk = Desk()
    paths = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/line", "/v2/models/line/versions/1"]
    paths += ["/v2/models/line/ready", "/v2/models/line/versions/2/ready", "/service.json", "/openapi.json", "/docs"]
    replies = ask(desk, *(("GET", path) for path in paths))
    assert [reply.status for reply in replies] == [200] * len(paths)
    assert replies[0].json["name"] == "lines" and "binary_tensor_data" in replies[0].json["extensions"]
    model = replies[3].json
    assert (model["name"], model["versions"], model["parameters"]["version"]) == ("line", ["1", "2"], "2")
    assert model["inputs"] == [{"name": "x", "datatype": "INT64", "shape": [-1, 4]}]
    assert replies[4].json["parameters"]["version"] == "1" and replies[7].json == SERVICE
    wrong = [
        "/v2/models/none",
        "/v2/models/line/versions/9",
        "/v2/models/line/versions/x",
        "/v2/models/line/versions/²",
        "/v3",
    ]
    wrong += ["/v2/requests/xyz", "/v2/requests/" + "0" * 32, "/a/b/c", "/..%2f", "/v2/", "/v2/models/none/ready"]
    for path, reply in zip(wrong, ask(desk, *(("GET", path) for path in wrong)), strict=True):
        assert reply.code == "not_found", path
    assert ask(desk, ("POST", "/v2/models/none/infer"))[0].code == "not_found"


def test_files_of_the_page_have_its_policy_and_each_header_once() -> None:
    for path, kind in (("/", "text/html"), ("/share.js", "text/javascript"), ("/style.css", "text/css")):
        (reply,) = ask(Desk(), ("GET", path))
        assert reply.status == 200 and reply.headers["content-type"].startswith(kind)
        assert "https://bank.example:8443" in reply.headers["content-security-policy"]
        assert reply.headers["access-control-allow-origin"] == "*" and len(set(reply.names)) == len(reply.names)


def test_methods() -> None:
    (put, post, get, trace) = ask(
        Desk(), ("PUT", "/v2"), ("POST", "/v2/requests/" + "0" * 32), ("GET", INFER), ("TRACE", "/")
    )
    assert {reply.code for reply in (put, post, get, trace)} == {"method"}
    assert set(post.headers["allow"].split(", ")) == {"GET", "HEAD", "DELETE"} and get.headers["allow"] == "POST"


def test_ready_tells_what_is_missing() -> None:
    desk = Desk(refuse=Refused("peer_down", "hospital cannot be reached", parties=["hospital"], retry_after=3))
    live, ready, model = ask(
        desk, ("GET", "/v2/health/live"), ("GET", "/v2/health/ready"), ("GET", "/v2/models/line/ready")
    )
    assert live.status == 200 and ready.status == model.status == 503 and ready.code == "peer_down"
    assert ready.json["parties"] == ["hospital"] and ready.headers["retry-after"] == "3"


def test_cors_is_on_every_answer() -> None:
    desk = Desk(refuse=ValueError("ours"))
    message = messages(X)[0]
    replies = ask(
        desk, ("GET", "/v2"), ("GET", "/nowhere"), ("PUT", "/v2"), ("GET", "/v2/health/ready"), ("POST", INFER)
    )
    replies += ask(
        desk, ("POST", INFER, bytes(10**6), {"inference-header-content-length": "9", "content-length": "1000000"})
    )
    replies += [one(message, desk=desk), one(message), *ask(desk, ("GET", "/v2", b"", [(b"x", b"y")]))]
    assert [reply.status for reply in replies] == [200, 404, 405, 500, 415, 413, 500, 200, 400]
    for reply in replies:
        assert reply.headers["x-content-type-options"] == "nosniff" and reply.headers["cache-control"] == "no-store"
        assert reply.headers["access-control-allow-origin"] == "*"
        exposed = reply.headers["access-control-expose-headers"].lower().split(", ")
        assert {"inference-header-content-length", "retry-after", "location"} <= set(exposed)
    (preflight,) = ask(desk, ("OPTIONS", INFER))
    assert preflight.status == 204 and preflight.headers["access-control-max-age"] == "7200"
    allowed = preflight.headers["access-control-allow-headers"].lower().split(", ")
    assert {"authorization", "content-type", "inference-header-content-length", "prefer"} == set(allowed)
    assert {"GET", "POST", "DELETE"} <= set(preflight.headers["access-control-allow-methods"].split(", "))


def test_digests_tell_requests_apart() -> None:
    message = messages(X, id="1" * 32)[0]
    request = wire.read_request(message.header, message.data, 0)
    known = headers.digest_of(request, "line", None, message.data)
    assert known == headers.digest_of(request, "line", None, bytes(message.data))
    assert (
        len(
            {
                known,
                headers.digest_of(request, "line", 1, message.data),
                headers.digest_of(request, "lin", None, message.data),
                headers.digest_of(request, "line", None, bytes(32)),
                hashlib.sha256(message.data).digest(),
            }
        )
        == 5
    )


def test_the_documentation_has_every_refusal() -> None:
    text = (Path(__file__).parents[2] / "docs" / "service.md").read_text(encoding="utf-8")
    rows = [f"| `{code}` | {status} | {MEANING[code]} |" for code, status in STATUS.items()]
    assert "\n".join(rows) in text


def test_a_mistake_of_the_relay_is_told_by_its_kind_alone() -> None:
    async def broken() -> Any:
        raise ZeroDivisionError("secret 12345")

    told = io.BytesIO()
    facts = settings(log=Log(told))
    relay = Relay(make_app(Desk(), facts), facts, X25519PrivateKey.generate())
    relay._answer = lambda *_: broken()  # type: ignore[method-assign]
    reply = asyncio.run(call(relay, "POST", RELAY_PATH))
    assert reply.code == "internal" and b"12345" not in reply.body + told.getvalue()
    assert json.loads(told.getvalue())["code"] == "internal"
    assert reply.headers["access-control-allow-origin"] == "*"


def test_what_parts_of_a_service_log_are_lines_of_its_log() -> None:
    told = io.BytesIO()
    logger = logging.getLogger("securemodel.service.test")
    logger.addHandler(Handler(Log(told)))
    logger.error("party %s broke\nthe agreement", "bank")
    line = json.loads(told.getvalue())
    assert (line["event"], line["text"]) == ("error", "party bank broke\nthe agreement") and told.getvalue().count(
        b"\n"
    ) == 1
