"""Opens whatever a party's table comes from: text, Parquet, a sheet, or a frame in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from protocols.errors import InputError, explain
from securemodel.data.arrow import open_frame, open_parquet
from securemodel.data.cells import LINES, Block, Form, Opened, block_of, renamed
from securemodel.data.excel import open_sheet
from securemodel.files.reader import Format, Table, is_table, open_table, other_delimiters

EXCEL = (".xlsx", ".xlsm")
PARQUET = (".parquet", ".pq")


def open_source(source: Any, form: Form) -> Opened:
    """Opens a file by its name's ending, or a frame. Raises InputError, FileError."""
    if not isinstance(source, (str, Path)):
        return open_frame(source, form)
    path = Path(source)
    suffix = path.suffix.lower()
    if not path.exists():
        raise InputError(explain("there is no such file", where=str(path), fix="correct the name"))
    if not path.is_file():
        raise InputError(explain("this is no ordinary file", where=str(path), fix="give the file itself"))
    if is_table(path):
        return _open_text(path, form)
    if suffix in PARQUET:
        return open_parquet(path, form)
    if suffix in EXCEL:
        return open_sheet(path, form)
    fix = "give a .csv, .tsv or .txt (also .gz), a .parquet, a .xlsx, or a frame of pandas, polars or Arrow"
    if suffix in (".xls", ".xlsb", ".ods"):
        fix = "open it, and save it as .xlsx or .csv"
    raise InputError(explain("not a kind of file that tables are read from", where=str(path), fix=fix))


# ---- text
def _open_text(path: Path, form: Form) -> Opened:
    table = open_table(path, Format(form.sep, form.encoding, True))
    seen = table.seen()
    if len(table.first) == 1 and (other := other_delimiters(table.first, table.delimiter, 0)):
        seen += f"; {other.split(':')[0]}: say sep=, or in a file beside it: docs/tables.md"
    names = renamed(table.names, form, str(path))
    opened = Opened(str(path), "line", names, lambda columns: _text_blocks(table, names, columns, opened), seen)
    return opened


def _text_blocks(table: Table, names: Sequence[str], columns: Sequence[str], opened: Opened) -> Iterator[Block]:
    at = [names.index(column) for column in columns]
    places: list[int] = []
    rows: list[list[str]] = []
    blank: list[int] = []
    unreadable = None
    lines = table.rows(empty=True)
    while True:
        try:
            line, cells = next(lines, (0, None))
        except InputError as error:  # what was read before is looked at, too
            unreadable, cells = error, None
        if cells is None or len(rows) == LINES:
            if rows:
                yield block_of(places, rows, columns, at)
            places, rows = [], []
        if cells is None:
            break
        if not "".join(cells).strip():
            blank.append(line)
            continue
        opened.blank.extend(blank)
        blank.clear()
        places.append(line)
        rows.append(cells)
    if unreadable:
        raise unreadable
