"""JSON from outside: read whole and typed, or refused with one error, whatever the bytes are.

A text that a peer, a dealer or a file gives is JSON as RFC 8259 has it, UTF-8, of bounded size and depth, without NaN,
Infinity, numbers beyond 64 bits, names that appear twice, or halves of surrogate pairs. Anything else is a DecodeError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any, NoReturn

from protocols.errors import DecodeError, explain

MAX_BYTES = 1 << 16
MAX_DEPTH = 16
_INT_DIGITS = 20


def strict_json(text: str | bytes, what: str, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> Any:
    """The value in a JSON text. Raises DecodeError, which names `what` was read and quotes nothing of it.

    max_bytes: of the text in UTF-8; max_depth: how deep lists and objects may lie in each other, 0 for a mere number.
    """
    try:
        raw = text.encode() if isinstance(text, str) else bytes(text)
        if len(raw) > max_bytes:
            _refuse(what, f"it has {len(raw)} bytes, at most {max_bytes} are read")
        value = json.loads(
            raw.decode(),
            parse_constant=lambda name: _refuse(what, f"it holds {name}, which is no number of JSON"),
            parse_float=lambda digits: _float(digits, what),
            parse_int=lambda digits: _int(digits, what),
            object_pairs_hook=lambda pairs: _object(pairs, what),
        )
    except UnicodeError:
        _refuse(what, "it is not UTF-8")
    except json.JSONDecodeError as error:
        _refuse(what, f"it is not JSON: {error.msg} at character {error.pos}")
    except RecursionError:
        _refuse(what, f"it is nested more than {max_depth} deep")
    _check_nesting(value, what, max_depth)
    return value


def strict_fields(
    text: str | bytes, what: str, kinds: Mapping[str, type | tuple[type, ...]], max_bytes: int = MAX_BYTES
) -> dict[str, Any]:
    """A JSON object of exactly these fields, each of its type (a bool is no int). Raises DecodeError."""
    return typed(strict_json(text, what, max_bytes), what, kinds)


def typed(value: Any, what: str, kinds: Mapping[str, type | tuple[type, ...]]) -> dict[str, Any]:
    """The same for a value that is read already."""
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        _refuse(what, f"it is no object of the fields {', '.join(kinds)}")
    for name, kind in kinds.items():
        allowed = kind if isinstance(kind, tuple) else (kind,)
        if type(value[name]) not in allowed:
            _refuse(what, f"its field {name!r} is no {' or '.join(k.__name__ for k in allowed)}")
    return value


def _object(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        _refuse(what, "a name appears twice in an object")
    return fields


def _float(digits: str, what: str) -> float:
    value = float(digits)
    return value if isfinite(value) else _refuse(what, "a number is too large")


def _int(digits: str, what: str) -> int:
    if len(digits.lstrip("-")) > _INT_DIGITS or not -(1 << 63) <= (value := int(digits)) < 1 << 64:
        _refuse(what, "a whole number has more than 64 bits")
    return value


def _check_nesting(value: Any, what: str, max_depth: int) -> None:
    """How deep a value is nested, and that all its texts can be written; without recursion."""
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for part in level:
            if isinstance(part, str) and any("\ud800" <= letter <= "\udfff" for letter in part):
                _refuse(what, "a text holds half of a surrogate pair")
            if isinstance(part, (list, dict)):
                below += [*part, *part.values()] if isinstance(part, dict) else part
                if depth == max_depth:
                    _refuse(what, f"it is nested more than {max_depth} deep")
        level, depth = below, depth + 1


def _refuse(what: str, why: str) -> NoReturn:
    fix = "use the same version everywhere; if it did, do not trust where this came from"
    raise DecodeError(explain(f"{what} cannot be read", why=why, fix=fix)) from None
