"""Opens a joint table: every party reads its own file, whole, before it reaches anybody."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from protocols.errors import BadFrame, ConfigError, InputError, Mismatch, explain
from protocols.identity import PartiesConfig
from securemodel.data.align import Aligned
from securemodel.data.aligned_files import load
from securemodel.data.joint import Joint
from securemodel.data.place import Nowhere, Place, here, there
from securemodel.data.schema import Schema
from securemodel.data.table import Source, Table, read, read_all
from securemodel.engines.labels import TABLE, TABLE_TEXT
from securemodel.sessions.remote import place
from securemodel.training.datasets import Positions

_SAID = struct.Struct(">32s16sQQ")
"""What parties say first: digest of the schema, id of the alignment, bytes of the schema's text, rows."""
_ID_BYTES, _MOST_TEXT, _MOST_ROWS = 16, 1 << 24, 1 << 30


def local(
    schema: Schema, tables: Sequence[Source], *, aligned: str | Path | None = None, ledger: str | Path | None = None
) -> Joint:
    """A joint table with all parties in this process: for notebooks and tests. `aligned`: as of `connect`.

    Raises InputError, FileError, ConfigError.
    """
    parties = _parties(schema, tables)
    if unknown := [name for name in parties if name not in {source.party for source in tables}]:
        fix = f'add data.table("{unknown[0]}", "file.csv")'
        raise InputError(explain(f"no table of {', '.join(unknown)} is given", fix=fix))
    made = read_all(tables, schema)
    return _begun(schema, parties, here(parties, ledger), made, _loaded(aligned, schema, made))


def connect(
    schema: Schema,
    tables: Sequence[Source],
    me: str | None = None,
    config: str | Path | PartiesConfig | None = None,
    *,
    aligned: str | Path | None = None,
    ledger: str | Path | bool = True,
    insecure_plain: bool = False,
    before: Callable[[Joint], None] | None = None,
) -> Joint:
    """A joint table between processes. The same script runs at every party, and each opens its own file only.

    `me` and `config` (a parties file) come from the command line unless given. `aligned`: the folder that `securemodel
    align` wrote, in place of `Joint.align`. The file is read whole before anybody is
    reached, so what is wrong with it is an InputError here and nothing at the others. `before` is then called with the
    table as this party knows it, which takes the others to have as many rows: to see what queries will cost. Raises InputError, FileError,
    ConfigError, LedgerError, PeerAbsent, IdentityError, Mismatch (another schema).
    """
    parties = _parties(schema, tables)
    name, known, own = place(parties, me, config, insecure_plain, "run")
    mine = [source for source in tables if source.party == name]
    if not mine:
        raise InputError(explain(f"no table of {name!r} is given", fix=f'add data.table("{name}", "file.csv")'))
    made = {name: read(mine[0], schema)}
    found = _loaded(aligned, schema, made)
    if before:
        before(_begun(schema, parties, Nowhere(parties, name), made, found))
    link = there(parties, name, known, own, ledger)
    try:
        return _begun(schema, parties, link, made, found)
    except BaseException as error:
        link.fail(error)
        raise


def _parties(schema: Schema, tables: Sequence[Source]) -> tuple[str, ...]:
    named = tuple(source.party for source in tables)
    if twice := [name for name in named if named.count(name) > 1]:
        raise InputError(explain(f"{twice[0]!r} has two tables", fix="give one for each party"))
    parties = schema.parties or named
    if strange := [name for name in named if name not in parties]:
        fix = f"the schema's columns are of {', '.join(parties)}"
        raise InputError(explain(f"{strange[0]!r} has a table and owns no column", fix=fix))
    if len(parties) < 2:
        raise ConfigError(explain("a joint table is of two parties or more", fix="name an owner for each column"))
    return parties


def _loaded(folder: str | Path | None, schema: Schema, tables: Mapping[str, Table]) -> dict[str, Aligned]:
    if folder is None:
        return {}
    if not schema.keys:
        raise InputError(explain("the schema names no keys, so there is no alignment", fix="leave out aligned="))
    return {name: load(folder, name, schema=schema.digest, table=table.digest) for name, table in tables.items()}


def _begun(
    schema: Schema,
    parties: tuple[str, ...],
    place: Place,
    tables: Mapping[str, Table],
    found: Mapping[str, Aligned],
) -> Joint:
    """The joint table: rows as they were aligned earlier, not aligned yet, or belonging together by their place."""
    counts = _compare(schema, parties, place, {name: table.rows for name, table in tables.items()}, found)
    order = {name: np.arange(table.rows) for name, table in tables.items()}
    if schema.split == "rows":
        positions: Positions = tuple(np.arange(counts[name]) for name in parties)
        return Joint(schema, parties, place, tables, counts, order, positions)
    waiting = bool(schema.keys)
    positions = (np.empty(0, np.int64) if waiting else _same_rows(counts),)
    joint = Joint(schema, parties, place, tables, counts, order, positions, waiting=waiting)
    return joint._aligned(found) if found else joint


def _same_rows(counts: Mapping[str, int]) -> np.ndarray:
    if len(set(counts.values())) != 1:
        raise InputError(
            explain("the parties' tables have different numbers of rows",
                    why=", ".join(f"{name} has {count}" for name, count in counts.items()),
                    fix="name the columns of the id as keys in the schema, and align the tables by them")
        )  # fmt: skip
    return np.arange(next(iter(counts.values())))


def _compare(
    schema: Schema, parties: tuple[str, ...], place: Place, rows: Mapping[str, int], found: Mapping[str, Aligned]
) -> dict[str, int]:
    """How many rows each party has. Raises Mismatch where one has another schema, with what differs first, or alignment."""
    text = schema.text.encode()
    alignment = bytes.fromhex(next(iter(found.values())).id) if found else bytes(_ID_BYTES)
    said = lambda count: _SAID.pack(bytes.fromhex(schema.digest), alignment, len(text), count)
    heard = place.swap(TABLE, {name: said(count) for name, count in rows.items()}, dict.fromkeys(parties, _SAID.size))
    ((_, got), *_) = heard.items()
    theirs = {peer: _SAID.unpack(data) for peer, data in got.items()}
    if strange := [peer for peer, (*_, count) in theirs.items() if not 0 < count <= _MOST_ROWS]:
        fix = "do not trust this party, or the version that it runs"
        raise BadFrame(
            strange[0], explain(f"party {strange[0]!r} says how many rows it has, and no table has so many", fix=fix)
        )
    if other := [peer for peer, (digest, *_) in theirs.items() if digest.hex() != schema.digest]:
        sizes = {peer: min(size, _MOST_TEXT) for peer, (_, _, size, _) in theirs.items()}
        ((_, texts), *_) = place.swap(TABLE_TEXT, dict.fromkeys(rows, text), sizes).items()
        where = schema.first_difference(texts[other[0]].decode(errors="replace"))
        raise Mismatch(
            other[0],
            explain(f"party {other[0]!r} has another schema", where=where or "in its form",
                    why="all parties must mean the same columns", fix="give all parties the same file"),
        )  # fmt: skip
    if other := [peer for peer, (_, theirs_, *_) in theirs.items() if theirs_ != alignment]:
        what = f"party {other[0]!r} has another alignment, or none"
        why = "rows that were aligned at different times are in different orders"
        fix = "let all parties run `securemodel align` together, and name the folder that it wrote"
        raise Mismatch(other[0], explain(what, why=why, fix=fix))
    return {**{peer: count for peer, (*_, count) in theirs.items()}, **rows}
