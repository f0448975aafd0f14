"""The tables of a SERVICE.toml: which keys there are, of which kinds, within which bounds. Errors name file, line and key."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, structs

from protocols.errors import ConfigError, explain

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Keys = tuple[str | int, ...]
"""Where something is in a file: names of tables and keys, and numbers in lists."""

_LINE = r"^[^\x00-\x1f\x7f]+\Z"
_MODEL = r"^[a-z][a-z0-9_-]{0,63}\Z"
_ADDRESS = r"^(\[[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?\]|[A-Za-z0-9_.-]+):[0-9]{1,5}\Z"
_MEANINGS = {
    _LINE: "a line of text that is not empty",
    _MODEL: "up to 64 lower-case letters, digits, '_' and '-', a letter first",
    _ADDRESS: "HOST:PORT, or [IPv6]:PORT",
}
_KINDS = {
    "str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "array": "a list",
    "object": "a table", "datetime": "a time", "date": "a date", "time": "a time",
}  # fmt: skip

Text = Annotated[str, Meta(pattern=_LINE)]
ModelName = Annotated[str, Meta(pattern=_MODEL)]
Address = Annotated[str, Meta(pattern=_ADDRESS)]
Count = Annotated[int, Meta(ge=1, le=2**31)]
Seconds = Annotated[float, Meta(gt=0, le=3600)]
_Bound = Annotated[float, Meta(ge=-(2**20), le=2**20)]


class _Table(Struct, forbid_unknown_fields=True, frozen=True):
    """A table of the file: keys that are not listed are an error."""


class Service(_Table, frozen=True):
    """What all parties have in common."""

    name: ModelName
    leader: str
    parties: Text = "parties.toml"
    keys: bool = True


class Front(_Table, frozen=True):
    """Where a party's front is reached. `certificate` or `ca` (PEM files) is what clients are to expect of an https url."""

    url: str
    control: Address
    certificate: Text | None = None
    ca: Text | None = None


class Me(_Table, frozen=True):
    """What is this party's alone. `weights` names the files of the models that it owns.

    Engines compute on `device`. With `rest_key` (a file, or credential:NAME of systemd) or `rest_key_command` its shares of all weights are kept.
    """

    data: Text
    listen: Address | None = None
    control_listen: Address | None = None
    tls_certificate: Text | None = None
    tls_key: Text | None = None
    metrics: Address | None = None
    weights: dict[str, Text] = {}
    device: Text | None = None
    rest_key: Text | None = None
    rest_key_command: Annotated[tuple[Text, ...], Meta(min_length=1)] | None = None


class Limits(_Table, frozen=True):
    """What a party takes on at most. The same at all parties: what one refuses, no other can compute alone."""

    queue_rows: Count = 2048
    rows_per_day: Count = 1_000_000
    requests_per_second: Annotated[float, Meta(gt=0, le=1e9)] = 1000.0
    share_wait_s: Seconds = 0.5
    restart_wait_s: Seconds = 30.0
    drain_s: Seconds = 30.0


class Model(_Table, frozen=True):
    """A model that is served. What is None is as the script's make_family() has it."""

    name: ModelName
    script: Text
    version: Count = 1
    sizes: Annotated[tuple[Count, ...], Meta(min_length=1, max_length=32)] | None = None
    clamp: tuple[_Bound, _Bound] | None = None
    reveal: str | None = None
    labels: Annotated[tuple[Text, ...], Meta(min_length=1)] | None = None
    rows_per_day: Count | None = None
    lanes: Annotated[int, Meta(ge=1, le=64)] = 1

    @property
    def options(self) -> dict[str, Any]:
        """What make_family() is called with."""
        given = {name: getattr(self, name) for name in ("sizes", "clamp", "reveal", "labels")}
        if self.reveal and (top := re.fullmatch("top([1-9][0-9]*)", self.reveal)):
            given["reveal"] = "class" if top[1] == "1" else ("top", int(top[1]))
        return {name: value for name, value in given.items() if value is not None}


class File(_Table, frozen=True):
    """The tables of a SERVICE.toml. `fronts` are `Front` once they were read."""

    service: Service
    fronts: dict[str, Any]
    model: tuple[Model, ...]
    me: Me | None = None
    limits: Limits = Limits()


def read_file(path: Path) -> tuple[File, str]:
    """The tables of a SERVICE.toml, of the right kinds and no more, and its text. Raises ConfigError."""
    try:
        text = path.read_text("utf-8")
        tables = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(explain("a file cannot be read", where=str(path), why=error.strerror or "")) from None
    except (ValueError, RecursionError) as error:  # also of numbers that are too long, and tables that are too deep
        raise ConfigError(explain("a service file is not valid TOML", where=str(path), why=str(error))) from None
    file = _converted(tables, File, path, text)
    fronts = {name: _converted(table, Front, path, text, "fronts", name) for name, table in file.fronts.items()}
    return structs.replace(file, fronts=fronts), text


def _converted(value: Any, kind: Any, path: Path, text: str, *inside: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, found = str(error).partition(" - at `")
        keys: Keys = tuple(int(key) if key.isdecimal() else key for key in re.findall(r"[^.\[\]`$]+", found))
        field = re.search("(missing|unknown).* field `(.*)`", what)
        keys = (*inside, *keys, *([field[2]] if field else []))
        told = {"missing": "is missing", "unknown": "is no key of this table"}.get(
            field[1] if field else "", "is wrong"
        )
        why, fix = "" if field else _worded(what), "correct it; docs/operations.md lists all keys"
        raise ConfigError(explain(f"{named(keys)} {told}", where=place(path, text, keys), why=why, fix=fix)) from None


def _worded(what: str) -> str:
    """What msgspec says is wrong, in words of the file: "expected a list, got text"."""
    for pattern, meaning in _MEANINGS.items():
        what = what.replace(f"`str` matching regex {pattern!r}", meaning)
    what = re.sub(r"`(\w+)(?: \| null)?`", lambda kind: _KINDS.get(kind[1], kind[1]), what)
    return what[:1].lower() + what[1:]


def named(keys: Keys) -> str:
    """Keys as one name: model[0].sizes."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")


def place(path: Path, text: str, keys: Keys) -> str:
    """The file, and the line of a key, or of the table that it would be in."""
    best, counts = (0, 0), Counter[str]()
    table: Keys = ()
    for number, line in enumerate(text.splitlines(), 1):
        found: Keys
        if heading := re.match(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]", line):
            found = tuple(part.strip(' "') for part in heading[2].split("."))
            if heading[1] == "[[":
                found = (*found, counts[heading[2]])
                counts[heading[2]] += 1
            table = found
        elif key := re.match(r"\s*\"?([\w-]+)\"?\s*=", line):
            found = (*table, key[1])
        else:
            continue
        same = min(len(found), len(keys))
        if same > best[0] and found[:same] == keys[:same]:
            best = (same, number)
    return f"{path}, line {best[1]}" if best[1] else str(path)
