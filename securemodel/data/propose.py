"""A draft of a schema from one's own file: kinds that all cells have, bounds rounded outwards, frequent categories.

It is made of the owner's rows, so the owner looks it through before anybody else sees it.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from protocols.errors import InputError, explain
from securemodel.data.cells import Bad, Form, absent
from securemodel.data.column import MINIMUM, MOST_VALUES, OTHER, day, days
from securemodel.data.sources import open_source
from securemodel.data.table import Source
from securemodel.data.values import day_of, text_of

_MOST_SEEN = 1 << 16  # different texts of a column, above which it is no category
_LONGEST = 100
_LARGEST = sys.float_info.max
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_WHOLE = re.compile(r"[+-]?(?:0|[1-9][0-9]*)(?:\.0+)?")
_NUMBER = re.compile(r"[+-]?(?:0|[1-9][0-9]*|(?=\.))(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
_BOOLEAN = ("0", "1", "true", "false")
_HEAD = """\
# A draft, made of the rows of {party} alone. All parties will see it: look it through first. Bounds are rounded outwards,
# and categories of fewer than {minimum} rows are in the class of others; widen and rename what says too much.
"""


def propose(source: Source, keys: Sequence[str] = (), *, minimum: int = MINIMUM, split: str = "columns") -> str:
    """Drafts the TOML of a schema from a party's own file, with a section for each column that is no key.

    Columns that look like ids or free text are left out, and named in a comment. Categories with fewer than `minimum`
    rows are not named. Raises InputError, FileError where the file cannot be read or nothing is left.
    """
    source = source.itself()
    opened = open_source(source.source, source.form)
    if error := absent(opened.names, keys, opened):
        raise error
    names = [name for name in opened.names if _is_name(name)]
    seen = {name: _Seen(source.form) for name in names}
    for block in opened.blocks(names):
        for name, cells in block.columns.items():
            seen[name].look(cells if isinstance(cells, list) else cells.to_pylist())
    head = [_HEAD.format(party=source.party, minimum=minimum), "[table]"]
    head += [f"keys = {json.dumps(list(keys), ensure_ascii=False)}", f'split = "{split}"', f"minimum = {minimum}", ""]
    for key in keys:
        head += [f"[keys.{_key(key)}]", f'normalize = "{"date" if seen[key].is_date else "text"}"', ""]
    sections, left = [], []
    for name in names:
        if name in keys:
            continue
        lines = seen[name].lines(minimum)
        if lines:
            owner = [f'owner = "{source.party}"'] if split == "columns" else []
            sections += [f"[columns.{_key(name)}]", *owner, *lines, ""]
        else:
            left.append(f"# left out, as it looks like ids or free text, or has no values: {json.dumps(name)}")
    if not sections:
        raise InputError(explain("no column of this file is a number, a date, or a category", where=opened.where,
                                 fix=f"a category needs {minimum} rows of a kind; say na_values=, decimal= or date_format="))  # fmt: skip
    return "\n".join([*head, *sections, *left]).rstrip() + "\n"


@dataclass
class _Seen:
    """What is known of a column after some of its cells."""

    form: Form
    rows: int = 0
    missing: bool = False
    low: float = math.inf
    high: float = -math.inf
    kinds: set[str] = field(default_factory=lambda: {"boolean", "integer", "number", "date", "category"})
    texts: Counter[str] = field(default_factory=Counter)

    @property
    def is_date(self) -> bool:
        return bool(self.rows) and "date" in self.kinds

    def look(self, cells: Sequence[Any]) -> None:
        """Takes cells into account."""
        for cell in cells:
            if _is_missing(cell, self.form):
                self.missing = True
                continue
            self.rows += 1
            self._one(cell.strip() if type(cell) is str else cell)
        if len(self.texts) > _MOST_SEEN:
            self.kinds.discard("category")
            self.texts.clear()

    def _one(self, cell: Any) -> None:
        found = dict(_readings(cell, self.form))
        self.kinds &= found.keys()
        value = found.get("number", found.get("date"))
        if value is not None and self.kinds & {"number", "date"}:
            self.low, self.high = min(self.low, value), max(self.high, value)
        if "category" in self.kinds:
            self.texts[found["category"]] += 1

    def lines(self, minimum: int) -> list[str]:
        """The settings of the column; empty where it has no kind."""
        kind = next((kind for kind in ("boolean", "integer", "number", "date", "category") if kind in self.kinds), "")
        if not self.rows or not kind:
            return []
        made = [f'kind = "{kind}"']
        if kind == "category":
            values = self._values(minimum)
            if not values:
                return []
            rest = self.texts.keys() - set(values)
            made += [f"values = {json.dumps(values, ensure_ascii=False)}", *(["other = true"] if rest else [])]
        elif kind == "date":
            first, last = _years(day(int(self.low)), day(int(self.high)))
            made += [f"low = {first.isoformat()}", f"high = {last.isoformat()}"]
        elif kind != "boolean":
            bounds = _outwards(self.low, self.high, 1.0 if kind == "integer" else 1e-9)
            least, most = (-(2**63), 2**63 - 1) if kind == "integer" else (-_LARGEST, _LARGEST)
            inside = [min(max(bound, least), most) for bound in bounds]
            low, high = (str(int(bound)) if kind == "integer" else repr(float(bound)) for bound in inside)
            made += [f"low = {low}", f"high = {high}"]
        return [*made, "missing = true"] if self.missing else made

    def _values(self, minimum: int) -> list[str]:
        """The frequent categories, in the order of the alphabet; empty where they are less than half of the rows."""
        frequent = [(text, count) for text, count in self.texts.most_common(MOST_VALUES)
                    if count >= minimum and text.isprintable() and len(text) <= _LONGEST and text != OTHER]  # fmt: skip
        covered = sum(count for _, count in frequent)
        return sorted(text for text, _ in frequent) if 2 * covered >= self.rows else []


def _readings(cell: Any, form: Form) -> Iterator[tuple[str, Any]]:
    """The kinds that a cell can be of, each with its value."""
    if isinstance(cell, bool):
        yield "boolean", int(cell)
        return
    if isinstance(cell, str):
        if cell.lower() in _BOOLEAN:
            yield "boolean", None
        plain = cell if form.decimal == "." else "" if "." in cell else cell.replace(form.decimal, ".")
        if _WHOLE.fullmatch(plain):
            yield "integer", None
        if _NUMBER.fullmatch(plain) and plain not in ("", ".") and math.isfinite(value := float(plain)):
            yield "number", value
    elif not isinstance(cell, (date, Bad)):
        yield from _numbers(cell)
    found = day_of(cell, form)
    if isinstance(found, date):
        yield "date", days(found)
    text = text_of(cell)
    if isinstance(text, str):
        yield "category", text


def _numbers(cell: Any) -> Iterator[tuple[str, Any]]:
    value = float(cell)
    if value in (0, 1):
        yield "boolean", None
    if math.isfinite(value) and value == int(value):
        yield "integer", None
    if math.isfinite(value):
        yield "number", value


def _is_missing(cell: Any, form: Form) -> bool:
    if isinstance(cell, str):
        return not cell.strip() or cell in form.na_values or cell.strip().lower() == "nan"
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _outwards(low: float, high: float, least: float) -> tuple[float, float]:
    """Bounds around both with one or two digits, by the size of what lies between; of one value alone, by its own size."""
    size = max(abs(low), abs(high))
    step = 10.0 ** math.floor(math.log10(max(min(high - low, _LARGEST), size if low == high else size * 1e-3, least)))
    if step >= 1:
        whole = int(step)
        below, above = math.floor(low) // whole * whole, -(-math.ceil(high) // whole) * whole
        return (below, above) if below < above else (below, above + whole)
    floor, ceiling = round(math.floor(low / step) * step, 12), round(math.ceil(high / step) * step, 12)
    return (floor, ceiling) if floor < ceiling else (floor, ceiling + step)


def _years(low: date, high: date) -> tuple[date, date]:
    """Whole decades around both, or whole years where all lies within a decade."""
    size = 10 if high.year - low.year > 10 else 1
    first, last = low.year // size * size, -(-(high.year + 1) // size) * size - 1
    return date(max(first, 1), 1, 1), date(min(last, 9999), 12, 31)


def _is_name(name: str) -> bool:
    return bool(name) and name == name.strip() and name.isprintable() and len(name) <= _LONGEST


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)
