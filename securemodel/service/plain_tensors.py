"""Tensors of the Open Inference Protocol v2 in the clear, as existing clients write and read them: JSON and binary."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from securemodel.edge.errors import WireError
from securemodel.edge.wire import LENGTH_HEADER

_BINARY: Mapping[str, str] = {
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "BF16": "<u2", "BOOL": "?",
    "INT8": "<i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
}  # fmt: skip
"""How elements of each datatype stand in bytes."""
_MAX_ELEMENTS = 1 << 27


@dataclass(frozen=True)
class Asked:
    """What a client of an ordinary service asks: its inputs, and how it wants the outputs (True: binary)."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, bool] | None
    """None: all of them."""
    binary: bool
    """Whether outputs that are not named are binary."""
    id: str | None
    timeout_s: float | None


def bad(what: str, *, where: str = "", why: str = "", fix: str = "") -> WireError:
    return WireError("bad_header", what, where=where, why=why, fix=fix)


def _of_length(what: str, length: int, body: bytes) -> WireError:
    """A mistake that a length of another request makes."""
    why = f"{LENGTH_HEADER} says {length} bytes of JSON, in a body of {len(body)}"
    return bad(
        what, where=LENGTH_HEADER, why=why, fix="send the length of this request's JSON, or none where all is JSON"
    )


def read(body: bytes, header_length: int | None) -> Asked:
    """What a body asks; without a length of its JSON it is all JSON. Members that are not known are left alone."""
    if header_length is not None and header_length > len(body):
        raise _of_length("the JSON header is longer than the body", header_length, body)
    header, data = body[:header_length], b"" if header_length is None else body[header_length:]
    try:
        found = json.loads(header)
    except (ValueError, RecursionError) as error:
        at = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        what = f"the JSON cannot be read{at}"
        raise (bad(what) if header_length is None else _of_length(what, header_length, body)) from error
    inputs = found.get("inputs") if isinstance(found, dict) else None
    if not isinstance(inputs, list) or not inputs:
        raise bad("there are no inputs", where="inputs")
    told = _parameters(found)
    id, timeout = found.get("id"), told.get("timeout")  # tritonclient's, in microseconds
    return Asked(
        _inputs(inputs, data),
        _outputs(found.get("outputs"), bool(told.get("binary_data_output"))),
        bool(told.get("binary_data_output")),
        id if isinstance(id, str) and id else None,
        timeout / 1e6 if type(timeout) is int and timeout > 0 else None,
    )


def _parameters(found: Mapping[str, Any]) -> Mapping[str, Any]:
    told = found.get("parameters") or {}
    if not isinstance(told, dict):
        raise bad("parameters are no JSON object", where="parameters")
    if any(name.startswith("shared_memory") for name in told):
        raise bad("shared memory is not supported", where="parameters", fix="send the tensor in the request")
    return told


def _inputs(described: Sequence[Any], data: bytes) -> dict[str, np.ndarray]:
    inputs, start = {}, 0
    for index, tensor in enumerate(described):
        where = f"inputs[{index}]"
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise bad("an input has no name", where=where)
        size = _parameters(tensor).get("binary_data_size")
        shape, datatype = _shape(tensor.get("shape"), where), tensor.get("datatype")
        if not isinstance(datatype, str) or datatype not in _BINARY:
            kinds = ", ".join(_BINARY)
            raise WireError("shape", "this datatype cannot be shared", where=f"{where}.datatype", fix=f"send {kinds}")
        if size is None:
            inputs[tensor["name"]] = _from_json(tensor.get("data"), datatype, shape, where)
            continue
        if type(size) is not int or not 0 <= size <= len(data) - start:
            raise bad("binary_data_size is not the size of what follows", where=where)
        inputs[tensor["name"]] = _from_bytes(data[start : start + size], datatype, shape, where)
        start += size
    if start != len(data):
        raise bad(f"{len(data) - start} bytes belong to no input", where="the end of the body")
    return inputs


def _shape(shape: Any, where: str) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise WireError("shape", "a shape is a list of whole numbers", where=f"{where}.shape")
    if len(shape) > 16 or math.prod(shape) > _MAX_ELEMENTS:
        raise WireError("too_large", f"an input has more than {_MAX_ELEMENTS} elements", where=f"{where}.shape")
    return tuple(shape)


def _from_bytes(data: bytes, datatype: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    kind = np.dtype(_BINARY[datatype])
    if len(data) != kind.itemsize * math.prod(shape):
        what = f"{len(data)} bytes are not {math.prod(shape)} elements of {datatype}"
        raise WireError("shape", what, where=where)
    values = np.frombuffer(data, kind)
    if datatype == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.reshape(shape)


def _from_json(data: Any, datatype: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Numbers of JSON, nested or flat, rounded to their datatype; NaN and Infinity, which JSON has not, stay so."""
    try:
        values = np.array(data if isinstance(data, list) else None)
    except ValueError:
        values = np.array(None)
    whole = datatype not in ("FP16", "FP32", "FP64", "BF16")
    if values.dtype.kind not in ("biu" if whole else "biuf") and values.size:
        kinds = "whole numbers" if whole else "numbers"
        raise WireError("shape", f"data is no list of {kinds} of {datatype}", where=f"{where}.data")
    if values.size != math.prod(shape):
        what = f"{values.size} elements do not have the shape {list(shape)}"
        raise WireError("shape", what, where=where)
    with np.errstate(over="ignore"):
        return values.reshape(shape).astype(np.float32 if datatype == "BF16" else _BINARY[datatype])


def _outputs(described: Any, binary: bool) -> dict[str, bool] | None:
    if described is None or described == []:
        return None
    if not isinstance(described, list):
        raise bad("outputs are no list", where="outputs")
    outputs = {}
    for index, output in enumerate(described):
        where = f"outputs[{index}]"
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise bad("an output has no name", where=where)
        told = _parameters(output)
        if told.get("classification"):
            fix = "ask for the output itself, and take the largest entries of it"
            raise bad("the classification extension is not supported", where=where, fix=fix)
        outputs[output["name"]] = bool(told.get("binary_data", binary))
    return outputs


def output(name: str, values: np.ndarray, binary: bool) -> tuple[dict[str, Any], bytes]:
    """An output as it is described in the JSON, and its bytes where it is binary. Real numbers are FP32."""
    datatype = "INT64" if values.dtype.kind == "i" else "FP32"
    values = values.astype(_BINARY[datatype])
    described = {"name": name, "datatype": datatype, "shape": list(values.shape)}
    if binary:
        data = values.tobytes()
        return {**described, "parameters": {"binary_data_size": len(data)}}, data
    return {**described, "data": values.reshape(-1).tolist()}, b""
