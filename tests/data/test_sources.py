"""The same rows out of every kind of file and frame, with what each kind does to them on the way."""

from __future__ import annotations

import datetime as dt
import re
import zipfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pandas
import pyarrow as pa
import pytest
from openpyxl.utils.datetime import CALENDAR_MAC_1904
from pyarrow import parquet

from securemodel import data
from securemodel.data.normalize import joined
from securemodel.errors import InputError

SCHEMA = data.Schema.parse("""
[table]
keys = ["id"]
minimum = 1
[columns.number]
owner = "bank"
kind = "number"
low = -1e9
high = 1e9
missing = true
[columns.whole]
owner = "bank"
kind = "integer"
low = -9223372036854775808
high = 9223372036854775807
missing = true
[columns.flag]
owner = "bank"
kind = "boolean"
missing = true
[columns.city]
owner = "bank"
kind = "category"
values = ["Ghent", "NA", "7"]
missing = true
[columns.day]
owner = "bank"
kind = "date"
low = 1800-01-01
high = 2200-01-01
missing = true
""")
ROWS = [
    ("Ann", 1.5, 7, True, "NA", dt.date(1969, 12, 31)),
    ("bob", None, None, None, None, None),
    ("007", -2.0, -5, False, "Ghent", dt.date(2024, 2, 29)),
]
NAMES = ("id", *SCHEMA.columns)
ARROW = pa.table({name: [row[at] for row in ROWS] for at, name in enumerate(NAMES)})
FRAME = ARROW.to_pandas()


class Streams:
    """A frame of which nothing is known but that Arrow can read it."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


class Gives:
    """A frame of which nothing is known but that it becomes one of pandas."""

    def to_pandas(self) -> pandas.DataFrame:
        return FRAME


def excel(path: Path, rows: list[Any], sheet: str = "Sheet", **formats: str) -> Path:
    book = openpyxl.Workbook()
    book.active.title = sheet
    for row in rows:
        book.active.append(list(row))
    for cell, form in formats.items():
        book.active[cell].number_format = form
    book.save(path)
    return path


def text(path: Path) -> Path:
    FRAME.to_csv(path, index=False)
    return path


def sources(folder: Path) -> dict[str, Any]:
    parquet.write_table(ARROW, folder / "own.parquet", row_group_size=2)
    return {
        "csv": text(folder / "own.csv"), "parquet": folder / "own.parquet", "arrow": ARROW, "stream": Streams(ARROW),
        "excel": excel(folder / "own.xlsx", [NAMES, *ROWS]), "pandas": FRAME, "to_pandas": Gives(),
        "pandas of Arrow": ARROW.to_pandas(types_mapper=pandas.ArrowDtype),
        "nullable": FRAME.convert_dtypes(), "text": pandas.read_csv(folder / "own.csv", dtype=str, keep_default_na=False),
        "dictionaries": ARROW.set_column(4, "city", ARROW["city"].dictionary_encode()),
        "categories": FRAME.assign(city=FRAME["city"].astype("category")),
        "timestamps": ARROW.set_column(5, "day", ARROW["day"].cast(pa.timestamp("ns"))),
        "large text": ARROW.set_column(0, "id", ARROW["id"].cast(pa.large_string())),
        "views of text": ARROW.set_column(0, "id", ARROW["id"].cast(pa.string_view())),
        "decimals": ARROW.set_column(1, "number", ARROW["number"].cast(pa.decimal128(10, 2))),
        "chunks": pa.concat_tables([ARROW.slice(0, 1), ARROW.slice(1, 1), ARROW.slice(2)]),
    }  # fmt: skip


KINDS = ("csv", "parquet", "arrow", "stream", "excel", "pandas", "to_pandas", "pandas of Arrow", "nullable", "text",
         "dictionaries", "categories", "timestamps", "large text", "views of text", "decimals", "chunks")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_the_same_table(tmp_path: Path, kind: str) -> None:
    table = data.read(data.table("bank", sources(tmp_path)[kind]), SCHEMA)
    assert table.ids == (joined(["ann"]), joined(["bob"]), joined(["007"]))
    assert [table.columns[name].tolist() for name in SCHEMA.columns] == [
        [1.5, 0, -2], [7, 0, -5], [1, 0, 0], [1, 0, 0], [-1, 0, 19782],
    ]  # fmt: skip
    assert all(table.missing[name].tolist() == [False, True, False] for name in SCHEMA.columns)
    assert table.digest == data.read(data.table("bank", ARROW), SCHEMA).digest
    assert table.places.tolist() == ([2, 3, 4] if kind in ("csv", "excel") else [1, 2, 3])


@pytest.fixture
def column(tmp_path: Path) -> Callable[..., data.Table]:
    """Reads one column of the schema, or the id alone, out of a frame or a sheet of these cells."""

    def column(name: str, cells: Any, sheet: bool = False, rule: str = "text", **formats: str) -> data.Table:
        lines = SCHEMA_OF[name].format(rule=rule)
        if sheet:
            rows = [(name, "more"), *((cell, "x") for cell in cells)]
            rows = [("id", *row) for row in rows[:1]] + [(f"i{at}", *row) for at, row in enumerate(rows[1:])]
            if name == "id":
                rows = [row[1:] for row in rows]
            source: Any = excel(tmp_path / "own.xlsx", rows, **formats)
        else:
            ids = {} if name == "id" else {"id": [f"i{at}" for at in range(len(cells))]}
            source = pa.table({**ids, name: cells, "more": ["x"] * len(cells)})
        return data.read(data.table("bank", source), data.Schema.parse(lines))

    return column


HEAD = '[table]\nkeys = ["id"]\nminimum = 1\n[keys.id]\nnormalize = "{rule}"\n'
SCHEMA_OF = {
    name: HEAD + f'[columns.{name}]\nowner = "bank"\nmissing = true\n' + rest
    for name, rest in {
        "number": 'kind = "number"\nlow = -1e300\nhigh = 1e300\n',
        "whole": 'kind = "integer"\nlow = -9223372036854775808\nhigh = 9223372036854775807\n',
        "flag": 'kind = "boolean"\n', "city": 'kind = "category"\nvalues = ["Ghent", "7", "9007199254740993"]\n',
        "day": 'kind = "date"\nlow = 1800-01-01\nhigh = 2200-01-01\n',
    }.items()
}  # fmt: skip
SCHEMA_OF["id"] = HEAD + '[columns.more]\nowner = "bank"\nkind = "category"\nvalues = ["x"]\n'


MORE = '[columns.more]\nowner = "bank"\nkind = "number"\nlow = 0\nhigh = 9\nmissing = true\n'


def refused(read: Callable[[], Any], *says: str) -> None:
    with pytest.raises(data.TableErrors) as caught:
        read()
    assert all(said in str(caught.value) for said in says), str(caught.value)


# ---- typed files
def test_whole_numbers_never_pass_through_floats(column) -> None:
    cells = pa.array([2**53 + 1, None, -(2**63), 2**63 - 1], pa.int64())
    assert column("whole", cells).columns["whole"].tolist() == [2**53 + 1, 0, -(2**63), 2**63 - 1]
    assert column("id", pa.array([2**53 + 1, 7], pa.int64())).ids == (joined(["9007199254740993"]), joined(["7"]))
    refused(lambda: column("id", pa.array([2**53 + 1, None], pa.int64())), "rows without an id: 1 row, row 2")
    assert column("city", pa.array([2**53 + 1, 7], pa.int64())).columns["city"].tolist() == [2, 1]
    refused(lambda: column("whole", pa.array([2**63], pa.uint64())), "a whole number beyond 64 bits")
    assert column("whole", pa.array([5], pa.uint64())).columns["whole"].tolist() == [5]


def test_floats_that_are_whole_numbers(column) -> None:
    assert column("whole", [7.0, float("nan"), -3.0]).missing["whole"].tolist() == [False, True, False]
    assert column("id", [7.0, 12345.0]).ids == (joined(["7"]), joined(["12345"]))
    for name in ("whole", "id", "city"):
        refused(lambda name=name: column(name, [2.0**53, 7.0]), "a whole number above 2^53 that its file holds only roughly: 1 cell, row 1")  # fmt: skip
    refused(lambda: column("whole", [0.5]), "a fraction where a whole number is due")
    refused(lambda: column("id", [0.5]), "something else than text or a whole number")
    refused(lambda: column("whole", [float("inf")]), "an infinite number")
    refused(lambda: column("number", [1.0, float("-inf")]), "an infinite number: 1 cell, row 2")


def test_what_a_typed_column_may_not_hold(column) -> None:
    refused(lambda: column("number", [True]), "something else than a number")
    refused(lambda: column("whole", [True]), "something else than a number")
    refused(lambda: column("flag", [2]), "something else than 0 or 1")
    assert column("flag", [1.0, 0.0, None]).columns["flag"].tolist() == [1, 0, 0]
    refused(lambda: column("city", [True]), "something else than text")
    refused(lambda: column("day", [7]), "something else than a date")
    refused(lambda: column("number", [[1.0]]), "a value of the type list<")
    refused(lambda: column("id", [b"x"]), "a value of the type binary")
    refused(lambda: column("id", [dt.date(2024, 1, 1)]), "a date where a category or an id is due")
    assert column("id", [dt.date(2024, 1, 2)], rule="date").ids == (joined(["2024-01-02"]),)
    assert column("id", pa.array([Decimal(7), Decimal(9007199254740993)])).ids[1] == joined(["9007199254740993"])
    refused(lambda: column("id", pa.array([Decimal("7.5")])), "something else than text or a whole number")
    assert column("number", pa.array([1.5, 2], pa.float16())).columns["number"].tolist() == [1.5, 2]


def test_points_in_time_are_dates_at_midnight(column) -> None:
    at = [dt.datetime(1969, 12, 31), dt.datetime(2024, 2, 29, 0, 0, 0, 1), None, dt.datetime(1850, 1, 1)]
    for unit in ("s", "us", "ns"):
        cells = pa.array([at[0], None, at[3]], pa.timestamp(unit))
        assert column("day", cells).columns["day"].tolist() == [-1, 0, -43829]
    refused(lambda: column("day", pa.array(at, pa.timestamp("ns"))), "a time of day where a date is due: 1 cell, row 2")
    zone = pa.array([dt.datetime(2024, 1, 1, 23)], pa.timestamp("s", "Europe/Brussels"))
    assert column("day", zone).columns["day"].tolist() == [19724], "midnight in Brussels"
    refused(lambda: column("day", pa.array([dt.datetime(2024, 1, 1)], pa.timestamp("s", "Europe/Brussels"))), "a time")


def test_text_that_is_none(column) -> None:
    offsets = pa.py_buffer(np.array([0, 1, 2], np.int32))
    text = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"a\xff")])
    refused(lambda: column("id", text), "text that is not in UTF-8: 1 cell, row 2")
    frame = pandas.DataFrame({"id": pandas.Series(["\ud800", "b"], dtype=object), "more": ["x", "x"]})
    schema = data.Schema.parse(SCHEMA_OF["id"].format(rule="exact"))
    refused(lambda: data.read(data.table("bank", frame), schema), "an id with a character that Unicode does not know")


def test_columns_of_objects(tmp_path: Path) -> None:
    frame = pandas.DataFrame({"id": np.array([7, "b", 8.0], object), "number": np.array([1, 2.5, None], object),
                              "whole": np.array([np.int64(5), pandas.NA, "6"], object), "flag": np.array([True, np.bool_(False), None], object),
                              "city": np.array([7, np.nan, "NA"], object),
                              "day": np.array([pandas.Timestamp("2024-01-01"), pandas.NaT, dt.date(2024, 1, 2)], object)})  # fmt: skip
    table = data.read(data.table("bank", frame), SCHEMA)
    assert table.ids == (joined(["7"]), joined(["b"]), joined(["8"]))
    assert [table.columns[name].tolist() for name in SCHEMA.columns] == [[1, 2.5, 0], [5, 0, 6], [1, 0, 0], [2, 0, 1], [19723, 0, 19724]]  # fmt: skip


@pytest.mark.parametrize("series, says", [
    (pandas.Series([1 + 2j]), "a value of the type complex128"),
    (pandas.Series(pandas.period_range("2024-01", periods=1, freq="M")), "a value of the type extension<pandas.period"),
    (pandas.Series([Decimal("Infinity")]), "an infinite number"),
])  # fmt: skip
def test_columns_of_pandas_that_no_schema_has(series: Any, says: str) -> None:
    """A period is stored as a count of months, which would pass for a number."""
    schema = data.Schema.parse('[columns.number]\nowner = "bank"\nkind = "number"\nlow = 0\nhigh = 9e9\n')
    refused(lambda: data.read(data.table("bank", pandas.DataFrame({"number": series})), schema), says)


def test_columns_of_pandas_of_unusual_kinds() -> None:
    frame = pandas.DataFrame({"id": pandas.Series([np.str_("7"), np.str_("b")], dtype=object), "number": [Decimal("1.5"), Decimal("NaN")],
                              "whole": pandas.arrays.SparseArray([0, 5]), "flag": pandas.arrays.SparseArray([True, False]),
                              "city": pandas.Categorical(["7", None]), "day": pandas.to_datetime(["2024-01-01", None])})  # fmt: skip
    table = data.read(data.table("bank", frame), SCHEMA)
    assert table.ids == (joined(["7"]), joined(["b"]))
    assert [table.columns[name].tolist() for name in SCHEMA.columns] == [[1.5, 0], [0, 5], [1, 0], [2, 0], [19723, 0]]
    assert [table.missing[name][1] for name in ("number", "whole", "city", "day")] == [True, False, True, True]


def test_cells_that_hold_several_values() -> None:
    for cell in (np.array([1, 2]), [1, 2], {"a": 1}, object()):
        frame = pandas.DataFrame({name: [cell] for name in ("id", *SCHEMA.columns)})
        refused(
            lambda frame=frame: data.read(data.table("bank", frame), SCHEMA), "something else than 0 or 1", "6 problems"
        )


def test_categories_as_polars_has_them(column) -> None:
    words = pa.DictionaryArray.from_arrays(
        pa.array([0, None, 1], pa.uint32()), pa.array(["9007199254740993", "7"]).cast(pa.string_view())
    )
    assert column("city", words).columns["city"].tolist() == [2, 0, 1]
    assert column("city", words).missing["city"].tolist() == [False, True, False]


def test_dates_that_no_calendar_has(column) -> None:
    days = pa.array([0, 2**31 - 1, -(2**31), None], pa.int32()).cast(pa.date32())
    refused(lambda: column("day", days), "a date that no calendar has: the years are 1 to 9999: 2 cells, row 2, 3")
    refused(lambda: column("day", days.cast(pa.date64())), "a date that no calendar has", "2 cells")
    far = pa.array([2**62, None], pa.timestamp("us"))
    refused(lambda: column("day", far), "1 cell, row 1")
    nowhere = pa.array([0], pa.timestamp("s", "Mars/Olympus"))
    refused(lambda: column("day", nowhere), "a value of the type timestamp[s, tz=Mars/Olympus]")


def test_an_index_is_no_column_and_names_may_be_numbers() -> None:
    frame = FRAME.set_index("id")
    with pytest.raises(InputError, match=r"there is no column 'id'(.|\n)*say frame.reset_index\(\)"):
        data.read(data.table("bank", frame), SCHEMA)
    twice = pandas.concat([FRAME, FRAME[["city"]]], axis=1)
    with pytest.raises(InputError, match="a column stands there twice: 'city'"):
        data.read(data.table("bank", twice), SCHEMA)
    assert data.read(data.table("bank", FRAME.rename(columns={"id": 0}), rename={"0": "id"}), SCHEMA).rows == 3


def test_what_is_no_frame() -> None:
    with pytest.raises(InputError, match="a table is not read from a list"):
        data.read(data.table("bank", [1, 2]), SCHEMA)
    for one in (pa.array([1]), pandas.Series([1]), pa.chunked_array([[1]])):
        with pytest.raises(InputError, match="Arrow cannot read this as a table"):
            data.read(data.table("bank", one), SCHEMA)


@pytest.mark.parametrize("setting", [{"sep": 5}, {"encoding": None}, {"date_format": 5}, {"sheet_name": 0}, {"rename": ["id"]},
                                     {"rename": {"id": 5}}])  # fmt: skip
def test_settings_of_another_type(setting) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        data.table("bank", "own.csv", **setting)


def test_what_is_no_parquet(tmp_path: Path) -> None:
    whole = sources(tmp_path)["parquet"].read_bytes()
    for content in (b"", b"PAR1", whole[:-20], b"x" * 100):
        (tmp_path / "bad.parquet").write_bytes(content)
        with pytest.raises(InputError, match="no Parquet file, or it is damaged"):
            data.read(data.table("bank", tmp_path / "bad.parquet"), SCHEMA)


# ---- sheets of Excel
def test_blank_rows_of_a_sheet_are_no_rows(tmp_path: Path) -> None:
    plain = data.Schema.parse('[table]\nkeys = ["id"]\nminimum = 1\n[columns.x]\nowner = "bank"\nkind = "number"\nlow = 0\nhigh = 9\n')  # fmt: skip
    path = excel(tmp_path / "own.xlsx", [(), ("id", "x", None), (1, 5), (), (2, 6), (None, None, "note"), ()])
    refused(lambda: data.read(data.table("bank", path), plain), "rows without an id: 1 row, row 6")
    table = data.read(data.table("bank", path), plain, missing="drop")
    assert table.rows == 2 and table.places.tolist() == [3, 5] and table.ids == (joined(["1"]), joined(["2"]))


def test_ids_that_are_numbers_in_a_sheet(column) -> None:
    refused(lambda: column("id", [12345678901234567], sheet=True), "a whole number above 2^53", "row 2")
    assert column("id", [123.0, "0123"], sheet=True).ids == (joined(["123"]), joined(["0123"]))
    zeros = column("id", [123, 4], sheet=True, A2="000000")
    assert zeros.ids == (joined(["123"]), joined(["4"]))
    assert zeros.notes[0].startswith("column 'id': 1 number shown with zeros in front")
    assert "16 digits" in column("id", [1234567890123450], sheet=True).notes[0]
    refused(
        lambda: column("id", [dt.date(2024, 3, 1)], sheet=True),
        "a date where a category or an id is due",
        "Excel may have made dates",
    )
    refused(lambda: column("id", [True], sheet=True), "something else than text")
    assert column("id", [dt.date(2024, 3, 1)], sheet=True, rule="date").ids == (joined(["2024-03-01"]),)


def test_cells_of_a_sheet(column) -> None:
    assert column("number", [1, 2.5, "3", None, " "], sheet=True).columns["number"].tolist() == [1, 2.5, 3, 0, 0]
    refused(lambda: column("number", ["1,000"], sheet=True), "a number with a comma")
    refused(lambda: column("number", ["#N/A"], sheet=True), "an error of Excel in a cell")
    refused(lambda: column("number", ["=1+1"], sheet=True), "a formula whose result is not in the file: 1 cell, row 2")
    refused(lambda: column("number", [dt.date(2024, 1, 1)], sheet=True), "something else than a number")
    refused(lambda: column("whole", [float(2**53), 2**60], sheet=True), "above 2^53", "2 cells")
    assert column("whole", [7.0, 2**53 - 1], sheet=True).columns["whole"].tolist() == [7, 2**53 - 1]
    refused(lambda: column("day", [45000], sheet=True), "something else than a date")
    refused(lambda: column("day", [dt.time(10)], sheet=True), "a time, or a duration")
    refused(lambda: column("day", [dt.datetime(2024, 1, 1, 10)], sheet=True), "a time of day")
    assert column("day", [dt.date(2024, 1, 1), "2024-01-02"], sheet=True).columns["day"].tolist() == [19723, 19724]


@pytest.mark.parametrize("cells, at", [("A2:A3", "row 3"), ("B2:B4", "row 3, 4"), ("A2:B2", "row 2")])
def test_cells_that_are_merged(tmp_path: Path, cells: str, at: str) -> None:
    """Excel shows one value over all of them, and stores it in the first: the others would pass for missing."""
    schema = data.Schema.parse(f'[table]\nkeys = ["id"]\nminimum = 1\n{MORE}')
    path = tmp_path / "own.xlsx"
    excel(path, [("id", "more"), ("a", 1), ("b", 2), ("c", 3)])
    book = openpyxl.load_workbook(path)
    book.active.merge_cells(cells)
    book.save(path)
    refused(
        lambda: data.read(data.table("bank", path), schema), "a cell that is merged with the one above or before it", at
    )


def test_a_formula_may_give_an_empty_text(tmp_path: Path) -> None:
    """As =IF(A2="", "", 1) does: that is no value, and not one which is not in the file."""
    path = excel(tmp_path / "plain.xlsx", [("id", "more"), ("a", 1)])
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "own.xlsx", "w") as new:
        for name in old.namelist():
            text = old.read(name)
            new.writestr(name, re.sub(rb'<c r="B2"[^>]*>.*?</c>', b'<c r="B2" t="str"><f>""</f><v></v></c>', text))
    schema = data.Schema.parse(f'[table]\nkeys = ["id"]\nminimum = 1\n{MORE}')
    assert data.read(data.table("bank", tmp_path / "own.xlsx"), schema).missing["more"].tolist() == [True]


def test_text_of_a_sheet_is_as_it_is_shown(tmp_path: Path) -> None:
    path = excel(tmp_path / "own.xlsx", [("id", "more"), ("a_x000D_\nb", "x"), ("_x0041_", "x"), ("_x_", "x")])
    schema = data.Schema.parse(SCHEMA_OF["id"].format(rule="exact"))
    ids = data.read(data.table("bank", path), schema).ids
    assert ids == tuple(joined([name]) for name in ("a\r\nb", "_x0041_", "_x_"))
    for text in ("ax005F_b", "_x005F_x0041_"):  # openpyxl would read ab, and _x0041_
        path = excel(tmp_path / "own.xlsx", [("id", "more"), (text, "x")])
        with pytest.raises(InputError, match="text with the characters x005F_"):
            data.read(data.table("bank", path), schema)


def test_numbers_that_are_shown_as_dates(tmp_path: Path) -> None:
    path = excel(tmp_path / "own.xlsx", [("id", "day"), ("a", 45292), ("b", 1e9), ("c", 45292.25)],
                 B2="yyyy-mm-dd", B3="yyyy-mm-dd", B4="yyyy-mm-dd")  # fmt: skip
    schema = data.Schema.parse(SCHEMA_OF["day"].format(rule="text"))
    refused(lambda: data.read(data.table("bank", path), schema), "an error of Excel in a cell, such as #N/A: 1 cell, row 3",
            "a time of day where a date is due: 1 cell, row 4")  # fmt: skip


def test_sheets_are_named_where_there_are_several(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.title = "notes"
    second = book.create_sheet("clients")
    for row in (NAMES, *ROWS):
        second.append(row)
    path = tmp_path / "own.xlsx"
    book.save(path)
    with pytest.raises(InputError, match="2 visible sheets: 'notes', 'clients'"):
        data.read(data.table("bank", path), SCHEMA)
    with pytest.raises(InputError, match="no sheet 'client'"):
        data.read(data.table("bank", path, sheet_name="client"), SCHEMA)
    with pytest.raises(InputError, match="sheet 'notes' is empty"):
        data.read(data.table("bank", path, sheet_name="notes"), SCHEMA)
    assert data.read(data.table("bank", path, sheet_name="clients"), SCHEMA).rows == 3
    book["notes"].sheet_state = "hidden"
    book.save(path)
    assert data.read(data.table("bank", path), SCHEMA).rows == 3


def test_a_sheet_that_says_a_wrong_size_is_read_whole(tmp_path: Path) -> None:
    whole = excel(tmp_path / "own.xlsx", [NAMES, *ROWS])
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(tmp_path / "small.xlsx", "w") as out:
        for entry in archive.namelist():
            content = archive.read(entry)
            assert entry != "xl/worksheets/sheet1.xml" or b'<dimension ref="A1:F4"' in content
            out.writestr(entry, content.replace(b'<dimension ref="A1:F4"', b'<dimension ref="A1:B2"'))
    wanted = data.read(data.table("bank", whole), SCHEMA).digest
    assert data.read(data.table("bank", tmp_path / "small.xlsx"), SCHEMA).digest == wanted


def test_dates_that_are_counted_from_1904(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.epoch = CALENDAR_MAC_1904
    for row in (NAMES, *ROWS):
        book.active.append(row)
    book.save(tmp_path / "own.xlsx")
    table = data.read(data.table("bank", tmp_path / "own.xlsx"), SCHEMA)
    assert table.columns["day"].tolist() == [-1, 0, 19782]


def test_what_is_no_workbook(tmp_path: Path) -> None:
    path = tmp_path / "own.xlsx"
    whole = excel(path, [NAMES, *ROWS]).read_bytes()
    for content in (b"", b"id,x\n1,2\n", b"\xd0\xcf\x11\xe0" + bytes(600), whole[: len(whole) // 2], b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="no workbook of Excel"):
            data.read(data.table("bank", path), SCHEMA)


def test_long_sources_come_in_blocks(monkeypatch, tmp_path: Path) -> None:
    for size in ("sources.LINES", "arrow.ROWS", "excel.LINES"):
        monkeypatch.setattr(f"securemodel.data.{size}", 2)
    made = sources(tmp_path)
    tables = {kind: data.read(data.table("bank", source), SCHEMA) for kind, source in made.items()}
    assert {table.digest for table in tables.values()} == {data.read(data.table("bank", ARROW), SCHEMA).digest}
    for kind, table in tables.items():
        assert table.places.tolist() == ([2, 3, 4] if kind in ("csv", "excel") else [1, 2, 3]), kind
