"""The strict reader of text tables: every line has as many cells as the first, and no line is left out.

Cells are text: an id 007 stays 007 and "NA" stays "NA"; what is a number is for `numbers` to say, what is missing for
who asks. Nothing is guessed: how the file is written, and whether its first line has names, is said by its owner, or
where it is not clear an error shows what was seen. Errors may show the first line, and no other contents.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from protocols.errors import InputError, explain
from protocols.files import file_errors

SUFFIXES = (".csv", ".tsv", ".txt")
_GZIP = ".gz"
_WORDS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "space": " ", "pipe": "|"}
_SAID = {",": "a comma", ";": "a semicolon", "\t": "a tab", " ": "a space", "|": "a vertical bar"}
_LINE_CHARACTERS = 1 << 26
_SHOWN = 120

# What other programs begin their files with: no text, or text in an encoding that the mark names.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_NO_TEXT = (
    (b"\x1f\x8b", "compressed by gzip", "name it .csv.gz, or unpack it first: gunzip"),
    (b"PK\x03\x04", "a ZIP archive or a sheet of Excel", "unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "a file of an old Excel", "save the sheet as CSV"),
    (b"PAR1", "a file of Parquet", "write it as CSV or NPZ"),
    (b"BZh", "compressed by bzip2", "unpack it first: bunzip2"),
    (b"\xfd7zXZ", "compressed by xz", "unpack it first: unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it first: unzstd"),
    (b"\x93NUMPY", "an array of NumPy", "name it .npy"),
)  # fmt: skip
_MISSING = frozenset(("nan", "na", "n/a", "null", "none", "nil", "inf", "infinity", "true", "false"))
_NUMERIC = re.compile(r"[0-9eE+\-. \t]*")  # with these characters alone, float() and int() read decimal numbers only


@dataclass(frozen=True)
class Format:
    """How a table is written, as far as its owner says it.

    delimiter: one character, or a word for it; None is a comma, in a .tsv file a tab.
    header: whether the first line has names; None where the columns asked for tell, or the line itself does.
    """

    delimiter: str | None = None
    encoding: str = "utf-8"
    header: bool | None = None


@dataclass(frozen=True)
class Table:
    """A table whose first line was read. `names` are those of the columns, empty without a header."""

    path: Path
    delimiter: str
    encoding: str
    first: tuple[str, ...]
    names: tuple[str, ...]
    columns: tuple[int, ...]
    id_column: int | None

    def rows(self, empty: bool = False) -> Iterator[tuple[int, list[str]]]:
        """The line of the file at which a row begins, and its cells. Raises InputError, FileError.

        empty: whether an empty line is a row without cells, for who tells rows by their ids; else it is an error.
        """
        for line, cells in _records(self.path, self.delimiter, self.encoding):
            if self.names and line == 1:
                continue
            if len(cells) != len(self.first) and (cells or not empty):
                self._refuse_width(line, cells)
            yield line, cells

    def place(self, line: int, column: int) -> str:
        """Where a cell is, for errors."""
        name = f" ({self.names[column]!r})" if self.names else ""
        return f"{self.path}, line {line}, column {column + 1}{name}"

    def seen(self) -> str:
        """How the file was read, and its first line."""
        return seen(self.first, self.delimiter, self.encoding)

    def _refuse_width(self, line: int, cells: Sequence[str]) -> None:
        what = f"{counted(len(cells), 'cell')} where the first line has {len(self.first)}" if cells else "an empty line"
        fix = "every row has as many cells as the first line: correct this one"
        if not cells or not any(cell.strip() for cell in cells):
            fix = "remove the line if it is no row; a row is never left out, as the rows of parties belong together"
        elif len(cells) > len(self.first) and self.delimiter == ",":
            fix += '; numbers have decimal points and no thousands separators, and text with commas is "in quotes"'
        raise InputError(explain(what, where=f"{self.path}, line {line}", why=self.seen(), fix=fix))


def is_table(path: Path) -> bool:
    """Whether a file is a text table by its name; it may be compressed: x.csv.gz."""
    return _plain(path).suffix.lower() in SUFFIXES


def open_table(path: Path, form: Format = Format(), columns: Sequence[str] = (), id_column: str = "") -> Table:
    """Opens a table for these columns, named or counted from 1 (none: all but the id's). Raises InputError, FileError."""
    delimiter, encoding = _delimiter(path, form.delimiter), _encoding(path, form.encoding)
    _, first = next(_records(path, delimiter, encoding), (1, None))
    if first is None:
        raise _refused("the file is empty", path, fix="give a file with at least one row")
    cells = tuple(cell.strip() for cell in first)
    asked = (*columns, *([id_column] if id_column else []))
    described = seen(first, delimiter, encoding)
    header = form.header
    if header is None:
        named = any(not _is_position(name) for name in asked)
        header = named or _looks_like_names(path, cells, columns, id_column, described)
    elif not header and (unknown := [name for name in asked if not _is_position(name)]):
        raise _refused(f"a table without a header has no column {', '.join(map(repr, unknown))}", path,
                       why=described, fix="count the columns from 1, or leave out --no-header")  # fmt: skip
    if header:
        _check_names(path, cells)
    found = [_column(path, cells, name, header, described) for name in asked]
    if twice := {name for name, index in zip(asked, found, strict=True) if found.count(index) > 1}:
        raise _refused(f"a column is asked for twice: {', '.join(sorted(twice))}", path, fix="name each column once")
    own = found.pop() if id_column else None
    chosen = found if columns else [index for index in range(len(cells)) if index != own]
    return Table(path, delimiter, encoding, tuple(first), cells if header else (), tuple(chosen), own)


def numbers(cells: Sequence[str], whole: Sequence[bool]) -> list[float] | None:
    """The cells as finite decimal numbers, whole ones where asked (then of any size); None if one of them is none."""
    if not _NUMERIC.fullmatch("".join(cells)):
        return None
    try:
        made = [int(cell) if w else float(cell) for cell, w in zip(cells, whole, strict=True)]
    except ValueError:
        return None
    return None if math.inf in made or -math.inf in made else made


def seen(first: Sequence[str], delimiter: str, encoding: str) -> str:
    """How a file was read, and its first line, shortened."""
    line = delimiter.join(first)
    shown = f"{line[:_SHOWN]}..." if len(line) > _SHOWN else line
    cells = counted(len(first), "cell")
    return (
        f"read as {encoding}, with {_SAID.get(delimiter, repr(delimiter))} between cells; line 1 has {cells}: {shown!r}"
    )


def counted(number: int, noun: str) -> str:
    """1 cell, 2 cells."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def other_delimiters(first: Sequence[str], delimiter: str, wanted: int) -> str:
    """What to write where another delimiter gives the wanted number of cells, or at least more than one."""
    line = delimiter.join(first)
    found = {mark: line.count(mark) + 1 for mark in (";", "\t", "|", ",", " ") if mark != delimiter and mark in line}
    fitting = [mark for mark, cells in found.items() if cells == wanted] or [
        m for m in found if m in ";\t|" and len(first) == 1
    ]
    said = [f"with {_SAID[m]} it has {found[m]}: --delimiter {_option(m)}" for m in fitting]
    return "; ".join(said)


def _option(delimiter: str) -> str:
    return next((word for word, mark in _WORDS.items() if mark == delimiter), delimiter)


def _in_python(encoding: str) -> str:
    return f" (in Python encoding={encoding!r})"


def _refused(what: str, path: Path, where: str = "", why: str = "", fix: str = "") -> InputError:
    return InputError(explain(what, where=f"{path}{where}", why=why, fix=fix))


# ---- what the user says, and what the first line is
def _delimiter(path: Path, given: str | None) -> str:
    if given is None:
        return "\t" if _plain(path).suffix.lower() == ".tsv" else ","
    mark = _WORDS.get(given, given)
    if len(mark) != 1 or mark.isalnum() or mark in '"\r\n.+-_\0':
        fix = f"give one character, or a word: {', '.join(word for word in _WORDS if word.isalpha())}"
        raise InputError(explain(f"{given!r} cannot stand between cells", where="--delimiter", fix=fix))
    return mark


def _encoding(path: Path, given: str) -> str:
    """The encoding's own name. Raises InputError for one that is unknown, or other than the file's first bytes say."""
    try:
        "".encode(given)
        name = codecs.lookup(given).name
    except (LookupError, ValueError):
        fix = "give one that Python knows: utf-8, utf-16, cp1252, latin-1, ..."
        raise InputError(
            explain(f"there is no encoding of text called {given!r}", where="--encoding", fix=fix)
        ) from None
    with file_errors(path), _unpacking(path), _open(path, "rb") as file:
        start = file.read(8)
    for mark, what, fix in _NO_TEXT:
        if start.startswith(mark):
            raise _refused(f"this is no text: {what}", path, fix=fix)
    for mark, marked in _MARKS:
        if start.startswith(mark):
            if not name.startswith(marked):
                raise _refused(f"the file begins with the mark of {marked}, and is to be read as {name}", path,
                               fix=f"--encoding {marked}{_in_python(marked)}")  # fmt: skip
            break
    return name


def _is_position(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) < 10


def _looks_like_names(path: Path, cells: Sequence[str], columns: Sequence[str], id_column: str, described: str) -> bool:
    """Whether the cells that would be numbers can only be names. Raises InputError where they may be a row."""
    counts = columns or [str(count) for count in range(1, len(cells) + 1) if str(count) != id_column]
    used = [cells[int(count) - 1] for count in counts if 0 < int(count) <= len(cells)] or list(cells)
    if all((cell[:1].isalpha() or cell[:1] == "_") and cell.casefold() not in _MISSING for cell in used):
        return True
    named = ", ".join(map(repr, cells))
    named = f"{named[:_SHOWN]}..." if len(named) > _SHOWN else named
    fix = f"--header if these are names, and rows begin below: {named}\n--no-header if line 1 is the first row"
    raise _refused("it is not clear whether the first line has names or is a row", path, ", line 1", described, fix)


def _check_names(path: Path, names: Sequence[str]) -> None:
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names, 1):
        places.setdefault(name, []).append(index)
    twice = {name: found for name, found in places.items() if name and len(found) > 1}
    if twice:
        said = "; ".join(f"{name!r} in columns {' and '.join(map(str, found))}" for name, found in twice.items())
        raise _refused(f"the header has a name twice: {said}", path, ", line 1", fix="give every column its own name")


def _column(path: Path, names: Sequence[str], name: str, header: bool, described: str) -> int:
    """Position of a column that is counted from 1 or named."""
    by_name = names.index(name) if header and name in names else None
    by_count = int(name) - 1 if _is_position(name) and 0 < int(name) <= len(names) else None
    if by_name is not None and by_count is not None and by_name != by_count:
        raise _refused(f"column {name!r} may be the one of this name, column {by_name + 1}, or column {name} itself", path,
                       why=described, fix="give the column another name in the file")  # fmt: skip
    index = by_name if by_name is not None else by_count
    if index is None:
        fix = "correct the name" if header else "columns are counted from 1"
        raise _refused(f"there is no column {name!r}", path, why=described, fix=fix)
    return index


# ---- lines
def _open(path: Path, mode: str, **how: Any) -> IO[Any]:
    """A file, or what is compressed in it where its name says so."""
    return cast(IO[Any], gzip.open(path, mode, **how) if path.suffix.lower() == _GZIP else path.open(mode, **how))


def _plain(path: Path) -> Path:
    """What a file would be called if it were not compressed."""
    return path.with_suffix("") if path.suffix.lower() == _GZIP else path


@contextmanager
def _unpacking(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error):
        fix = "copy it again, or unpack it with a program that says more"
        raise _refused("the file is not compressed by gzip as its name says, is damaged, or ends too early", path, fix=fix) from None  # fmt: skip


def _records(path: Path, delimiter: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    """Where a row begins in the file, counting its lines from 1, and its cells."""
    line, ends = 1, set()
    with (
        file_errors(path), _unpacking(path), _open(path, "rt", newline="", encoding=encoding) as file,
        _decoding(path, encoding),
    ):  # fmt: skip
        source = _Lines(file, path)
        reader = csv.reader(source, delimiter=delimiter, strict=True)
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                fix = 'put text in quotes as "...", with quotes inside doubled, and close them'
                raise _refused(
                    f"quotation marks or cells are not those of a table: {error}", path, f", line {line}", fix=fix
                ) from None
            if cells is None:
                return
            ends.add(source.end)
            if "\r" in ends and len(ends - {""}) > 1:
                raise _refused("some lines end with a carriage return alone, and others do not", path, f", line {line}",
                               fix="write the file with one kind of line ends")  # fmt: skip
            yield line, cells
            line = reader.line_num + 1


class _Lines:
    """The lines of a file, checked; `end` is how the last one ended."""

    def __init__(self, file: IO[str], path: Path) -> None:
        self._file, self._path, self._number, self.end = file, path, 0, ""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        text = self._file.readline(_LINE_CHARACTERS)
        if not text:
            raise StopIteration
        self._number += 1
        where = f", line {self._number}"
        if "\0" in text:
            raise _refused("there are NUL bytes in the text", self._path, where, fix="if the file is in UTF-16, --encoding utf-16-le or utf-16-be (in Python encoding=); else correct it")  # fmt: skip
        self.end = text[len(text.rstrip("\r\n")) :][-2:]
        if not self.end and len(text) == _LINE_CHARACTERS:
            raise _refused(
                f"a line has more than {_LINE_CHARACTERS} characters", self._path, where, fix="is this a table?"
            )
        self.end = self.end if self.end in ("", "\n", "\r\n") else "\r"
        return text.removeprefix("\ufeff") if self._number == 1 else text  # the mark of the encoding


@contextmanager
def _decoding(path: Path, encoding: str) -> Iterator[None]:
    try:
        yield
    except UnicodeError:
        line = _undecodable_line(path, encoding)
        fix = f"say how it is written: --encoding cp1252{_in_python('cp1252')} for files of Excel on Windows, latin-1, utf-16, ..."
        raise _refused(f"the file is not text in {encoding}", path, f", line {line}" if line else "", fix=fix) from None


def _undecodable_line(path: Path, encoding: str) -> int:
    """The first line with bytes that are no text; 0 if unknown."""
    try:
        with _open(path, "rt", newline="", encoding=encoding, errors="surrogateescape") as file:
            return next((n for n, text in enumerate(file, 1) if any("\udc80" <= c <= "\udcff" for c in text)), 0)
    except UnicodeError:
        return 0
