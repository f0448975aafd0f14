"""How a party's file is written: settings of `table`, or a small file of its owner's beside it, for who gives no settings."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocols.errors import ConfigError, InputError, explain
from protocols.files import file_errors
from securemodel.data.cells import Form

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUFFIX = ".toml"
_TEXTS = ("sep", "encoding", "date_format", "sheet_name")
_KNOWN = ("file", *_TEXTS, "decimal", "na_values", "rename")
_FIX = (
    'write it as file = "clients.csv" and, where they are needed, sep = ";", decimal = ",", rename = {"Name" = "name"}'
)


def form_of(where: str, settings: Mapping[str, Any]) -> Form:
    """Settings as their names and kinds want it; None stands for what is not said. Raises InputError, which names `where`."""
    given = {name: value for name, value in settings.items() if value is not None or name == "encoding"}
    if given.get("decimal", ".") not in (".", ","):
        raise InputError(explain(f"decimal={given['decimal']!r}", where=where, fix='decimal is "." or ","'))
    if not _texts(given.get("na_values", ())):
        raise InputError(explain("na_values are a list of texts", where=where, fix='na_values=["NA"]'))
    for name in _TEXTS:
        if name in given and not isinstance(given[name], str):
            raise InputError(explain(f"{name}={given[name]!r}", where=where, fix=f"{name} is a text"))
    rename = given.get("rename", {})
    if not isinstance(rename, Mapping) or not _texts([*rename, *rename.values()]):
        fix = "rename={name in the file: name in the schema}"
        raise InputError(explain("rename is no mapping of names", where=where, fix=fix))
    return Form(**{**given, "na_values": tuple(given.get("na_values", ())), "rename": dict(rename)})


def _texts(values: Any) -> bool:
    return not isinstance(values, str) and all(isinstance(value, str) for value in values)


def read_description(path: Path) -> tuple[Path, Form]:
    """The file that a description is about, whose name is relative to it, and how that is written. Raises ConfigError, FileError."""
    with file_errors(path):
        data = path.read_bytes()
    try:
        given = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        what = "the description of a table's file is not valid TOML"
        raise ConfigError(explain(what, where=str(path), why=str(error), fix=_FIX)) from None
    unknown = [name for name in given if name not in _KNOWN]
    if unknown or not isinstance(given.get("file"), str) or given["file"].lower().endswith(SUFFIX):
        why = f"there is no setting {unknown[0]!r}" if unknown else "it names no file"
        raise ConfigError(explain("this does not describe a table's file", where=str(path), why=why, fix=_FIX))
    try:
        return path.parent / given.pop("file"), form_of(str(path), given)
    except InputError as error:
        raise ConfigError(str(error)) from None
