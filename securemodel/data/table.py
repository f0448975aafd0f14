"""A party's own table: its file read by the schema, whole, or all that is wrong with it.

Rows are told by their ids. What is read stays with its owner; nothing here is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from protocols.errors import InputError, explain
from protocols.names import NAME_RULE, is_name
from securemodel.data import values
from securemodel.data.cells import ROWS, Bad, Block, Form, Opened, absent
from securemodel.data.column import ID_MISSING, Column
from securemodel.data.described import SUFFIX, form_of, read_description
from securemodel.data.ids import SCIENTIFIC, KeyReader
from securemodel.data.problems import Problems, together
from securemodel.data.repeats import merged
from securemodel.data.schema import Schema
from securemodel.data.sources import open_source
from securemodel.files.reader import counted

NO_ID = "rows without an id"
NO_ROWS = "no rows"
UNREADABLE = "a place from which on it cannot be read"
BLANK = "blank rows between others"
_FIXES = {
    values.NO_NUMBER: "cells that mean missing can be named: na_values=[...]",
    values.NO_DECIMAL_POINT: 'say decimal="," if that is how the file is written; there are no thousands separators',
    values.NO_DATE: "dates are 2024-01-31; others can be described: date_format=...",
    values.NOT_THERE: "fill them in, or allow missing = true in the schema",
    values.NO_CATEGORY: "case and blanks count; other = true makes a class for the rest",
    values.OUT_OF_BOUNDS: 'correct them, widen the bounds, or say outside = "clip" in the schema',
    SCIENTIFIC: "write ids as text, with all their digits",
    values.ROUNDED: "write them as text, with all their digits",
    values.DATE_ID: 'Excel may have made dates of ids: write them as text; of a date of birth say normalize = "date"',
    NO_ID: 'fill in the ids, or leave such rows out: missing = "drop"',
    BLANK: "without keys rows belong together by their order: remove the blank rows",
}


@dataclass(frozen=True, repr=False)
class Source:
    """Where a party's table is, and how it is written; nothing was read yet, and only the party itself ever reads it."""

    party: str
    source: Any
    form: Form = field(default_factory=Form)

    def itself(self) -> Source:
        """The file itself, where the source is a file that describes one. Raises InputError, ConfigError, FileError."""
        if not isinstance(self.source, (str, Path)) or Path(self.source).suffix.lower() != SUFFIX:
            return self
        if self.form != Form():
            what, fix = (
                "this file says how a table is written, and so does table()",
                "leave out the settings of table()",
            )
            raise InputError(explain(what, where=str(self.source), fix=fix))
        path, form = read_description(Path(self.source))
        return replace(self, source=path, form=form)

    def __repr__(self) -> str:
        what = repr(str(self.source)) if isinstance(self.source, (str, Path)) else f"a {type(self.source).__name__}"
        return f"table({self.party!r}, {what})"


@dataclass(frozen=True, repr=False)
class Table:
    """What a party's file holds, in the order of the file; for the owner's process alone.

    ids: for each row the id in canonical bytes, no two alike; None where the schema has no keys.
    columns: for each of the party's columns an array [rows]: float64 of numbers; int64 of whole numbers, of the codes
        of categories, of 0 and 1, of days since 1970-01-01. Missing values are 0.
    missing: for each column that may have missing values whether each is, [rows] of bool.
    places: for each row where it stands in the file, from 1; of merged rows the first.
    digest: SHA-256 of all this in hexadecimal. It may tell small tables, so it is not shown to others as it is.
    notes: what the owner should know about how the file was read.
    """

    party: str
    where: str
    rows: int
    ids: tuple[bytes, ...] | None
    columns: Mapping[str, np.ndarray]
    missing: Mapping[str, np.ndarray]
    places: np.ndarray
    digest: str
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Table({self.party!r}, {self.where!r}, {counted(self.rows, 'row')}, columns {', '.join(map(repr, self.columns))})"


def table(
    party: str,
    source: Any,
    *,
    sep: str | None = None,
    encoding: str = "utf-8",
    decimal: str = ".",
    date_format: str | None = None,
    na_values: Sequence[str] = (),
    sheet_name: str | None = None,
    rename: Mapping[str, str] | None = None,
) -> Source:
    """Says where a party's rows are: a .csv (also .gz), .parquet or .xlsx, or a frame of pandas, polars or Arrow.

    Nothing is read yet, so that all parties can write the same line. The settings are those of pandas: `sep` between
    the cells of a text file, its `encoding`, the `decimal` point, how dates are written where they are not 2024-01-31,
    `na_values` for texts that mean missing (beside empty cells), the sheet, and `rename` from names in the file to
    names in the schema. A .toml says these settings and the `file`, for commands, which take none. Raises InputError.
    """
    if not is_name(party):
        raise InputError(explain(f"table() is given {party!r} as a party", fix=NAME_RULE))
    if source is None:
        raise InputError(explain("a table needs a source", where=f"table({party!r})", fix="give a path or a frame"))
    settings = {"sep": sep, "encoding": encoding, "decimal": decimal, "date_format": date_format,
                "na_values": na_values, "sheet_name": sheet_name, "rename": rename}  # fmt: skip
    return Source(party, source, form_of(f"table({party!r})", settings))


def _open(source: Source, schema: Schema) -> Opened:
    """Opens a source that has all columns that the schema asks of it. Raises InputError, FileError."""
    if not schema.of(source.party):
        raise InputError(explain(f"the schema has no column of {source.party!r}", where=repr(source),
                                 fix=f"name an owner of columns: {', '.join(schema.parties)}"))  # fmt: skip
    opened = open_source(source.source, source.form)
    if error := absent(opened.names, (*schema.keys, *(column.name for column in schema.of(source.party))), opened):
        raise error
    return opened


def read(source: Source, schema: Schema, *, missing: str | None = None, duplicates: str | None = None) -> Table:
    """Reads a party's table whole.

    missing: "error" or "drop" in place of what the schema says of rows without an id.
    duplicates: "keep" leaves several rows of one id as they are, for who counts them; None: as the schema says.
    Raises TableErrors (an InputError) with all that is wrong; InputError or FileError where the file cannot be opened.
    """
    if missing not in (None, *ID_MISSING) or duplicates not in (None, "keep"):
        fix = f"missing is one of {', '.join(ID_MISSING)}; duplicates is 'keep' or not said"
        raise InputError(explain(f"read(missing={missing!r}, duplicates={duplicates!r})", fix=fix))
    source = source.itself()
    made = _Reading(source, schema, _open(source, schema), missing or schema.missing)
    made.blocks()
    return made.table(keep=duplicates == "keep")


def read_all(sources: Sequence[Source], schema: Schema) -> dict[str, Table]:
    """Reads the tables of several parties in one process, by party. Raises what `read` does, of all tables at once."""
    made, wrong = {}, []
    for source in sources:
        try:
            made[source.party] = read(source, schema)
        except InputError as error:
            wrong.append(error)
    if wrong:
        raise together(wrong)
    return made


class _Reading:
    """One table under way: what was read of it, and what is wrong with it."""

    def __init__(self, source: Source, schema: Schema, opened: Opened, missing: str) -> None:
        self._source, self._schema, self._opened, self._drop = source, schema, opened, missing == "drop"
        self._columns = schema.of(source.party)
        self._wanted = tuple(dict.fromkeys((*schema.keys, *(column.name for column in self._columns))))
        self._readers = {column.name: values.Reader(column, source.form) for column in self._columns}
        self._keys = {key: KeyReader(schema.normalize[key], source.form) for key in schema.keys}
        self._values: dict[str, list[np.ndarray]] = {name: [] for name in self._readers}
        self._missing: dict[str, list[np.ndarray]] = {name: [] for name in self._readers}
        self._faulty: dict[str, list[np.ndarray]] = {name: [] for name in self._readers}
        self._places: list[np.ndarray] = []
        self._ids: list[bytes] = []
        self._problems = Problems()
        self.dropped = 0

    def blocks(self) -> None:
        """Reads all blocks of the source; what makes the rest of it unreadable is a problem beside the others."""
        try:
            for block in self._opened.blocks(self._wanted):
                self._read(block)
        except InputError as error:
            if not self._problems:
                raise
            self._problems.add("", UNREADABLE, (), str(error))
            self._problems.raise_any(self._source.party, self._opened.where, self._opened.unit, self._opened.seen)

    def _read(self, block: Block) -> None:
        places = np.asarray(block.places, dtype=np.int64)
        kept = self._read_ids(block, places)
        self._places.append(places if kept is None else places[kept])
        for name, reader in self._readers.items():
            made, missing, faults = reader.read(block.columns[name])
            faulty = np.zeros(len(places), bool)
            for row, kind in faults:
                faulty[row] = True
                if kept is None or kept[row]:
                    self._add(name, kind, (int(places[row]),))
            parts = (made, missing, faulty) if kept is None else (made[kept], missing[kept], faulty[kept])
            for part, into in zip(parts, (self._values, self._missing, self._faulty), strict=True):
                into[name].append(part)

    def _read_ids(self, block: Block, places: np.ndarray) -> np.ndarray | None:
        """Adds the ids of a block; which of its rows stay, None if all do."""
        keys = self._schema.keys
        if not keys:
            return None
        columns = [reader.read(block.columns[key]) for key, reader in self._keys.items()]
        if all(type(part) is bytes for column in columns for part in column):
            self._ids.extend(map(b"".join, zip(*columns, strict=True)))
            return None
        kept = np.ones(len(places), bool)
        for row, parts in enumerate(zip(*columns, strict=True)):
            for key, part in zip(keys, parts, strict=True):
                if isinstance(part, Bad):
                    self._add(key, part.kind, (int(places[row]),))
            if any(isinstance(part, Bad) for part in parts):
                self._ids.append(b"")
            elif None in parts:
                kept[row] = False
            else:
                self._ids.append(b"".join(parts))
        if not kept.all() and not self._drop:
            self._add("", NO_ID, places[~kept].tolist())
        self.dropped += int((~kept).sum())
        return kept

    def _add(self, column: str, kind: str, places: Sequence[int]) -> None:
        self._problems.add(column, kind, places, _FIXES.get(kind, ""))

    # ---- whole columns
    def table(self, keep: bool) -> Table:
        """The table of all that was read. Raises TableErrors."""
        opened, schema = self._opened, self._schema
        if opened.blank and not schema.keys:
            self._add("", BLANK, opened.blank)
        places = _whole(self._places, np.int64)
        columns = {c.name: _whole(self._values.pop(c.name), _kind(c)) for c in self._columns}
        missing = {name: _whole(self._missing.pop(name), np.bool_) for name in columns}
        faulty = {name: _whole(self._faulty.pop(name), np.bool_) for name in columns}
        ids = tuple(self._ids) if schema.keys else None
        notes = [*opened.notes]
        if ids is not None and not keep:
            result = merged(ids, self._columns, columns, missing, faulty, places, schema.duplicates, self._problems)
            if result is not None:
                ids, columns, missing, faulty, places, said = result
                notes.append(said)
        for column in self._columns:
            self._check(column, columns, missing, faulty[column.name], places, notes)
        if not len(places):
            self._problems.add("", NO_ROWS, ())
        self._problems.raise_any(self._source.party, opened.where, opened.unit, opened.seen)
        notes += self._notes()
        missing = {column.name: missing[column.name] for column in self._columns if column.missing}
        for array in (*columns.values(), *missing.values(), places):
            array.flags.writeable = False
        return Table(self._source.party, opened.where, len(places), ids, columns, missing, places,
                     _digest(ids, columns, missing, len(places)), tuple(notes))  # fmt: skip

    def _check(
        self,
        column: Column,
        columns: dict[str, np.ndarray],
        missing: Mapping[str, np.ndarray],
        faulty: np.ndarray,
        places: np.ndarray,
        notes: list[str],
    ) -> None:
        """Missing values and bounds of a column, as they are after rows were merged."""
        name, made, lacking = column.name, columns[column.name], missing[column.name]
        made[lacking] = 0
        if not column.missing and (at := np.flatnonzero(lacking & ~faulty)).size:
            self._add(name, values.NOT_THERE, places[at].tolist())
        if column.kind in ("boolean", "category"):
            return
        beyond = ~lacking & ((made < column.low) | (made > column.high))
        if not beyond.any():
            return
        if column.outside == "error":
            self._add(name, values.OUT_OF_BOUNDS, places[beyond].tolist())
            return
        columns[name] = np.where(lacking, made, np.clip(made, column.low, column.high)).astype(made.dtype)
        notes.append(f"column {name!r}: {counted(int(beyond.sum()), 'value')} beyond the bounds, set to them")

    def _notes(self) -> list[str]:
        notes = []
        if self.dropped:
            notes.append(f"{counted(self.dropped, 'row')} without an id left out")
        for name, reader in self._readers.items():
            if reader.others:
                notes.append(f"column {name!r}: {counted(reader.others, 'value')} in the class of others")
        if self._schema.keys and (ended := sum(part.endswith(b".0") for part in self._ids)):
            notes.append(
                f"{counted(ended, 'id')} with '.0' at the end: if they were whole numbers once, write them as text"
            )
        return notes


def _kind(column: Column) -> Any:
    return np.float64 if column.kind == "number" else np.int64


def _whole(parts: list[np.ndarray], kind: Any) -> np.ndarray:
    made = np.concatenate(parts) if parts else np.zeros(0, kind)
    return made.astype(kind, copy=False)


def _digest(
    ids: Sequence[bytes] | None, columns: Mapping[str, np.ndarray], missing: Mapping[str, np.ndarray], rows: int
) -> str:
    digest = hashlib.sha256(f"securemodel table {rows} {ids is not None}\n".encode())
    for start in range(0, len(ids or ()), ROWS):
        some = (ids or ())[start : start + ROWS]
        digest.update(b"".join(len(each).to_bytes(4, "big") + each for each in some))
    for what, arrays in (("values", columns), ("missing", missing)):
        for name, array in arrays.items():
            digest.update(f"{what} {len(name.encode())} {name} {array.dtype}\n".encode())
            digest.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()
