"""Columns of Parquet files and of frames in memory (pandas, polars, Arrow, DuckDB and others), by their types."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

from protocols.errors import InputError, explain
from protocols.files import file_errors
from securemodel.data.cells import ROWS, Bad, Block, Form, Opened, missing_package, renamed

_SHOWN = 200
TIME_OF_DAY = Bad("a time of day where a date is due")
NO_TEXT = Bad("text that is not in UTF-8")
NO_DATE = Bad("a date that no calendar has: the years are 1 to 9999")
_FIRST_DAY, _LAST_DAY = (day.toordinal() - date(1970, 1, 1).toordinal() for day in (date.min, date.max))
_PLAIN_EXTENSIONS = ("arrow.bool8", "arrow.json")  # whose storage is what a person would write


def open_parquet(path: Path, form: Form) -> Opened:
    """Opens a Parquet file. Raises InputError, FileError."""
    pyarrow = _pyarrow("a Parquet file")
    from pyarrow import parquet

    with file_errors(path), _unreadable(path):
        file = parquet.ParquetFile(path)
        raw = list(file.schema_arrow.names)
    names = renamed(raw, form, str(path))

    def blocks(columns: Sequence[str]) -> Iterator[Block]:
        at = [names.index(column) for column in columns]
        start = 1
        with file_errors(path), _unreadable(path):
            for batch in file.iter_batches(ROWS, columns=[raw[index] for index in at] or raw[:1]):
                arrays = {column: batch.column(raw[index]) for column, index in zip(columns, at, strict=True)}
                yield _block(start, batch.num_rows, arrays, pyarrow)
                start += batch.num_rows

    return Opened(str(path), "row", names, blocks)


def open_frame(frame: Any, form: Form) -> Opened:
    """Opens a frame of pandas, or any object with `__arrow_c_stream__` or `to_pandas`. Raises InputError."""
    where = f"a {type(frame).__module__.split('.')[0]} {type(frame).__name__}"
    pyarrow = _pyarrow(where)
    if not _is_pandas(frame) and not hasattr(frame, "__arrow_c_stream__"):
        if not hasattr(frame, "to_pandas"):
            fix = "give a path, or a frame: of pandas, or anything with __arrow_c_stream__ or to_pandas (polars, Arrow, DuckDB)"
            raise InputError(explain(f"a table is not read from a {type(frame).__name__}", fix=fix))
        frame = frame.to_pandas()
    if _is_pandas(frame):
        return _open_pandas(frame, form, where, pyarrow)
    table = frame if isinstance(frame, pyarrow.Table) else _as_table(frame, where, pyarrow)
    names = renamed(table.column_names, form, where)

    def blocks(columns: Sequence[str]) -> Iterator[Block]:
        at = [names.index(column) for column in columns]
        for start in range(0, table.num_rows, ROWS):
            part = table.slice(start, ROWS)
            arrays = {c: part.column(index).combine_chunks() for c, index in zip(columns, at, strict=True)}
            yield _block(start + 1, part.num_rows, arrays, pyarrow)

    return Opened(where, "row", names, blocks)


def _as_table(frame: Any, where: str, pyarrow: Any) -> Any:
    try:
        return pyarrow.table(frame)
    except (pyarrow.ArrowException, TypeError) as error:
        why = str(error).splitlines()[0][:_SHOWN]  # of types, before any value was looked at
        fix = "give a frame with columns, not a single one; cast columns whose type Arrow does not have, or leave them out"
        raise InputError(explain("Arrow cannot read this as a table", where=where, why=why, fix=fix)) from None


def _open_pandas(frame: Any, form: Form, where: str, pyarrow: Any) -> Opened:
    names = renamed([str(name) for name in frame.columns], form, where)
    index = [str(name) for name in frame.index.names if name is not None]
    seen = f"the index {', '.join(map(repr, index))} is no column: say frame.reset_index()" if index else ""

    def blocks(columns: Sequence[str]) -> Iterator[Block]:
        at = [names.index(column) for column in columns]
        for start in range(0, len(frame), ROWS):
            part = frame.iloc[start : start + ROWS]
            cells = {c: _of_pandas(part.iloc[:, index], pyarrow) for c, index in zip(columns, at, strict=True)}
            yield _block(start + 1, len(part), cells, pyarrow)

    return Opened(where, "row", names, blocks, index=seen)


def _of_pandas(series: Any, pyarrow: Any) -> Any:
    """A column of pandas as an array of Arrow; one of objects of several kinds as these objects."""
    import pandas

    if isinstance(series.dtype, pandas.SparseDtype):
        series = series.sparse.to_dense()
    if series.dtype == object or isinstance(series.dtype, pandas.CategoricalDtype):
        return [None if _is_missing(value, pandas) else _plain(value) for value in series]
    try:
        return pyarrow.Array.from_pandas(series)
    except UnicodeError:  # half of a pair of UTF-16
        return [None if _is_missing(value, pandas) else _plain(value) for value in series]
    except pyarrow.ArrowException:
        return _all_bad(series.notna(), series.dtype)


def _is_missing(value: Any, pandas: Any) -> bool:
    if isinstance(value, (float, Decimal)):
        return math.isnan(value) if isinstance(value, float) else value.is_nan()
    return value is None or value is pandas.NA or value is pandas.NaT


def _plain(value: Any) -> Any:
    """A scalar of NumPy or pandas as one of Python."""
    if hasattr(value, "to_pydatetime"):
        return TIME_OF_DAY if getattr(value, "nanosecond", 0) else value.to_pydatetime()
    if isinstance(value, str):
        return str(value)
    return value.item() if hasattr(value, "item") and not hasattr(value, "__len__") else value


def _block(start: int, count: int, columns: dict[str, Any], pyarrow: Any) -> Block:
    made = {n: _simple(c, pyarrow) if isinstance(c, (pyarrow.Array, pyarrow.ChunkedArray)) else c for n, c in columns.items()}  # fmt: skip
    return Block(range(start, start + count), made)


def _simple(array: Any, pyarrow: Any) -> Any:
    """Numbers stay an array of Arrow; all else becomes objects of Python."""
    types = pyarrow.types
    if isinstance(array, pyarrow.ChunkedArray):
        array = array.combine_chunks()
    if types.is_dictionary(array.type):
        if types.is_string_view(array.type.value_type):
            return array.to_pylist()  # which Arrow does not decode; polars has its categories so
        array = array.dictionary_decode()
    if isinstance(array, pyarrow.ExtensionArray):
        if array.type.extension_name not in _PLAIN_EXTENSIONS:
            return _all_bad(array.is_valid().to_pylist(), array.type)
        array = array.storage
    if types.is_integer(array.type) or types.is_float32(array.type) or types.is_float64(array.type):
        return array
    if types.is_float16(array.type):
        return array.cast(pyarrow.float32())
    if types.is_timestamp(array.type):
        return _days_of_times(array, pyarrow)
    if types.is_date(array.type):
        return _days(array.cast(pyarrow.date32(), safe=False), pyarrow)
    if types.is_time(array.type) or types.is_duration(array.type) or types.is_nested(array.type) or _is_bytes(array.type, types):  # fmt: skip
        return _all_bad(array.is_valid().to_pylist(), array.type)
    try:
        return array.to_pylist()
    except UnicodeDecodeError:  # Arrow does not look at the bytes before they are asked for
        return [_decoded(text) for text in array.cast(pyarrow.large_string()).cast(pyarrow.large_binary()).to_pylist()]


def _decoded(text: bytes | None) -> str | Bad | None:
    try:
        return None if text is None else text.decode()
    except UnicodeDecodeError:
        return NO_TEXT


def _all_bad(there: Iterable[bool], kind: Any) -> list[Any]:
    bad = Bad(f"a value of the type {kind}, which no column of a schema has")
    return [bad if valid else None for valid in there]


def _is_bytes(kind: Any, types: Any) -> bool:
    return any(check(kind) for check in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary))


def _days_of_times(array: Any, pyarrow: Any) -> list[Any]:
    """Points in time as dates, where they are midnights of their own time zone."""
    from pyarrow import compute

    try:
        local = compute.local_timestamp(array) if array.type.tz else array
    except pyarrow.ArrowException:  # of a time zone that this machine does not know
        return _all_bad(array.is_valid().to_pylist(), array.type)
    dates = local.cast(pyarrow.date32(), safe=False)
    midnight = compute.equal(dates.cast(local.type, safe=False), local).to_pylist()
    return [TIME_OF_DAY if whole is False else day for day, whole in zip(_days(dates, pyarrow), midnight, strict=True)]


def _days(dates: Any, pyarrow: Any) -> list[Any]:
    """Days since 1970-01-01 as dates; those that Python's dates do not have are bad."""
    from pyarrow import compute

    count = dates.cast(pyarrow.int32())
    known = compute.and_(compute.greater_equal(count, _FIRST_DAY), compute.less_equal(count, _LAST_DAY))
    made = compute.if_else(known, dates, None).to_pylist()
    return [NO_DATE if there is False else day for day, there in zip(made, known.to_pylist(), strict=True)]


def _is_pandas(frame: Any) -> bool:
    return any(f"{kind.__module__.split('.')[0]}.{kind.__name__}" == "pandas.DataFrame" for kind in type(frame).__mro__)


def _pyarrow(what: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise missing_package("pyarrow", what) from None
    return pyarrow


@contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    """What Arrow says of a file that it cannot read becomes an InputError without contents."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(explain("this is no Parquet file, or it is damaged", where=str(path),
                                 fix="write it again; its name says what kind of file it is")) from None  # fmt: skip
