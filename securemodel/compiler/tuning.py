"""Measured ranges as a file: what `securemodel.tune` proposes and `compile(..., tuned=)` takes."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocols.errors import DecodeError, explain
from protocols.files import file_errors, write_atomically
from protocols.shares import RING_BITS
from protocols.strict import strict_json, typed
from securemodel.compiler.approximations import MOST_HALVED
from securemodel.errors import CompileError, InputError

KIND = "securemodel-tuning"
VERSION = 2
MAX_BYTES = 16 << 20
_KINDS: dict[str, type] = {"kind": str, "version": int, "of": str, "margin": float, "guard": bool, "limits": list}
_KINDS |= {"whole_rows": bool, "values": list, "tables": list}
_MOST_BITS = 192
_FIX = "write it with `securemodel tune`, or Tuning.save() of this version"


@dataclass(frozen=True)
class Limit:
    """A comparison of the model, by its number, and what it reads: below 2^bits in units of the ring.

    sign: 1 where that is never below zero, -1 where it always is, and 0 where both was seen or may come. `layer` is for
    people.
    """

    comparison: int
    bits: int
    sign: int
    layer: str


@dataclass(frozen=True)
class Magnitude:
    """A value that is truncated, or (of a number below zero) a result, and how large it may be: below 2^bits, as a real number
    and with what rounding adds. `layer` is for people.
    """

    value: int
    bits: int
    layer: str


@dataclass(frozen=True)
class Halved:
    """A table of the model, by its number, and how often it has half as many pieces. `function` and `layer` are for people."""

    table: int
    times: int
    function: str
    layer: str


@dataclass(frozen=True)
class Tuning:
    """How large the values that a model computes may be, from one owner's data; all parties compile with the same.

    of: the digest of what was measured: model, shapes, parties and settings; "" fits whatever it is given to.
    margin: by which factor values may be larger than was seen, or lie farther apart. guard: whether a run tells all parties
    that a value left its range. whole_rows: whether no mask that is added to scores forbade a whole row of them: its owner
    checks that in each run.
    """

    of: str
    margin: float
    limits: tuple[Limit, ...]
    guard: bool = False
    values: tuple[Magnitude, ...] = ()
    whole_rows: bool = False
    tables: tuple[Halved, ...] = ()

    def check(self, digest: str, comparisons: Collection[int], tables: int) -> None:
        """Raises CompileError unless this was measured for the model of this digest, which has comparisons of these numbers
        and so many tables."""
        if self.of not in ("", digest):
            raise CompileError(
                explain(
                    f"this tuning is of another model or of other settings: of {self.of[:12]}, not {digest[:12]}",
                    where="compile(tuned=...)",
                    why="ranges that were measured elsewhere say nothing about these values",
                    fix="measure again with securemodel.tune() for these shapes, owners and settings",
                )
            )
        if strange := [limit.comparison for limit in self.limits if limit.comparison not in comparisons]:
            raise _changed(f"a limit of {strange[0]}, and that is no comparison of the model")
        if strange := [each.table for each in self.tables if each.table >= tables]:
            raise _changed(f"the table {strange[0]}, and the model has {tables}")

    def check_values(self, values: Collection[int]) -> None:
        """Raises CompileError unless these are the numbers of what the model truncates and returns."""
        if strange := [each.value for each in self.values if each.value not in values]:
            raise _changed(f"a limit of the value {strange[0]}, and the model truncates no such value")

    @property
    def bits(self) -> Mapping[int, int]:
        """What each comparison may read, in bits."""
        return {limit.comparison: limit.bits for limit in self.limits}

    @property
    def signs(self) -> Mapping[int, int]:
        """The comparisons whose outcome is known, and the sign of what they read; none where a guard needs them."""
        return {limit.comparison: limit.sign for limit in self.limits if limit.sign and not self.guard}

    @property
    def magnitudes(self) -> Mapping[int, int]:
        """How large each value may be, by its number; none where a guard would have to look at them."""
        return {} if self.guard else {each.value: each.bits for each in self.values}

    @property
    def halvings(self) -> Mapping[int, int]:
        """How often each table is halved, by its number."""
        return {each.table: each.times for each in self.tables}

    def text(self) -> str:
        """Its JSON, one limit a line."""
        limits = [json.dumps([x.comparison, x.bits, x.sign, x.layer]) for x in self.limits]
        values = [json.dumps([x.value, x.bits, x.layer]) for x in self.values]
        head = {"kind": KIND, "version": VERSION, "of": self.of, "margin": self.margin, "guard": self.guard}
        head["whole_rows"] = self.whole_rows
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}," for name, value in head.items()]
        tables = [json.dumps([x.table, x.times, x.function, x.layer]) for x in self.tables]
        made = {"limits": limits, "values": values, "tables": tables}
        parts = [
            f'  "{name}": [\n' + ",\n".join(f"    {x}" for x in entries) + "\n  ]" for name, entries in made.items()
        ]
        return "\n".join(["{", *lines, ",\n".join(parts), "}", ""])

    def save(self, path: str | Path) -> None:
        """Writes the text; never leaves a half-written file. Raises FileError."""
        with file_errors(Path(path)):
            write_atomically(Path(path), self.text().encode())

    @staticmethod
    def load(path: str | Path) -> Tuning:
        """Reads what `save` wrote, and checks all of it. Raises FileError, InputError."""
        with file_errors(Path(path)), Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        try:
            return _read(typed(_of_this_version(strict_json(data, "a tuning", MAX_BYTES)), "a tuning", _KINDS))
        except (DecodeError, _Wrong) as wrong:
            first, _, more = str(wrong).partition("why:")
            why = (more or first).strip().partition("\n")[0]
            raise InputError(explain("this is no tuning", where=str(path), why=why, fix=_FIX)) from None


def _changed(what: str) -> CompileError:
    why = "it was changed by hand"
    return CompileError(explain(f"this tuning has {what}", where="compile(tuned=...)", why=why, fix=_FIX))


class _Wrong(Exception):
    pass


def _of_this_version(value: Any) -> Any:
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise _Wrong(f"it is no {KIND}")
    if (version := value.get("version")) != VERSION:
        raise _Wrong(f"it is of version {version!r:.20}, and this is version {VERSION}: other things were measured")
    return value


def _read(fields: dict[str, Any]) -> Tuning:
    if not re.fullmatch("[0-9a-f]{64}", fields["of"]):
        raise _Wrong("it does not say what it was measured for")
    if not fields["margin"] >= 1:
        raise _Wrong("its margin is a factor below 1")
    limits = tuple(map(_limit, fields["limits"]))
    if len({limit.comparison for limit in limits}) < len(limits):
        raise _Wrong("a comparison has two limits")
    values = tuple(map(_magnitude, fields["values"]))
    if len({each.value for each in values}) < len(values):
        raise _Wrong("a value has two magnitudes")
    tables = tuple(map(_halved, fields["tables"]))
    if len({each.table for each in tables}) < len(tables):
        raise _Wrong("a table is halved twice")
    whole, guard = fields["whole_rows"], fields["guard"]
    return Tuning(fields["of"], fields["margin"], limits, guard, values, whole, tables)


def _limit(entry: Any) -> Limit:
    if not isinstance(entry, list) or list(map(type, entry)) != [int, int, int, str]:
        raise _Wrong("a limit is a comparison's number, its bits, its sign and its layer")
    number, bits, sign, layer = entry
    if number < 0 or not 1 <= bits < RING_BITS or sign not in (-1, 0, 1):
        raise _Wrong(f"no comparison has the limit {entry[:3]}")
    return Limit(number, bits, sign, layer)


def _halved(entry: Any) -> Halved:
    if not isinstance(entry, list) or list(map(type, entry)) != [int, int, str, str]:
        raise _Wrong("a table has a number, how often it is halved, its function and its layer")
    number, times, function, layer = entry
    if number < 0 or not 1 <= times <= MOST_HALVED:
        raise _Wrong(f"no table is halved like {entry[:2]}")
    return Halved(number, times, function, layer)


def _magnitude(entry: Any) -> Magnitude:
    if not isinstance(entry, list) or list(map(type, entry)) != [int, int, str]:
        raise _Wrong("a magnitude is a value's number, its bits and its layer")
    number, bits, layer = entry
    if not -_MOST_BITS <= bits <= _MOST_BITS:
        raise _Wrong(f"no value has the magnitude {entry[:2]}")
    return Magnitude(number, bits, layer)
