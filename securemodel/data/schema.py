"""The schema of a joint table: which columns there are, whose they are, and what is public of them.

It is the same text at every party and holds no values. `Schema.digest` is compared before anything else is sent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType

from protocols.files import file_errors
from securemodel.data.column import MINIMUM, Column
from securemodel.data.normalize import RULES
from securemodel.data.schema_file import read_schema

_FORMAT = "securemodel schema 1"
_LONGEST_TEXT = 1 << 24  # of a schema that a peer sends, in characters


@dataclass(frozen=True)
class Schema:
    """A joint table as all parties know it; made by `load` or `parse`.

    keys: the columns that an id is made of, empty where rows have no ids; every party's file has them.
    normalize: for each of them the rule by which its text becomes comparable (see securemodel/data/normalize.py).
    split: "columns": parties have different columns of the same rows, matched by id (or, without keys, by position).
        "rows": they have the same columns of different rows.
    minimum: no aggregate of fewer rows is revealed.
    missing: whether a row without an id is an error, or left out.
    duplicates: the rule for columns that have none of their own, and for files with nothing but ids.
    """

    columns: Mapping[str, Column]
    keys: tuple[str, ...] = ()
    normalize: Mapping[str, str] = field(default_factory=dict)
    split: str = "columns"
    minimum: int = MINIMUM
    missing: str = "error"
    duplicates: str = "error"

    @staticmethod
    def load(path: str | Path) -> Schema:
        """The schema in a TOML file. Raises FileError; ConfigError with all that is wrong, and its lines."""
        with file_errors(Path(path)):
            data = Path(path).read_bytes()
        return Schema(**read_schema(data, str(path)))

    @staticmethod
    def parse(text: str) -> Schema:
        """The schema that a TOML text describes. Raises ConfigError with all that is wrong, and its lines."""
        return Schema(**read_schema(text, "the text of the schema"))

    def __post_init__(self) -> None:
        for name in ("columns", "normalize"):  # a copy that nobody changes
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def __reduce__(self) -> tuple[object, ...]:
        plain = {"columns": dict(self.columns), "normalize": dict(self.normalize)}
        return Schema, tuple(plain.get(each.name, getattr(self, each.name)) for each in fields(self))

    @property
    def parties(self) -> tuple[str, ...]:
        """The owners of columns, in the order of their first ones; empty where the table is split by rows."""
        return tuple(dict.fromkeys(column.owner for column in self.columns.values() if column.owner is not None))

    def of(self, party: str) -> tuple[Column, ...]:
        """The columns of which a party has values."""
        return tuple(column for column in self.columns.values() if column.owner in (None, party))

    @property
    def text(self) -> str:
        """All that the schema says, in one form, whatever the file looks like: a line for each thing to compare."""
        table = {name: getattr(self, name) for name in ("keys", "split", "minimum", "missing", "duplicates")}
        lines = [["format", "", _FORMAT], ["table", "", table]]
        lines += [["key", key, {"normalize": self.normalize[key], "rules": RULES}] for key in self.keys]
        lines += [["column", name, column.described] for name, column in self.columns.items()]
        return "\n".join(json.dumps(line, sort_keys=True, ensure_ascii=True) for line in lines)

    @property
    def digest(self) -> str:
        """SHA-256 of `text`, in hexadecimal: equal where schemas and rules of normalization are."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def first_difference(self, other: Schema | str) -> str | None:
        """What differs first between two schemas, "column 'income': high is 5.0 here and 4.0 there"; None if nothing does.

        `other` may be the `text` of a peer's schema, which is read with care.
        """
        text = other.text if isinstance(other, Schema) else other
        if text == self.text:
            return None
        try:
            theirs = _read(text)
        except (ValueError, RecursionError):
            return "what the other party has is no schema of this version"
        ours = _read(self.text)
        for (what, name), mine in ours.items():
            if (what, name) not in theirs:
                return f"{_place(what, name)} is here alone"
            if said := _unlike(mine, theirs[what, name]):
                return f"{_place(what, name)}: {said}"
        for what, name in theirs:
            if (what, name) not in ours:
                return f"{_place(what, name)} is there alone"
        return "the columns are in another order"


def _read(text: str) -> dict[tuple[str, str], object]:
    if len(text) > _LONGEST_TEXT:
        raise ValueError("too long")
    made: dict[tuple[str, str], object] = {}
    for line in text.split("\n"):
        entry = json.loads(line)
        if not isinstance(entry, list) or len(entry) != 3 or not all(isinstance(part, str) for part in entry[:2]):
            raise ValueError("no line of a schema")
        made[entry[0], entry[1]] = entry[2]
    return made


def _place(what: str, name: str) -> str:
    return f"{what} {name[:80]!r}" if name else "[table]" if what == "table" else "the format of schemas"


def _unlike(mine: object, theirs: object) -> str:
    if json.dumps(mine, sort_keys=True) == json.dumps(theirs, sort_keys=True):  # 1 is not true
        return ""
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return f"{_short(mine)} here and {_short(theirs)} there"
    name = next(name for name in (*mine, *theirs) if json.dumps(mine.get(name)) != json.dumps(theirs.get(name)))
    return f"{name[:80]} is {_short(mine.get(name))} here and {_short(theirs.get(name))} there"


def _short(value: object) -> str:
    said = "not said" if value is None else json.dumps(value)
    return said if len(said) <= 80 else f"{said[:80]}..."
