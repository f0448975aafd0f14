"""Schemas out of TOML: everything that is wrong is found at once, each with its line."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any

from protocols.errors import ConfigError, explain
from protocols.names import NAME_RULE, is_name
from securemodel.data.column import (
    DUPLICATES,
    ID_MISSING,
    KINDS,
    MINIMUM,
    MOST_VALUES,
    OTHER,
    OUTSIDE,
    SPLITS,
    Column,
    days,
)
from securemodel.data.normalize import NORMALIZE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SHOWN = 30  # problems in one error
_LONGEST_NAME, _LONGEST_VALUE = 100, 1000
_INT64 = 2**63
_TOP = ("table", "keys", "columns")
_TABLE = ("keys", "split", "minimum", "missing", "duplicates")
_COLUMN = ("owner", "kind", "low", "high", "outside", "missing", "values", "other", "duplicates")
_BOUNDED = ("number", "integer", "date")
_MERGES = {"number": ("error", "first", "sum", "mean"), "integer": ("error", "first", "sum")}


def read_schema(text: str | bytes, where: str) -> dict[str, Any]:
    """The fields of the Schema that a text describes. Raises ConfigError with all that is wrong; `where` names the text."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise ConfigError(explain("a schema is not text in UTF-8", where=where, fix="save it as UTF-8")) from None
    try:
        given = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers that are too long, and tables that are too deep
        fix = "correct it; texts stand in quotes, tables begin with [name]"
        raise ConfigError(explain("a schema is not valid TOML", where=where, why=str(error), fix=fix)) from None
    reader = _Reader(text)
    made = reader.schema(given)
    if not reader.problems:
        return made
    count = len(reader.problems)
    said = [problem for _, problem in sorted(reader.problems, key=lambda found: found[0])]
    more = [f"and {count - _SHOWN} more"] if count > _SHOWN else []
    raise ConfigError(explain(f"the schema has {count} problem{'' if count == 1 else 's'}", where=where,
                              why="\n".join([*said[:_SHOWN], *more]), fix="correct it at one party, and give all parties the same file"))  # fmt: skip


class _Reader:
    """Reads tables of TOML and collects problems as (line, text)."""

    def __init__(self, text: str) -> None:
        self.problems: list[tuple[int, str]] = []
        self._lines = _lines(text)

    def schema(self, given: Mapping[str, Any]) -> dict[str, Any]:
        self._known(given, (), _TOP)
        table = self._table(given, ("table",))
        keys = self._keys(table.get("keys", []))
        split = self._one_of(table, ("table",), "split", SPLITS, "columns")
        minimum = self._get(table, ("table",), "minimum", int, MINIMUM, "a whole number of rows")
        if minimum < 1:
            self._add(("table", "minimum"), f"minimum is {minimum}: at least 1 row must be in an aggregate")
        self._known(table, ("table",), _TABLE)
        duplicates = self._one_of(table, ("table",), "duplicates", DUPLICATES, "error")
        columns = self._columns(self._table(given, ("columns",)), split, duplicates)
        if not columns and not self.problems:
            self._add(("columns",), "there is no column: describe each as [columns.NAME]")
        normalize = self._normalize(self._table(given, ("keys",)), keys)
        missing = self._one_of(table, ("table",), "missing", ID_MISSING, "error")
        return {
            "columns": columns, "keys": keys, "normalize": normalize, "split": split,
            "minimum": minimum, "missing": missing, "duplicates": duplicates,
        }  # fmt: skip

    # ---- keys
    def _keys(self, given: object) -> tuple[str, ...]:
        if not isinstance(given, list) or not all(isinstance(key, str) for key in given):
            self._add(("table", "keys"), 'keys are a list of names of columns, as in keys = ["email", "born"]')
            return ()
        for key in dict.fromkeys(given):
            if given.count(key) > 1:
                self._add(("table", "keys"), f"key {key!r} is named twice")
            if not _is_column(key):
                self._add(("table", "keys"), f"{key!r} cannot be the name of a column")
        return tuple(given)

    def _normalize(self, given: Mapping[str, Any], keys: Sequence[str]) -> dict[str, str]:
        for name, settings in given.items():
            if name not in keys:
                self._add(("keys", name), f"[keys.{name}] is no column of keys{_close(name, keys)}")
            elif not isinstance(settings, dict):
                self._add(("keys", name), f'keys.{name} is a table: [keys.{name}] with normalize = "text"')
            else:
                self._known(settings, ("keys", name), ("normalize",))
        tables = {key: given[key] if isinstance(given.get(key), dict) else {} for key in keys}
        return {key: self._one_of(table, ("keys", key), "normalize", NORMALIZE, "text") for key, table in tables.items()}  # fmt: skip

    # ---- columns
    def _columns(self, given: Mapping[str, Any], split: str, duplicates: str) -> dict[str, Column]:
        made = {}
        for name, settings in given.items():
            if not _is_column(name):
                self._add(("columns", name), f"{name!r} cannot be the name of a column: it is text of up to {_LONGEST_NAME} "
                          "characters that can be printed, with no blanks around it")  # fmt: skip
            elif not isinstance(settings, dict):
                self._add(("columns", name), f'columns.{name} is a table: [columns.{name}] with kind = "number"')
            else:
                made[name] = self._column(name, settings, split, duplicates)
        return made

    def _column(self, name: str, given: Mapping[str, Any], split: str, duplicates: str) -> Column:
        at = ("columns", name)
        self._known(given, at, _COLUMN)
        if "kind" not in given:
            self._add(at, f"column {name!r} has no kind: {_either(KINDS)}")
        kind = self._one_of(given, at, "kind", KINDS, "")
        low, high = self._bounds(given, at, kind)
        values, other = self._values(given, at, kind)
        if kind in ("boolean", "category"):
            low, high = 0, 1 if kind == "boolean" else max(len(values) + other - 1, 0)
        outside = self._one_of(given, at, "outside", OUTSIDE, "error")
        if "outside" in given and kind and kind not in _BOUNDED:
            self._add((*at, "outside"), f"column {name!r}: a {kind} has no bounds to be outside of")
        missing = self._get(given, at, "missing", bool, False, "true or false")
        merge = self._one_of(given, at, "duplicates", DUPLICATES, duplicates)
        if kind and merge not in (allowed := _MERGES.get(kind, ("error", "first"))):
            ours = (*at, "duplicates") if "duplicates" in given else at
            self._add(ours, f"column {name!r}: rows of one id cannot be merged by {merge!r} where the kind is {kind!r}; "
                      f"say duplicates = {_either(allowed)} for it")  # fmt: skip
        return Column(name, self._owner(given, at, split), kind, low, high, outside, missing, values, other, merge)

    def _owner(self, given: Mapping[str, Any], at: tuple[str, ...], split: str) -> str | None:
        owner = given.get("owner")
        if split == "rows":
            if "owner" in given:
                self._add((*at, "owner"), f'column {at[1]!r} has an owner; with split = "rows" all parties have all columns')  # fmt: skip
            return None
        if owner is None:
            self._add(at, f'column {at[1]!r} has no owner: say whose it is, as in owner = "bank"')
        elif not is_name(owner):
            self._add((*at, "owner"), f"column {at[1]!r}: {owner!r} cannot be a party; {NAME_RULE}")
        return owner

    def _bounds(self, given: Mapping[str, Any], at: tuple[str, ...], kind: str) -> tuple[float, float]:
        if kind not in _BOUNDED:
            for bound in ("low", "high"):
                if bound in given and kind:
                    self._add((*at, bound), f"column {at[1]!r}: a {kind} has no bounds; leave {bound} out")
            return 0, 0
        made: list[float] = []
        for bound in ("low", "high"):
            if bound not in given:
                self._add(at, f"column {at[1]!r} has no {bound}: bounds of a {kind} are public, and every value lies within")  # fmt: skip
                continue
            value = _bound(given[bound], kind)
            if value is None:
                wanted = {"number": "a finite number", "integer": "a whole number of 64 bits"}.get(kind, "a date, as in 1900-01-01")  # fmt: skip
                self._add((*at, bound), f"column {at[1]!r}: {bound} is {_short(given[bound])}; it is {wanted}")
                continue
            made.append(value)
        if len(made) == 2 and made[0] >= made[1]:
            self._add((*at, "low"), f"column {at[1]!r}: low is {given['low']} and high {given['high']}; low must be below high")  # fmt: skip
        return (made[0], made[1]) if len(made) == 2 else (0, 0)

    def _values(self, given: Mapping[str, Any], at: tuple[str, ...], kind: str) -> tuple[tuple[str, ...], bool]:
        name, values, place = at[1], given.get("values"), (*at, "values")
        other = self._get(given, at, "other", bool, False, "true or false")
        if other and kind and kind != "category":
            self._add((*at, "other"), f"column {name!r}: other is for categories")
        if values is None:
            if kind == "category":
                self._add(
                    at, f'column {name!r} has no values: name its categories, as in values = ["Ghent", "Utrecht"]'
                )
            return (), other
        if kind and kind not in ("category", "boolean"):
            self._add(place, f"column {name!r}: values are for categories and booleans")
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            self._add(place, f"column {name!r}: values are a list of texts, in quotes")
            return (), other
        self._check_values(name, values, place, kind, other)
        return tuple(values), other

    def _check_values(self, name: str, values: list[str], place: tuple[str, ...], kind: str, other: bool) -> None:
        if kind == "boolean" and len(values) != 2:
            self._add(place, f'column {name!r}: a boolean has two values, those for 0 and 1, as in values = ["no", "yes"]')  # fmt: skip
        if len(values) > MOST_VALUES:
            self._add(place, f"column {name!r} has {len(values):,} categories, and at most {MOST_VALUES:,} are allowed: "
                      "keep the frequent ones with other = true, or use a coarser column (a region in place of a town)")  # fmt: skip
            return
        if not values:
            self._add(place, f"column {name!r}: values are empty")
        seen: set[str] = set()
        for value in values:
            if value in seen:
                self._add(place, f"column {name!r}: value {_short(value)} is named twice")
            elif value != value.strip() or not value or not value.isprintable() or len(value) > _LONGEST_VALUE:
                self._add(place, f"column {name!r}: {_short(value)} cannot be a value: it is printable text without blanks around it")  # fmt: skip
            seen.add(value)
        if other and OTHER in seen:
            self._add(place, f'column {name!r}: with other = true, no value may be called "{OTHER}"')

    # ---- settings
    def _table(self, given: Mapping[str, Any], at: tuple[str, ...]) -> Mapping[str, Any]:
        made = given.get(at[-1], {})
        if isinstance(made, dict):
            return made
        self._add(at, f"{at[-1]} is a table: [{'.'.join(at)}]")
        return {}

    def _known(self, given: Mapping[str, Any], at: tuple[str, ...], names: Sequence[str]) -> None:
        for name in given:
            if name not in names:
                whose = f"[{'.'.join(at)}]" if at else "the schema"
                self._add((*at, name), f"{whose} has {name!r}, which is unknown{_close(name, names)}")

    def _get(self, given: Mapping[str, Any], at: tuple[str, ...], name: str, kind: type, default: Any, wanted: str) -> Any:  # fmt: skip
        value = given.get(name, default)
        if type(value) is kind:
            return value
        self._add((*at, name), f"{'.'.join((*at, name))} is {_short(value)}; it is {wanted}")
        return default

    def _one_of(
        self, given: Mapping[str, Any], at: tuple[str, ...], name: str, allowed: Sequence[str], default: str
    ) -> str:
        value = given.get(name, default)
        if value in allowed or name not in given:
            return value
        close = _close(value, allowed) if isinstance(value, str) else ""
        self._add((*at, name), f"{'.'.join((*at, name))} is {_short(value)}; it is {_either(allowed)}{close}")
        return default

    def _add(self, at: tuple[str, ...], what: str) -> None:
        """A problem, with the line where the setting or else its table stands."""
        found = [self._lines[at[:size]] for size in range(len(at), 0, -1) if at[:size] in self._lines]
        self.problems.append((found[0], f"line {found[0]}: {what}") if found else (0, what))


def _bound(value: object, kind: str) -> float | None:
    if kind == "date":
        try:
            value = date.fromisoformat(value) if isinstance(value, str) else value
        except ValueError:
            return None
        return days(value) if isinstance(value, date) and not isinstance(value, datetime) else None
    if kind == "integer":
        return value if type(value) is int and -_INT64 <= value < _INT64 else None
    if type(value) not in (int, float):
        return None
    try:
        made = float(value)  # type: ignore[arg-type]
    except OverflowError:
        return None
    return made if math.isfinite(made) else None


def _is_column(name: str) -> bool:
    return bool(name) and name == name.strip() and name.isprintable() and len(name) <= _LONGEST_NAME


def _either(words: Sequence[str]) -> str:
    quoted = [f'"{word}"' for word in words]
    return f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _close(name: str, names: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _short(value: object) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:60]}..."


# ---- lines
_PART = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|\'([^\']*)\'|([A-Za-z0-9_-]+))\s*(\.|$)')
_HEADER = re.compile(r"\s*\[\[?(.*?)\]\]?\s*(#.*)?$")
_SETTING = re.compile(r'\s*((?:"(?:[^"\\]|\\.)*"|\'[^\']*\'|[A-Za-z0-9_.\s-])+?)\s*=')


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """The lines on which tables and settings begin; of unusual ones (in strings of several lines) they may be wrong."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = _parts(header[1])
            found.setdefault(table, number)
        elif setting := _SETTING.match(line):
            found.setdefault((*table, *_parts(setting[1])), number)
    return found


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(double or single or bare for double, single, bare, _ in _PART.findall(dotted.strip()))
