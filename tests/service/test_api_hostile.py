"""Requests that nobody would write by mistake: none is a 500, and no log, count or refusal shows what was in them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import urllib.request
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as bounded
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as open_metrics
from schemathesis.specs.openapi.checks import positive_data_acceptance

from protocols.errors import ConfigError
from securemodel.edge import wire
from securemodel.service.app import make_app
from securemodel.service.desk import STATUS, Refused
from securemodel.service.logs import Log
from securemodel.service.metrics import Metrics
from tests.service.front import NOW_MS, Desk, Keys, call, infer, messages, settings

INFER = "/v2/models/line/infer"
MUTATIONS = 10_000


def mutated(text: bytes, chance: random.Random) -> bytes:
    """A text with one to four pieces of it changed, left out, put in or written twice."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text) + 1)
        end = min(len(text), at + chance.choice((1, 1, 1, 8, 40)))
        piece = text[at:end]
        new = chance.choice(
            (b"", piece * 2, piece[::-1], chance.randbytes(len(piece)), b'"', b"{", b"]", b",", b"0", b"\\ud800", b"-", b"1e999",
             b"NaN", b"null", b'"id":1,', b"\x00", "ü".encode(), b"9" * 30)
        )  # fmt: skip
        text = text[:at] + new + text[end:]
    return text


def test_ten_thousand_mutated_headers() -> None:
    chance = random.Random(16)
    desk = Desk()
    app = make_app(desk, settings(keys=Keys(), per_second=1e6, burst=10**6))
    message = messages([[1, -2, 3, 2**62]])[0]
    many = wire.Message(b'{"requests":[' + message.header + b"," + message.header + b"]}", message.data * 2)
    known = {
        b"host": b"bank.example",
        b"inference-header-content-length": b"",
        b"content-length": b"",
        b"authorization": b"Bearer " + Keys.lines.encode(),
        b"prefer": b"respond-async",
    }

    async def run() -> dict[str, int]:
        seen: dict[str, int] = {}
        for turn in range(MUTATIONS):
            path, sent = (INFER, message) if turn % 3 else (INFER + "_many", many)
            text = mutated(sent.header, chance) if turn % 2 else sent.header
            body = text + sent.data
            head = {
                **known,
                b"inference-header-content-length": b"%d" % len(text),
                b"content-length": b"%d" % len(body),
            }
            if turn % 2 == 0:
                name = chance.choice(list(head))
                head[name] = mutated(head[name], chance)
            reply = await call(app, "POST", path, body, list(head.items()))
            code = "ok" if reply.status in (200, 202) else reply.code
            assert code == "ok" or STATUS[code] == reply.status
            seen[code] = seen.get(code, 0) + 1
        return seen

    seen = asyncio.run(run())
    assert "internal" not in seen and len(seen) > 8 and seen["ok"] > 100 and seen["bad_header"] > 1000, seen


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(("INT64", "x", "values")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def odd_headers(draw: st.DrawFn) -> Any:
    """The JSON of a right request, with one of its members something else or left out."""
    header = json.loads(messages([[1, 2, 3, 4]], id="0" * 32)[0].header)
    place: Any = header
    while True:
        name = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if isinstance(place[name], dict | list) and place[name] and draw(st.booleans()):
            place = place[name]
            continue
        if draw(st.integers(0, 3)):
            place[name] = draw(JSON)
        else:
            del place[name]
        return header


class Known:
    """The description of the API, whose models and versions are those of the desk, so that addresses are found."""

    def __init__(self) -> None:
        app = make_app(Desk(), settings(keys=Keys(), per_second=1e6, burst=10**6))
        self.schema = schemathesis.openapi.from_asgi("/openapi.json", app)
        for path, item in self.schema.raw_schema["paths"].items():
            for parameter in item.get("parameters", ()):
                if parameter["name"] == "model":
                    parameter["schema"] = {"type": "string", "enum": ["line", "other", "none"]}
                elif parameter["name"] == "version":
                    parameter["schema"] = {"type": "integer", "enum": [1, 2, 7, 9]}
            assert path.startswith(("/v2", "/service.json"))
        self.operations = {found.ok().label: found.ok() for found in self.schema.get_all_operations()}


KNOWN = Known()
BEARER = {"Authorization": f"Bearer {Keys.lines}"}
UNKNOWN = [positive_data_acceptance]
"""What is not checked: a description cannot say what the bytes after a header have to be."""
few = bounded(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("operation", KNOWN.operations.values(), ids=KNOWN.operations)
def test_answers_are_as_the_description_says(operation: Any) -> None:
    @few
    @given(case=operation.as_strategy())
    def check(case: Any) -> None:
        case.call_and_validate(headers=BEARER, excluded_checks=UNKNOWN)

    check()


@pytest.mark.parametrize("many", [False, True], ids=["infer", "infer_many"])
def test_answers_to_odd_headers_are_as_the_description_says(many: bool) -> None:
    path = "/v2/models/{model}/infer" + ("_many" if many else "")
    operation = KNOWN.operations[f"POST {path}"]
    data = messages([[1, 2, 3, 4]], id="0" * 32)[0].data

    @bounded(few, max_examples=150)
    @given(headers=st.lists(odd_headers(), min_size=1, max_size=2 if many else 1))
    def check(headers: list[Any]) -> None:
        text = json.dumps({"requests": headers} if many else headers[0]).encode()
        length = {wire.LENGTH_HEADER: str(len(text))}
        case = operation.Case(path_parameters={"model": "line"}, headers=length, body=text + data * len(headers))
        case.media_type = "application/octet-stream"
        case.call_and_validate(headers=BEARER, excluded_checks=UNKNOWN)

    check()


def secrets_of(sent: list[wire.Message], x: np.ndarray) -> list[str]:
    """Every way in which a share, an input or a key could be written."""
    found = [Keys.lines, Keys.others]
    for message in sent:
        words = np.frombuffer(message.data, "<i8")
        found += [str(word) for word in words] + [f"{word & (2**64 - 1):x}" for word in words.tolist()]
        found += [message.data.hex()[:16], base64.b64encode(message.data).decode()[:12]]
    return found + [str(value) for value in x.reshape(-1)]


def test_logs_counts_and_refusals_hold_no_share_input_or_key() -> None:
    stream, metrics = io.BytesIO(), Metrics()
    x = np.array([[918273645546372819, -817263544536271890, 716253443526170981, 615243342516070172]])
    sent = messages(x, parties=2)
    message = sent[0]
    text = message.header.decode()
    desk = Desk()
    app = make_app(desk, settings(keys=Keys(), log=Log(stream), metrics=metrics))
    bearer = {"authorization": f"Bearer {Keys.lines}"}
    plain = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "INT64", "data": x.tolist()}]}
    wrong = [
        wire.Message(message.header, message.data + b"x"),
        wire.Message(text.replace("binary_data_size", str(x[0, 0])).encode(), message.data),
        wire.Message(text.replace('"x"', f'"{x[0, 0]}"').encode(), message.data),
        wire.Message(text.replace(str(NOW_MS), str(x[0, 0])).encode(), message.data),
        wire.Message(json.dumps(plain).encode(), b""),
        wire.Message(message.data, message.header),
    ]

    async def run() -> list[bytes]:
        replies = [await infer(app, one, **bearer) for one in (message, *wrong)]
        many = wire.Message(b'{"requests":[' + message.header + b"]}", message.data)
        replies.append(await infer(app, many, INFER + "_many", **bearer))
        replies += [await infer(app, message, authorization=f"Bearer {key}") for key in (Keys.lines + "x", Keys.others)]
        replies.append(await infer(app, message, f"/v2/models/{x[0, 0]}/infer", **bearer))
        for error in (ValueError(f"{x}"), Refused("internal", "it failed")):
            desk.refuse = error
            replies.append(await infer(app, messages(x)[0], **bearer))
        assert [reply.status for reply in replies[:1]] == [200]
        return [reply.body for reply in replies if reply.status >= 400]

    refusals = asyncio.run(run())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    written = stream.getvalue() + generate_latest(metrics.registry) + open_metrics(metrics.registry)
    for secret in secrets_of(sent, x):
        assert secret.encode() not in written, "a log or a count shows a secret"
        assert all(secret.encode() not in refusal for refusal in refusals), "a refusal shows a secret"
    answered = next(line for line in lines if line["code"] == "ok")
    header = json.loads(message.header)
    assert {name: answered[name] for name in ("id", "key_id", "model", "rows", "status")} == {
        "id": header["id"], "key_id": "lines", "model": "line", "rows": 1, "status": 200,
    }  # fmt: skip
    assert answered["run"] == "0123456789abcdef:1" and set(answered["ms"]) == {"all", "read", "check", "desk", "queue"}
    mistake = next(line for line in lines if line["event"] == "mistake")
    assert mistake["kind"] == "ValueError" and "front.py:" in mistake["place"]
    assert b'requests_total{code="internal",model="line"} 2.0' in written


def test_counts_are_served_on_the_loopback_address_alone() -> None:
    metrics = Metrics()
    metrics.request("line", "ok")
    metrics.queue_rows.set(3)
    with metrics.served(0) as port:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text"}
        )
        with urllib.request.urlopen(asked, timeout=60) as response:
            text = response.read().decode()
            assert response.headers["content-type"].startswith("application/openmetrics-text")
        with pytest.raises(ConfigError, match="choose another port"), Metrics().served(port):
            pass
    assert (
        'requests_total{code="ok",model="line"} 1.0' in text and "queue_rows 3.0" in text and text.endswith("# EOF\n")
    )
    with pytest.raises(OSError):
        urllib.request.urlopen(asked, timeout=5)
