"""Sheets of Excel: cells as they are stored, which is not always as they are shown."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from protocols.errors import InputError, explain
from protocols.files import file_errors
from securemodel.data.cells import LINES, Bad, Block, Form, Opened, block_of, missing_package, renamed
from securemodel.files.reader import counted

ERROR_CELL = Bad("an error of Excel in a cell, such as #N/A")
NO_RESULT = Bad("a formula whose result is not in the file")
NO_DATE = Bad("a time, or a duration")
MERGED = Bad("a cell that is merged with the one above or before it, where alone the value is")
_LARGEST = 2**53  # from here on, Excel itself does not tell whole numbers apart
_DIGITS = 10**15  # Excel keeps 15 digits
_AT_ONCE = 1024
_MOST_ROWS = 1 << 20  # of a sheet
_LONGEST_TAG = 4096
_ZEROS = re.compile(r"0{2,}")  # a format of numbers that shows zeros in front
_ESCAPED = re.compile(r"_x(00[01][0-9A-Fa-f])_")
_UNDERLINE = re.compile(rb"x005F_")  # how an underline is written before what would be such a word; openpyxl drops it
_FORMULA = re.compile(rb"<(?:\w+:)?f[ />]")
_MERGE = re.compile(rb'<(?:\w+:)?mergeCell\s[^>]*?ref="([A-Z]{1,3})([0-9]{1,7}):([A-Z]{1,3})([0-9]{1,7})"')


def open_sheet(path: Path, form: Form) -> Opened:
    """Opens a sheet of a workbook: the only visible one, or the one that is named. Raises InputError, FileError."""
    with file_errors(path), path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise _unusable(path, "this is no workbook of Excel, or it is protected by a password")
    book = _workbook(path, values=True)
    if _found(path, _UNDERLINE, folder="xl/"):
        what = "there is text with the characters x005F_, which cannot be told from an escape"
        raise _unusable(path, what, "save the sheet as .csv")
    name = _sheet_name(path, book, form)
    rows = _rows(path, book, name)
    header_at, header = next(((at, cells) for at, cells in rows if any(cell.value is not None for cell in cells)), (0, ()))  # fmt: skip
    raw = [_name(cell.value) for cell in header]
    while raw and not raw[-1]:
        raw.pop()
    if not raw:
        raise _unusable(path, f"sheet {name!r} is empty", "name another sheet with sheet_name=")
    names = renamed(raw, form, str(path))
    seen = f"read from sheet {name!r}, names from row {header_at}"
    opened = Opened(f"{path}, sheet {name!r}", "row", names, lambda columns: blocks(columns), seen)
    book.close()

    def blocks(columns: Sequence[str]) -> Iterator[Block]:
        return _blocks(path, name, header_at, names, columns, opened)

    return opened


def _blocks(
    path: Path, name: str, header_at: int, names: Sequence[str], columns: Sequence[str], opened: Opened
) -> Iterator[Block]:
    book = _workbook(path, values=True)
    formulas = _workbook(path, values=False) if _found(path, _FORMULA) else None
    merged = _merged(path, book, name)
    written = _rows(path, formulas, name) if formulas else repeat((0, ()))
    at = [names.index(column) for column in columns]
    notes = {column: _Notes(column) for column in columns}
    places: list[int] = []
    rows: list[list[Any]] = []
    blank: list[int] = []
    try:
        for (row, cells), (_, texts) in zip(_rows(path, book, name), written, strict=False):
            if row <= header_at:
                continue
            made = [_value(cells[i], texts[i] if i < len(texts) else None) if i < len(cells) else None for i in at]
            if row in merged:
                made = [MERGED if i in merged[row] and made[n] is None else made[n] for n, i in enumerate(at)]
            others = any(cell.value is not None for cell in cells)
            if not others and all(value is None for value in made):
                blank.append(row)
                continue
            opened.blank.extend(blank)
            blank.clear()
            for column, index in zip(columns, at, strict=True):
                if index < len(cells):
                    notes[column].look(cells[index])
            places.append(row)
            rows.append(made)
            if len(rows) == LINES:
                yield block_of(places, rows, columns, range(len(columns)))
                places, rows = [], []
        if rows:
            yield block_of(places, rows, columns, range(len(columns)))
    finally:
        book.close()
        if formulas:
            formulas.close()
    opened.notes.extend(text for note in notes.values() for text in note.texts())


class _Notes:
    """What the owner of a column should know about numbers that are shown as something else."""

    def __init__(self, column: str) -> None:
        self.column, self.zeros, self.long = column, 0, 0

    def look(self, cell: Any) -> None:
        if type(cell.value) not in (int, float):
            return
        if _ZEROS.fullmatch(str(cell.number_format)):
            self.zeros += 1
        if abs(cell.value) >= _DIGITS:
            self.long += 1

    def texts(self) -> Iterator[str]:
        if self.zeros:
            shown = counted(self.zeros, "number")
            yield f"column {self.column!r}: {shown} shown with zeros in front; what is stored, and read, is the number alone"
        if self.long:
            yield f"column {self.column!r}: {counted(self.long, 'number')} of 16 digits or more, of which Excel keeps 15"


def _value(cell: Any, formula: Any) -> Any:
    """A cell's value: text, number, bool, date, None or Bad."""
    value = cell.value
    if value is None:
        calculated = cell.data_type == "str"  # of a formula, whose result is an empty text
        return NO_RESULT if formula is not None and formula.data_type == "f" and not calculated else None
    if cell.data_type == "e":
        return ERROR_CELL
    if isinstance(value, (time, timedelta)) and not isinstance(value, date):
        return NO_DATE
    if type(value) is int and abs(value) >= _LARGEST:
        return float(value)  # which whoever wants its digits refuses
    if isinstance(value, (bool, int, float, datetime, date)):
        return value
    return _text(str(value))


def _text(text: str) -> str:
    """Text as Excel shows it: characters that XML cannot hold are written _x000D_ (ECMA-376 part 1, 22.9.2.19), which
    openpyxl leaves as they are."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text) if "_x" in text else text


def _workbook(path: Path, values: bool) -> Any:
    try:
        import openpyxl
    except ImportError:
        raise missing_package("openpyxl", "a sheet of Excel") from None
    with _quietly(path), file_errors(path):
        return openpyxl.load_workbook(path, read_only=True, data_only=values, keep_links=False)


def _rows(path: Path, book: Any, name: str) -> Iterator[tuple[int, Sequence[Any]]]:
    """The rows of a sheet, counted from 1, blank ones too."""
    sheet = book[name]
    sheet.reset_dimensions()  # which some programs write wrong
    rows, at = iter(sheet.iter_rows()), 0
    while True:
        with _quietly(path):
            some = list(islice(rows, _AT_ONCE))
        if not some:
            return
        yield from enumerate(some, at + 1)
        at += len(some)


def _sheet_name(path: Path, book: Any, form: Form) -> str:
    visible = [sheet.title for sheet in book.worksheets if sheet.sheet_state == "visible"]
    if form.sheet_name is not None:
        if form.sheet_name in [sheet.title for sheet in book.worksheets]:
            return form.sheet_name
        raise _unusable(path, f"there is no sheet {form.sheet_name!r}", f"the sheets are {', '.join(map(repr, visible))}")  # fmt: skip
    if len(visible) == 1:
        return str(visible[0])
    raise _unusable(path, f"the workbook has {len(visible)} visible sheets: {', '.join(map(repr, visible))}", "name one with sheet_name=")  # fmt: skip


def _name(value: Any) -> str:
    return "" if value is None else _text(str(value)).strip()


def _found(path: Path, pattern: re.Pattern[bytes], sheet: str = "", folder: str = "xl/worksheets/") -> list[Any]:
    """What a pattern finds in one sheet, or the first that it finds in any part of this folder."""
    made: list[Any] = []
    with zipfile.ZipFile(path) as archive:
        for entry in [sheet] if sheet else archive.namelist():
            if not entry.startswith(folder) or not entry.endswith(".xml"):
                continue
            with archive.open(entry) as file:
                last = b""
                while part := file.read(1 << 20):
                    text = last + part
                    made += pattern.findall(text)
                    if made and not sheet:
                        return made
                    last = text[text.rfind(b"<") :][-_LONGEST_TAG:]
    return made


def _merged(path: Path, book: Any, name: str) -> dict[int, set[int]]:
    """By row, from 1, the columns, from 0, of cells that belong to another one: they are empty, and shown with its value."""
    from openpyxl.utils import column_index_from_string

    made: dict[int, set[int]] = {}
    for left, top, right, bottom in _found(path, _MERGE, book[name]._worksheet_path):
        first, last = (column_index_from_string(text.decode()) - 1 for text in (left, right))
        for row in range(int(top), min(int(bottom), _MOST_ROWS) + 1):
            made.setdefault(row, set()).update(range(first + (row == int(top)), last + 1))
    return made


@contextmanager
def _quietly(path: Path) -> Iterator[None]:
    """Errors of openpyxl become one of ours; its warnings of what it leaves out are not about values."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        what = f"this is no workbook of Excel, or it is damaged ({type(error).__name__})"
        raise _unusable(path, what, "save it again as .xlsx") from None


def _unusable(path: Path, what: str, fix: str = "open it in Excel, and save it as .xlsx or .csv") -> InputError:
    return InputError(explain(what, where=str(path), fix=fix))
