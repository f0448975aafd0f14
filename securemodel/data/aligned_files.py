"""Alignments on disk: one secret file for each party, which says whose rows and of which table.

A file is the SHA-256 of the rest, the length of a JSON text (u32), the text, and arrays of int64, all little-endian. The
arrays are those of `positions`, `order`, `places` and `link NAME` that the party has. It is its owner's alone, as it says
which of the rows others have, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from protocols.errors import DecodeError, InputError, explain
from protocols.files import file_errors, read_secret, write_secret
from protocols.psi.outcome import Outcome
from protocols.psi.terms import Peer, Terms
from protocols.strict import strict_json, typed
from securemodel.data.align import Aligned

_WHAT = "an alignment"
_FORMAT = "securemodel alignment 1"
_DIGEST_BYTES, _LENGTH_BYTES = 32, 4
_KINDS: dict[str, type | tuple[type, ...]] = {
    "format": str, "me": str, "id": str, "terms": dict, "parties": dict, "rows": int, "common": (int, type(None)), "table": str,
    "arrays": dict,
}  # fmt: skip
_TERMS: dict[str, type | tuple[type, ...]] = {
    "learns": str,
    "rules": str,
    "largest": int,
    "unmatched": str,
    "dealer": bool,
}
_PEER: dict[str, type | tuple[type, ...]] = {"rows": int, "commitment": str}
_ARRAYS = ("positions", "order", "places")
_LINK = "link "


def path_of(folder: str | Path, me: str) -> Path:
    """Where a party's alignment is in a folder."""
    return Path(folder) / f"{me}.aligned"


def save(aligned: Aligned, folder: str | Path) -> Path:
    """Writes a party's alignment into a folder, readable by its owner alone; where it is. Raises FileError, ConfigError."""
    outcome = aligned.outcome
    arrays = {name: each for name in _ARRAYS if (each := getattr(outcome, name)) is not None}
    arrays |= {_LINK + peer: each for peer, each in outcome.links.items()}
    about = {
        "format": _FORMAT,
        "me": aligned.me,
        "id": aligned.id,
        "terms": asdict(aligned.terms),
        "parties": {name: asdict(said) for name, said in aligned.parties.items()},
        "rows": outcome.rows,
        "common": outcome.common,
        "table": aligned.table,
        "arrays": {name: len(each) for name, each in arrays.items()},
    }
    text = json.dumps(about).encode()
    parts = [len(text).to_bytes(_LENGTH_BYTES, "little"), text]
    data = b"".join([*parts, *(each.astype("<i8").tobytes() for each in arrays.values())])
    path = path_of(folder, aligned.me)
    with file_errors(path):
        write_secret(path, hashlib.sha256(data).digest() + data, _WHAT)
    return path


def load(folder: str | Path, me: str, *, schema: str | None = None, table: str | None = None) -> Aligned:
    """The alignment of a party in a folder.

    schema, table: the digests of what it has to belong to. Raises InputError where it belongs to another schema or the
    table has changed since; FileError, ConfigError and DecodeError where the file cannot be used.
    """
    path = path_of(folder, me)
    try:
        with file_errors(path, "make it with `securemodel align`"):
            data = read_secret(path, _WHAT)
        aligned = _read(data)
    except DecodeError as error:
        raise DecodeError(f"{error}\n  where: {path}") from None
    if aligned.me != me:
        raise InputError(explain(f"an alignment is that of {aligned.me!r}, not of {me!r}", where=str(path)))
    for what, mine, theirs in (("schema", schema, aligned.terms.rules), ("table", table, aligned.table)):
        if mine is not None and mine != theirs:
            why = f"the {what} is another one than when it was aligned: its digest differs"
            fix = "align again, or give back the file that was aligned"
            raise InputError(explain(f"this alignment is not one of this {what}", where=str(path), why=why, fix=fix))
    return aligned


def _read(data: bytes) -> Aligned:
    """Raises DecodeError."""
    digest, rest = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(rest).digest() != digest:
        raise _damaged("it is cut off or was changed")
    start = _LENGTH_BYTES + int.from_bytes(rest[:_LENGTH_BYTES], "little")
    about = typed(strict_json(rest[_LENGTH_BYTES:start], _WHAT), _WHAT, _KINDS)
    if about["format"] != _FORMAT:
        raise _damaged("it is of another version")
    terms, parties = Terms(**typed(about["terms"], _WHAT, _TERMS)), _parties(about["parties"])
    terms.check(tuple(parties))
    if about["me"] not in parties:
        raise _damaged("its owner is none of its parties")
    arrays = _arrays(about["arrays"], rest[start:])
    own, rows = parties[about["me"]].rows, about["rows"]
    links = {name[len(_LINK) :]: arrays.pop(name) for name in list(arrays) if name.startswith(_LINK)}
    if not set(links) <= set(parties) or not set(arrays) <= set(_ARRAYS):
        raise _damaged("it holds arrays that are none of an alignment")
    outcome = Outcome(rows, about["common"], links=links, **arrays)
    _check(outcome.positions, rows, own)
    _check(outcome.order, own, own)
    _check(outcome.places, own, rows)
    for name, each in links.items():
        _check(each, rows, parties[name].rows, -1)
    return Aligned(about["me"], terms, parties, outcome, about["id"], about["table"])


def _arrays(sizes: Mapping[str, Any], data: bytes) -> dict[str, np.ndarray]:
    if any(type(size) is not int or size < 0 for size in sizes.values()) or 8 * sum(sizes.values()) != len(data):
        raise _damaged("its arrays have other sizes than it says")
    made, start = {}, 0
    for name, size in sizes.items():
        made[name] = np.frombuffer(data, "<i8", size, start).astype(np.int64)
        start += 8 * size
    return made


def _parties(found: Mapping[str, Any]) -> dict[str, Peer]:
    return {name: Peer(**typed(value, _WHAT, _PEER)) for name, value in found.items()}


def _check(found: np.ndarray | None, count: int, below: int, least: int = 0) -> None:
    """That an array has so many different places below a number; -1 may stand in it several times where it is allowed."""
    if found is None:
        return
    if found.shape != (count,):
        raise _damaged("an array has another size")
    there = found[found >= 0]
    if np.any(found < least) or np.any(there >= below) or len(np.unique(there)) < len(there):
        raise _damaged("an array names rows that are not there, or the same twice")


def _damaged(why: str) -> DecodeError:
    return DecodeError(explain("an alignment cannot be read", why=why, fix="make it anew with `securemodel align`"))
