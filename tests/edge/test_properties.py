"""What holds for all numbers and all bytes: shares add up, and odd input is refused by the reader it meets."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from securemodel.edge import ServiceError, WireError, sealing, service_file, sharing, wire
from tests.edge.fake import CARD

INT64 = st.sampled_from([0, 1, -1, 2**16 - 1, 2**32, -(2**32), 2**62, 2**63 - 1, -(2**63)]) | st.integers(
    -(2**63), 2**63 - 1
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
MANY = settings(max_examples=100, deadline=None)


@MANY
@given(st.lists(INT64, min_size=1, max_size=9), st.integers(2, 6), st.booleans(), st.binary(min_size=16, max_size=16),
       st.integers(0, 2**32 - 1))  # fmt: skip
def test_shares_add_up(e: list[int], parties: int, seeds: bool, id: bytes, tensor: int) -> None:
    shares = sharing.split(np.array(e), parties, id, tensor, seeds=seeds)
    values = [sharing.values_of(share, id, tensor, len(e)) for share in shares]
    assert sharing.add(values).tolist() == e
    assert [share.form for share in shares] == ["values", *["seed" if seeds else "values"] * (parties - 1)]


@MANY
@given(st.floats(-(2.0**20), 2.0**20), st.integers(0, 40))
def test_encoding_is_rounding_to_even(x: float, bits: int) -> None:
    e = sharing.encode(np.array([x]), bits, 2.0**20)
    assert e.tolist() == [round(Fraction(x) * 2**bits)]
    assert abs(Fraction(float(sharing.decode(e, bits)[0])) - Fraction(x)) <= Fraction(1, 2 ** (bits + 1))


def changed(good: dict[str, Any], path: list[Any], value: Any) -> dict[str, Any]:
    """A copy with one member, at some depth, replaced."""
    made = json.loads(json.dumps(good))
    inner = made
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    return made


def text(header: dict[str, Any]) -> bytes:
    """JSON as anybody may write it, with Infinity and half a pair of surrogates."""
    return json.dumps(header).encode()


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[list[Any]]:
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [[*here, step] for step, _ in steps] + [p for step, inner in steps for p in paths(inner, (*here, step))]


SHARES = sharing.split(np.arange(6), 2, bytes(16), 0)
MESSAGE = wire.requests("0" * 32, "ab" * 32, [("x", [2, 3], SHARES)], 1)[0]
REQUEST = json.loads(MESSAGE.header)
GIVEN = wire.Answer("0" * 32, "line", "3", "s:1", 0, 8, {"y": np.zeros((2, 2), np.int64)}, {"y": 16})
ANSWER = json.loads(wire.answer(GIVEN).header)
SERVICE = {
    "securemodel_service": 1, "name": "lines", "leader": "a", "keys": False, "trust": [],
    "parties": [{"name": n, "url": f"https://{n}", "certificate": None, "ca": None, "hpke": None} for n in "ab"],
    "models": [{"name": "line", "version": 3, "versions": [3], "rows": 8, "card": CARD}],
}  # fmt: skip
ENVELOPE = json.loads(sealing.Envelope("0" * 32, "line", "", "A" * 43, {0: b"xy", 1: b"z"}).message().header)


def test_unchanged_ones_are_read() -> None:
    assert wire.read_request(wire.dump(REQUEST), MESSAGE.data, 0).rows == 2
    assert wire.read_answer(wire.dump(ANSWER), bytes(32)).shares["y"].shape == (2, 2)
    assert service_file.read(SERVICE).model("line").rows == 8
    assert sealing.read_envelope(wire.dump(ENVELOPE))[1] == {0: 2, 1: 1}


@MANY
@given(st.sampled_from(paths(REQUEST)), JSON)
def test_requests_with_an_odd_member(path: list[Any], value: Any) -> None:
    try:
        found = wire.read_request(text(changed(REQUEST, path, value)), MESSAGE.data, 0)
        assert found.rows >= 1 and len(found.shares()) == len(found.tensors)
    except WireError as error:
        assert error.code in ("bad_header", "shape", "plaintext_refused") and error.what


@MANY
@given(st.sampled_from(paths(ANSWER)), JSON)
def test_answers_with_an_odd_member(path: list[Any], value: Any) -> None:
    try:
        wire.read_answer(text(changed(ANSWER, path, value)), bytes(32))
    except WireError as error:
        assert error.what


@MANY
@given(st.sampled_from(paths(SERVICE)), JSON)
def test_service_files_with_an_odd_member(path: list[Any], value: Any) -> None:
    try:
        service_file.read(changed(SERVICE, path, value))
    except ServiceError as error:
        assert error.what and error.fix


@MANY
@given(st.sampled_from(paths(ENVELOPE)), JSON)
def test_envelopes_with_an_odd_member(path: list[Any], value: Any) -> None:
    try:
        sealing.read_envelope(text(changed(ENVELOPE, path, value)))
    except WireError as error:
        assert error.code == "bad_header"


@MANY
@given(st.binary(max_size=200))
def test_odd_bytes(data: bytes) -> None:
    for read in (
        lambda: wire.read_request(data, data, 0), lambda: wire.read_answer(data, data),
        lambda: sealing.read_envelope(data), lambda: sealing.read_request_part(data),
        lambda: sealing.read_answer_part(data),
    ):  # fmt: skip
        try:
            read()
        except WireError as error:
            assert error.what
    assert wire.read_problem("a", 500, data).code == "unknown"
