"""What is checked of a request before the desk sees it, and what an answer of the desk looks like outside."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from securemodel.edge import wire
from securemodel.edge.errors import WireError
from securemodel.service.desk import Answer, Refused
from securemodel.service.problems import ClockSkew

MAX_REQUESTS = 256
"""How many requests one infer_many may hold."""
MAX_MANY_HEADER = MAX_REQUESTS << 10
"""Bytes of its JSON header."""
MAX_SKEW_MS = 120_000

_ONCE = frozenset({b"host", b"authorization", b"content-length", b"content-type", b"inference-header-content-length"})
_ID = re.compile("[0-9a-f]{32}")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Model:
    """What the front has to know of a model's card, so that requests can be checked."""

    name: str
    digest: str
    rows: int
    """The largest batch, which is also the largest request."""
    inputs: Mapping[str, tuple[int, ...]]
    """Shapes by name, without the axis of the batch."""
    outputs: Mapping[str, int]
    """frac_bits by name."""
    body: int
    """Bytes of the tensors of the largest request."""


def model_of(name: str, card: Mapping[str, Any]) -> Model:
    """The same out of the card (docs/service.md)."""
    rows = max(card["sizes"])
    inputs = {port["name"]: tuple(port["shape"][1:]) for port in card["inputs"]}
    body = sum(8 * rows * math.prod(shape) for shape in inputs.values())
    outputs = {port["name"]: port["frac_bits"] for port in card["outputs"]}
    return Model(name, card["digest"], rows, inputs, outputs, body)


def head_of(raw: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The lines of HTTP before a body, by name in lower case. Raises Refused where one that counts is there twice."""
    head = dict(raw)
    if len(head) != len(raw):
        names = [name for name, _ in raw]
        for name in sorted(_ONCE):
            if names.count(name) > 1:
                raise Refused("bad_header", f"the header {name.decode()} is there more than once")
    if not head.get(b"host"):
        raise Refused("bad_header", "the header host is missing", fix="say which host is asked")
    return head


def length_of(head: Mapping[bytes, bytes], limit: int) -> int:
    """How long the JSON before the tensors is. Without its length the body is JSON alone, so its numbers are plain."""
    text = head.get(b"inference-header-content-length")
    if text is None:
        raise plaintext()
    if not text.isdigit() or len(text) > 9 or not int(text):
        raise Refused("bad_header", f"{wire.LENGTH_HEADER} has to be a whole number of bytes", where=wire.LENGTH_HEADER)
    if int(text) > limit:
        raise Refused("too_large", f"the JSON header has more than {limit} bytes", where=wire.LENGTH_HEADER)
    return int(text)


def plaintext() -> Refused:
    """Numbers that are not shares."""
    return Refused(
        "plaintext_refused",
        "this service takes shares, not plain numbers",
        why="the party that reads them would know the input",
        fix="ask with securemodel.edge or the page, or through 'securemodel edge gateway'",
    )


def told(read: Callable[[], _T]) -> _T:
    """What a reader of the wire gives. Raises Refused with its words where it finds a mistake."""
    try:
        return read()
    except WireError as error:
        raise Refused(error.code, error.what, where=error.where, why=error.why, fix=error.fix) from None


def load(text: bytes, limit: int) -> dict[str, Any]:
    """The JSON before the tensors, before they are read."""
    return told(lambda: wire.load(text, limit=limit))


def read(found: Mapping[str, Any], data: bytes, rank: int) -> wire.Request:
    """One request out of its JSON and its bytes."""
    return told(lambda: wire.read_request(found, data, rank))


def refuse_plain(found: Mapping[str, Any]) -> None:
    """Raises Refused("plaintext_refused") where an input is no share."""
    told(lambda: wire.refuse_plain(found))


def check(request: wire.Request, model: Model, now_ms: int) -> None:
    """Raises Refused where a request is not of now, or not for this program and its shapes."""
    if abs(request.time - now_ms) > MAX_SKEW_MS:
        raise ClockSkew(now_ms)
    if request.program != model.digest:
        fix = "read /service.json again"
        raise Refused("wrong_program", f"model {model.name} has another program", where="parameters.program", fix=fix)
    names = [tensor.name for tensor in request.tensors]
    if names != list(model.inputs):
        raise Refused("shape", f"the inputs have to be {', '.join(model.inputs)}, in this order", where="inputs")
    if request.rows > model.rows:
        raise Refused("shape", f"a request has at most {model.rows} rows", where="inputs[0].shape", fix="ask in parts")
    for index, tensor in enumerate(request.tensors):
        if tensor.shape[1:] != model.inputs[tensor.name]:
            shape = [-1, *model.inputs[tensor.name]]
            raise Refused("shape", f"{tensor.name} has to be {shape}", where=f"inputs[{index}].shape")


def size_of(found: Mapping[str, Any]) -> int:
    """How many bytes after the JSON are a request's. Raises Refused: without them, nothing after it can be read."""
    try:
        sizes = [tensor["parameters"]["binary_data_size"] for tensor in found["inputs"]]
    except (KeyError, TypeError):
        sizes = [None]
    if not all(type(size) is int and 0 <= size < 2**40 for size in sizes):
        what = "binary_data_size is missing or no whole number"
        raise Refused("bad_header", what, where="inputs[…].parameters.binary_data_size")
    return sum(sizes)


def many(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The requests of an infer_many, none of which has plain numbers. Raises Refused."""
    requests = found.get("requests")
    if not isinstance(requests, list) or not 1 <= len(requests) <= MAX_REQUESTS:
        raise Refused("bad_header", f"there must be 1 to {MAX_REQUESTS} requests", where="requests")
    for index, one in enumerate(requests):
        if not isinstance(one, dict):
            raise Refused("bad_header", "a request is no JSON object", where=f"requests[{index}]")
        refuse_plain(one)
    return requests


def digest_of(request: wire.Request, model: str, version: int | None, data: bytes) -> bytes:
    """SHA-256 of what a request asks. Time and deadline are not part of it: they differ where it is sent again."""
    inputs = [(tensor.name, tensor.shape, tensor.share.form) for tensor in request.tensors]
    asked = [model, version, request.id, request.program, request.commit, inputs]
    digest = hashlib.sha256(msgspec.json.encode(asked))
    digest.update(data)
    return digest.digest()


def message(id: str, model: Model, answer: Answer) -> wire.Message:
    """An answer of the desk as it is sent."""
    shares = dict(zip(model.outputs, answer.shares, strict=True))
    out = wire.Answer(id, model.name, str(answer.version), answer.run, answer.row, answer.batch, shares, model.outputs)
    return wire.answer(out)


def is_id(text: str) -> bool:
    """Whether a text can be the id of a request."""
    return _ID.fullmatch(text) is not None


def metadata(name: str, versions: Mapping[int, Mapping[str, Any]], version: int) -> dict[str, Any]:
    """What the Open Inference Protocol tells of one version of a model. Shapes are of shares: whole numbers."""
    card = versions[version]
    return {
        "name": name,
        "versions": [str(number) for number in versions],
        "platform": "securemodel",
        "inputs": [_described(port) for port in card["inputs"]],
        "outputs": [_described(port) for port in card["outputs"]],
        "parameters": {"securemodel": 1, "version": str(version), "card": card},
    }


def _described(port: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": port["name"], "datatype": "INT64", "shape": list(port["shape"])}
