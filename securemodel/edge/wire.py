"""What client and parties send each other: Open Inference Protocol v2 with binary tensors, as int64 shares.

A message is a JSON header and the tensors' bytes in its order. Both directions are here, so that the two sides cannot
drift apart. Whoever reads is strict: sizes, types and ids must be as written here, or it is a WireError with the code
that the client is refused with. Members that are not known are left out of account.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from securemodel.edge.errors import Refused, WireError
from securemodel.edge.sharing import SEED_BYTES, Share, values_of

LENGTH_HEADER = "Inference-Header-Content-Length"
MAX_HEADER_BYTES = 16 * 1024
DEFAULT_DEADLINE_MS, MAX_DEADLINE_MS = 10_000, 60_000
_WRITER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_ID, _DIGEST = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Message:
    """A JSON header in UTF-8 and the bytes of its tensors."""

    header: bytes
    data: bytes = field(repr=False)

    @property
    def body(self) -> bytes:
        return self.header + self.data


@dataclass(frozen=True)
class Tensor:
    """A tensor of a request, at one party."""

    name: str
    shape: tuple[int, ...]
    share: Share


@dataclass(frozen=True)
class Request:
    """A request as one party has it. Times are in milliseconds, `time` since 1970."""

    id: str
    tensors: tuple[Tensor, ...]
    program: str
    commit: str
    time: int
    deadline_ms: int

    @property
    def rows(self) -> int:
        return self.tensors[0].shape[0]

    def shares(self) -> list[np.ndarray]:
        """This party's share of each tensor. Compare the shapes with the model's first: a seed stands for any number."""
        key = bytes.fromhex(self.id)
        return [
            values_of(tensor.share, key, index, math.prod(tensor.shape)).reshape(tensor.shape)
            for index, tensor in enumerate(self.tensors)
        ]


@dataclass(frozen=True)
class Answer:
    """One party's answer: where it was computed, and its int64 share of each output by name."""

    id: str
    model: str
    version: str
    run: str
    row: int
    batch: int
    shares: Mapping[str, np.ndarray] = field(repr=False)
    frac_bits: Mapping[str, int] = field(default_factory=dict)


def dump(value: Any) -> bytes:
    """JSON without blanks, in UTF-8, as JavaScript's JSON.stringify writes it."""
    return _WRITER.encode(value).encode()


def requests(
    id: str,
    program: str,
    tensors: Sequence[tuple[str, Sequence[int], Sequence[Share]]],
    time: int,
    deadline_ms: int = DEFAULT_DEADLINE_MS,
    *,
    commit: str | None = None,
) -> list[Message]:
    """The message for each party, by rank. A tensor is its name, its shape with the rows first, and a share a party.

    `commit` ties the parties' bodies together: 32 random bytes in hex. It must not follow from the shares: with its own
    share and a digest of the others', a party could try inputs out until one fits.
    """
    ranks = range(len(tensors[0][2]))
    datas = [b"".join(shares[rank].data for _, _, shares in tensors) for rank in ranks]
    told = {
        "securemodel": 1,
        "program": program,
        "commit": commit or os.urandom(32).hex(),
        "time": time,
        "deadline_ms": deadline_ms,
    }
    headers = [
        {
            "id": id,
            "inputs": [_described(name, shape, shares[rank]) for name, shape, shares in tensors],
            "parameters": told,
        }
        for rank in ranks
    ]
    return [Message(dump(header), data) for header, data in zip(headers, datas, strict=True)]


def _described(name: str, shape: Sequence[int], share: Share) -> dict[str, Any]:
    parameters = {"binary_data_size": len(share.data), "share": share.form}
    return {"name": name, "shape": list(shape), "datatype": "INT64", "parameters": parameters}


def answer(answered: Answer) -> Message:
    """The message of a party's answer."""
    outputs = [
        {
            "name": name,
            "shape": list(share.shape),
            "datatype": "INT64",
            "parameters": {"binary_data_size": 8 * share.size, "frac_bits": answered.frac_bits[name]},
        }
        for name, share in answered.shares.items()
    ]
    header = {
        "id": answered.id,
        "model_name": answered.model,
        "model_version": answered.version,
        "outputs": outputs,
        "parameters": {"run": answered.run, "row": answered.row, "batch": answered.batch},
    }
    data = b"".join(share.astype("<i8").tobytes() for share in answered.shares.values())
    return Message(dump(header), data)


def load(text: bytes, where: str = "the JSON header", limit: int = MAX_HEADER_BYTES) -> dict[str, Any]:
    """A JSON object of at most `limit` bytes, every member of it once, without NaN, Infinity or half a character."""
    if len(text) > limit:
        raise _bad(f"{where} has {len(text)} bytes", why=f"at most {limit} are read")
    try:
        found = _READER.decode(text.decode())
        if b"\\u" in text:
            dump(found)  # half a pair of surrogates could not be passed on
    except (ValueError, RecursionError) as error:
        raise _bad(f"{where} is no JSON that can be read", why=_why(error)) from error
    if not isinstance(found, dict):
        raise _bad(f"{where} is no JSON object")
    return found


def _why(error: Exception) -> str:
    """What is wrong with a text, without any of it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    if isinstance(error, WireError):
        return error.what
    return "brackets are nested too deeply" if isinstance(error, RecursionError) else "a number or character is wrong"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _bad("a member is there twice")
    return found


def _no_constant(text: str) -> Any:
    raise _bad(f"{text} is no JSON number")


_READER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)


def _bad(what: str, *, where: str = "", why: str = "", fix: str = "") -> WireError:
    return WireError("bad_header", what, where=where, why=why, fix=fix or "/openapi.json says how a request is written")


def read_request(header: bytes | Mapping[str, Any], data: bytes, rank: int) -> Request:
    """What a client sent to the party of this rank. WireError has the code to refuse it with.

    The header may be one that `load` has read, so that a party can refuse it before it reads the bytes of the tensors.
    """
    found = load(header) if isinstance(header, bytes) else header
    id = found.get("id")
    if not isinstance(id, str) or not _ID.fullmatch(id):
        refuse_plain(found)
        raise _bad("the id is not 32 hexadecimal digits in lower case", where="id")
    tensors = _cut(found.get("inputs"), data, "inputs", _read_tensor)
    _same_rows([tensor.shape for tensor in tensors])
    if rank == 0 and any(tensor.share.form == "seed" for tensor in tensors):
        raise _bad("the first party gets values, not a seed", where="inputs")
    told = _mapping(found, "parameters", "the header")
    if told.get("securemodel") != 1 or isinstance(told.get("securemodel"), bool):
        raise _bad("this is not version 1 of the protocol", where="parameters.securemodel")
    return Request(
        id,
        tuple(tensors),
        _digest(told, "program"),
        _digest(told, "commit"),
        _whole(told.get("time"), 0, 2**53, "parameters.time"),
        _whole(told.get("deadline_ms", DEFAULT_DEADLINE_MS), 1, MAX_DEADLINE_MS, "parameters.deadline_ms"),
    )


def refuse_plain(found: Mapping[str, Any]) -> None:
    """Tells clients of ordinary services what they talk to, also where they send no id: WireError("plaintext_refused")."""
    inputs = found.get("inputs")
    for tensor in inputs if isinstance(inputs, list) else ():
        if isinstance(tensor, dict):
            _refuse_plain_tensor(tensor, "inputs")


def _refuse_plain_tensor(tensor: Mapping[str, Any], where: str) -> None:
    told = tensor.get("parameters")
    if tensor.get("datatype") != "INT64" or not isinstance(told, dict) or "share" not in told or "data" in tensor:
        raise WireError(
            "plaintext_refused",
            "this party takes shares only, and here is a plain tensor",
            where=where,
            why="whoever sends it would show its input to this party",
            fix="ask with securemodel.edge or the page, or through `securemodel edge gateway`",
        )


def _cut(described: Any, data: bytes, where: str, read: Any) -> list[Any]:
    """What `read` makes of each tensor of a list and its bytes; the bytes must be used up."""
    if not isinstance(described, list) or not 1 <= len(described) <= 64:
        raise _bad("there must be 1 to 64 tensors", where=where)
    out, names, start = [], set(), 0
    for index, tensor in enumerate(described):
        place = f"{where}[{index}]"
        if not isinstance(tensor, dict):
            raise _bad("a tensor is no JSON object", where=place)
        if where == "inputs":
            _refuse_plain_tensor(tensor, place)
        told = _mapping(tensor, "parameters", place)
        size = _whole(told.get("binary_data_size"), 1, 2**40, f"{place}.parameters.binary_data_size")
        out.append(read(tensor, told, data[start : start + size], size, place))
        names.add(tensor["name"])
        start += size
    if start != len(data):
        raise _bad(f"the tensors have {start} bytes, but {len(data)} follow the header", where=where)
    if len(names) != len(out):
        raise _bad("two tensors have one name", where=where)
    return out


def _read_tensor(tensor: Mapping[str, Any], told: Mapping[str, Any], data: bytes, size: int, where: str) -> Tensor:
    name, shape = _name(tensor, "name", where), _shape(tensor, where)
    form = told.get("share")
    if form not in ("values", "seed"):
        raise _bad('a share is "values" or "seed"', where=f"{where}.parameters.share")
    expected = 8 * math.prod(shape) if form == "values" else SEED_BYTES
    if size != expected:
        raise _bad(f"binary_data_size is {size}, not {expected}", where=where, why=f"so {form} of this shape need it")
    return Tensor(name, shape, Share(form, data))


def _shape(tensor: Mapping[str, Any], where: str) -> tuple[int, ...]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not 1 <= len(shape) <= 16:
        raise WireError("shape", "a shape is a list of 1 to 16 sizes", where=f"{where}.shape")
    try:
        sizes = tuple(_whole(size, 1, 2**31 - 1, f"{where}.shape") for size in shape)
    except WireError as error:
        raise WireError("shape", error.what, where=error.where) from error
    if math.prod(sizes) > 2**37:
        raise WireError("shape", "a tensor has more than 2^37 elements", where=f"{where}.shape")
    return sizes


def _same_rows(shapes: Sequence[tuple[int, ...]]) -> None:
    rows = {shape[0] for shape in shapes}
    if len(rows) > 1:
        raise WireError("shape", "the tensors have different numbers of rows", where=f"{sorted(rows)} rows")


def _mapping(found: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    inner = found.get(name)
    if not isinstance(inner, dict):
        raise _bad(f"{name} is missing or no JSON object", where=where)
    return inner


def _name(found: Mapping[str, Any], name: str, where: str) -> str:
    text = found.get(name)
    if not isinstance(text, str) or not 1 <= len(text) <= 256 or not text.isprintable():
        raise _bad(f"{name} must be a text of 1 to 256 characters that print", where=where)
    return text


def _digest(found: Mapping[str, Any], name: str) -> str:
    text = found.get(name)
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise _bad(f"{name} must be 64 hexadecimal digits in lower case", where=f"parameters.{name}")
    return text


def _whole(value: Any, low: int, high: int, where: str) -> int:
    if type(value) is not int or not low <= value <= high:
        raise _bad(f"a whole number from {low} to {high} must stand here", where=where)
    return value


def read_answer(header: bytes, data: bytes) -> Answer:
    """What a party answered."""
    found = load(header, "the answer's JSON header", 1 << 20)
    told = _mapping(found, "parameters", "the answer")
    outputs = _cut(found.get("outputs"), data, "outputs", _read_output)
    return Answer(
        _name(found, "id", "the answer"),
        _name(found, "model_name", "the answer"),
        _name(found, "model_version", "the answer"),
        _name(told, "run", "parameters"),
        _whole(told.get("row"), 0, 2**31, "parameters.row"),
        _whole(told.get("batch"), 1, 2**31, "parameters.batch"),
        {name: share for name, share, _ in outputs},
        {name: frac_bits for name, _, frac_bits in outputs},
    )


def _read_output(
    tensor: Mapping[str, Any], told: Mapping[str, Any], data: bytes, size: int, where: str
) -> tuple[str, np.ndarray, int]:
    name, shape = _name(tensor, "name", where), _shape(tensor, where)
    if tensor.get("datatype") != "INT64" or size != 8 * math.prod(shape) or len(data) != size:
        raise _bad("an output is no INT64 tensor of its shape", where=where)
    frac_bits = _whole(told.get("frac_bits"), 0, 62, f"{where}.parameters.frac_bits")
    return name, np.frombuffer(data, dtype="<i8").reshape(shape), frac_bits


def read_problem(party: str, status: int, body: bytes) -> Refused:
    """The refusal that a party answered with; of an answer that is no problem of ours, only its status."""
    try:
        found = load(body, "the problem", 1 << 20)
    except WireError:
        found = {}
    text = {name: found[name] for name in ("where", "why", "fix") if isinstance(found.get(name), str)}
    code, what = found.get("code"), found.get("what")
    retry, clock = found.get("retry_after"), found.get("server_time")
    return Refused(
        party,
        code if isinstance(code, str) else "unknown",
        status,
        what if isinstance(what, str) else f"HTTP status {status}",
        retry_after=float(retry) if isinstance(retry, int | float) and 0 <= retry < math.inf else None,
        server_time=clock if type(clock) is int else None,
        **text,
    )
