"""What stands in a party's file or frame, block by block, before anybody says what it means.

Text stays text, and numbers of typed files keep their type. Rows that are blank throughout are no rows; all others have
a place: a line of a text table, a row of a sheet, or the count of a row, all from 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from protocols.errors import InputError, explain
from securemodel.files.reader import counted

if TYPE_CHECKING:
    import pyarrow

ROWS = 1 << 16  # of a block of arrays
LINES = 1 << 11  # of a block of lists, which Python's collector of garbage looks through again and again


@dataclass(frozen=True)
class Bad:
    """A cell that has no value that could be used, and why."""

    kind: str


@dataclass(frozen=True)
class Form:
    """How a source is written, as its owner says; names and meaning of the settings are those of pandas."""

    sep: str | None = None
    encoding: str = "utf-8"
    decimal: str = "."
    date_format: str | None = None
    na_values: tuple[str, ...] = ()
    sheet_name: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Block:
    """Rows that follow each other: the place of each, and by column cells.

    These are a list of texts; or one of numbers, dates, texts, None and Bad; or an array of numbers of Arrow.
    """

    places: Sequence[int]
    columns: Mapping[str, list[Any] | pyarrow.Array]


@dataclass(frozen=True, repr=False)
class Opened:
    """A source whose names were read. `blocks(columns)` reads these columns, `where` and `unit` are for errors.

    `blank` collects the places of blank rows that other rows follow, `notes` what the owner should know. `index`: what to
    do about columns that are no columns there.
    """

    where: str
    unit: str
    names: tuple[str, ...]
    blocks: Callable[[Sequence[str]], Iterator[Block]]
    seen: str = ""
    blank: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    index: str = ""


def renamed(names: Sequence[str], form: Form, where: str) -> tuple[str, ...]:
    """The names of columns as the schema has them. Raises InputError where one stands twice, or is not there to rename."""
    if unknown := [name for name in form.rename if name not in names]:
        raise InputError(explain(f"rename names columns that are not there: {', '.join(map(repr, unknown))}", where=where,
                                 fix="rename={name in the file: name in the schema}"))  # fmt: skip
    made = [form.rename.get(name, name) for name in names]
    if twice := sorted({name for name in made if name and made.count(name) > 1}):
        raise InputError(explain(f"a column stands there twice: {', '.join(map(repr, twice))}", where=where,
                                 fix="give every column its own name"))  # fmt: skip
    return tuple(made)


def missing_package(package: str, what: str) -> InputError:
    """The error where a package of the extra is not installed."""
    return InputError(explain(f"{what} needs the package {package}", fix='pip install "securemodel[data]"'))


def whole_digits(value: float) -> str | None:
    """A float that is a whole number as digits; None if it is none, or so large that another may have been meant."""
    return str(int(value)) if math.isfinite(value) and value == int(value) and abs(value) < 2**53 else None


def block_of(places: list[int], rows: list[list[Any]], columns: Sequence[str], at: Sequence[int]) -> Block:
    """Rows of cells as a block of the columns at these positions."""
    return Block(places, {column: [row[index] for row in rows] for column, index in zip(columns, at, strict=True)})


def absent(names: Sequence[str], wanted: Sequence[str], opened: Opened) -> InputError | None:
    """The error for columns that are not there; None if all are."""
    lacking = [name for name in wanted if name not in names]
    if not lacking:
        return None
    shown = ", ".join(map(repr, names[:20])) + (", ..." if len(names) > 20 else "")
    what = f"there is no column {', '.join(map(repr, lacking))}"
    fix = "correct the names in the file or in the schema, or say rename={name in the file: name in the schema}"
    why = [f"{counted(len(names), 'column')}: {shown}"] if any(names) else ["the first line is empty"]
    if len(names) <= 1 and opened.seen:
        why.append(opened.seen)
    if opened.index:
        why.append(opened.index)
    return InputError(explain(what, where=opened.where, why="\n".join(why), fix=fix))
