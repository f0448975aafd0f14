"""A party's table out of text: what is read is what stands there, or everything wrong with it is said at once."""

from __future__ import annotations

import gzip
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import public_reason
from securemodel import data
from securemodel.data.normalize import joined
from securemodel.data.table import read_all
from securemodel.errors import InputError

SCHEMA = """
[table]
keys = ["id"]
minimum = 1
{table}
[keys.id]
normalize = "{rule}"
[columns.x]
owner = "bank"
kind = "{kind}"
{column}
[columns.theirs]
owner = "shop"
kind = "boolean"
"""
BOUNDS = {"number": "low = -1e9\nhigh = 1e9", "integer": "low = -9223372036854775808\nhigh = 9223372036854775807",
          "date": "low = 1800-01-01\nhigh = 2200-01-01", "category": 'values = ["Ghent", "NA", "\u00e9"]', "boolean": ""}  # fmt: skip
SECRET = "98765"


def schema(kind: str = "number", column: str = "missing = true", table: str = "", rule: str = "text", bounds: str = ""):
    text = SCHEMA.format(kind=kind, column=f"{bounds or BOUNDS[kind]}\n{column}", table=table, rule=rule)
    return data.Schema.parse(text)


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., data.Table]:
    """Reads a text table with the columns id and x, or the lines that are given."""

    def read(text: str, made: data.Schema | None = None, name: str = "own.csv", **form: Any) -> data.Table:
        options = {key: form.pop(key) for key in ("missing", "duplicates") if key in form}
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return data.read(data.table("bank", path, **form), made or schema(), **options)

    return read


def cells(*texts: str) -> str:
    return "id,x\n" + "".join(f'{row},"{text}"\n' for row, text in enumerate(texts))


def refused(open: Callable[[], Any], *says: str) -> data.TableErrors:
    with pytest.raises(data.TableErrors) as caught:
        open()
    text = str(caught.value)
    assert SECRET not in text and "\u2192" in text
    for said in says:
        assert said in text
    heard = public_reason(caught.value)
    assert heard.startswith("its table has ")
    assert not any(told in heard for told in ("line ", "'x'", "'id'", "own.csv", SECRET, "cell", ": "))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == text and public_reason(copy) == heard
    return caught.value


# ---- what is read
def test_ids_stay_text(read) -> None:
    table = read("id,x\n007,1\n7,2\nNA,3\nnull,4\n1e5,5\n Ann ,6\n")
    assert table.ids == tuple(joined([i]) for i in ("007", "7", "na", "null", "1e5", "ann"))
    assert table.columns["x"].tolist() == [1, 2, 3, 4, 5, 6] and table.places.tolist() == [2, 3, 4, 5, 6, 7]
    assert list(table.columns) == ["x"] and table.rows == 6 and table.notes == ()


READ = {
    "numbers": ("number", ["1", "-2.5", "+3", "1e3", ".5", "5.", " 7 ", "", "nan", "NaN"],
                [1, -2.5, 3, 1000, 0.5, 5, 7, None, None, None]),
    "whole numbers": ("integer", ["9007199254740993", "", "-9223372036854775808", "9223372036854775807", "7.0", "007", "-0"],
                      [9007199254740993, None, -(2**63), 2**63 - 1, 7, 7, 0]),
    "booleans": ("boolean", ["0", "1", "true", "FALSE", "True", ""], [0, 1, 1, 0, 1, None]),
    "dates": ("date", ["1970-01-01", "1969-12-31", "2024-02-29", "2024-02-29 00:00:00", "2024-02-29T00:00:00.000", ""],
              [0, -1, 19782, 19782, 19782, None]),
    "categories": ("category", ["Ghent", "NA", "", "\u00e9", "e\u0301"], [0, 1, None, 2, 2]),
}  # fmt: skip


@pytest.mark.parametrize("what", READ)
def test_values(read, what: str) -> None:
    kind, texts, values = READ[what]
    table = read(cells(*texts), schema(kind))
    assert table.columns["x"].dtype == (np.float64 if kind == "number" else np.int64)
    assert table.missing["x"].tolist() == [value is None for value in values]
    assert table.columns["x"].tolist() == [value or 0 for value in values]
    assert not table.columns["x"].flags.writeable


def test_words_of_a_boolean(read) -> None:
    yes_no = schema("boolean", 'values = ["no", "yes"]')
    assert read(cells("yes", "no"), yes_no).columns["x"].tolist() == [1, 0]
    refused(lambda: read(cells("yes", "1", "NO"), yes_no), "2 cells, line 3, 4")


def test_others(read) -> None:
    table = read(cells("Ghent", "Bruges", "ghent", " NA"), schema("category", "other = true"))
    assert table.columns["x"].tolist() == [0, 3, 3, 3]
    assert table.notes == ("column 'x': 3 values in the class of others",)


def test_how_a_file_is_written(read) -> None:
    assert read("id;x\n1;1,5\n2;2\n", sep=";", decimal=",").columns["x"].tolist() == [1.5, 2]
    refused(lambda: read("id;x\n1;1.5\n", sep=";", decimal=","), "something else than a number")
    assert read("id,x\n1,-\n2,n.a.\n3,5\n", na_values=["-", "n.a."]).missing["x"].tolist() == [True, True, False]
    german = read(cells("31.12.1969", "01.01.1970"), schema("date"), date_format="%d.%m.%Y")
    assert german.columns["x"].tolist() == [-1, 0]
    assert read("ID,INKOMEN,geheim\n1,5,9\n", rename={"ID": "id", "INKOMEN": "x"}).columns["x"].tolist() == [5]
    assert read("id,x\n\u00e9,5\n".encode("cp1252"), encoding="cp1252").ids == (joined(["\u00e9"]),)
    assert read(gzip.compress(b"id,x\n1,5\n"), name="own.csv.gz").columns["x"].tolist() == [5]
    assert read("id\tx\n1\t5\n", name="own.tsv").columns["x"].tolist() == [5]
    assert read(gzip.compress(b"id\tx\n1\t5\n"), name="own.tsv.gz").columns["x"].tolist() == [5]


def test_a_file_is_not_in_memory_as_a_whole(tmp_path: Path) -> None:
    rows, path = 12_000, tmp_path / "own.csv"
    with path.open("w") as file:
        file.write("id,x,note\n")
        file.writelines(f"person{row}@example.org,{row},{'n' * 1000}\n" for row in range(rows))
    source, made = data.table("bank", path), schema(bounds="low = 0\nhigh = 1e6")
    tracemalloc.start()
    try:
        table = data.read(source, made)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert table.rows == rows and peak < path.stat().st_size / 2, "of 12 MB, most in a column that nobody asked for"


def test_keys_of_several_columns(read) -> None:
    keys = schema(table="").text and data.Schema.parse(
        SCHEMA.format(kind="boolean", column="", table="", rule="digits").replace('["id"]', '["id", "born"]')
        + '[keys.born]\nnormalize = "date"\n'
    )
    table = read("born,id,x\n2001-02-03,+32 470,1\n2001-02-04,0032470,0\n", keys)
    assert table.ids == (joined(["32470", "2001-02-03"]), joined(["0032470", "2001-02-04"]))
    table = read("born,id,x\n3/2/2001,32470,1\n", keys, date_format="%d/%m/%Y")
    assert table.ids == (joined(["32470", "2001-02-03"]),)
    refused(lambda: read("born,id,x\n2001-02-30,32470,1\n2001-02-03,x,1\n", keys),
            "column 'born': something else than a date: 1 cell, line 2", "column 'id': an id without a digit")  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-1e9, 1e9), st.sampled_from([0.0, -0.0, 1e-300, 5e-324])), min_size=1))
def test_numbers_are_those_that_python_writes(tmp_path_factory, values: list[float | None]) -> None:
    path = tmp_path_factory.mktemp("x") / "own.csv"
    path.write_text(cells(*("" if value is None else repr(value) for value in values)))
    table = data.read(data.table("bank", path), schema())
    assert table.columns["x"].tolist() == [value or 0 for value in values]
    assert table.missing["x"].tolist() == [value is None for value in values]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, -1, 2**53 + 1, 2**62]) | st.none(), min_size=1))  # fmt: skip
def test_whole_numbers_are_exact(tmp_path_factory, values: list[int | None]) -> None:
    path = tmp_path_factory.mktemp("x") / "own.csv"
    path.write_text(cells(*("" if value is None else str(value) for value in values)))
    assert data.read(data.table("bank", path), schema("integer")).columns["x"].tolist() == [v or 0 for v in values]


def test_rows_that_are_blank_do_not_count(read) -> None:
    table = read("id,x\n\n1,5\n,\n\n  , \n2,6\n\n,,\n"[:-4] + "\n")
    assert table.rows == 2 and table.places.tolist() == [3, 7]


def test_without_keys_rows_belong_together_by_their_order(read) -> None:
    plain = data.Schema.parse('[columns.x]\nowner = "bank"\nkind = "number"\nlow = 0\nhigh = 9\nmissing = true\n')
    table = read("x\n1\n2\n\n\n", plain)
    assert table.ids is None and table.columns["x"].tolist() == [1, 2]
    refused(lambda: read("x\n1\n\n2\n", plain), "blank rows between others: 1 row, line 3")


def test_all_parties_have_all_columns_of_a_table_split_by_rows(read) -> None:
    rows = data.Schema.parse('[table]\nsplit = "rows"\n[columns.x]\nkind = "boolean"\n[columns.y]\nkind = "boolean"\n')
    assert list(read("y,x\n1,0\n", rows).columns) == ["x", "y"]


# ---- what is refused
BAD = {
    "text": ("number", SECRET + "x", "column 'x': something else than a number: 1 cell, line 3"),
    "a comma": ("number", "9,8765", "a number with a comma"),
    "thousands": ("number", "98,765,432", "a number with a comma, or with thousands separators"),
    "infinite": ("number", "-inf", "an infinite number"),
    "too large": ("number", "1e999", "an infinite number"),
    "other digits": ("number", "\u0663", "something else than a number"),
    "underscores": ("number", "1_000", "something else than a number"),
    "hexadecimal": ("integer", "0x10", "something else than a number"),
    "true as a number": ("number", "TRUE", "something else than a number"),
    "a fraction": ("integer", "1.5", "a fraction where a whole number is due"),
    "scientific": ("integer", "1e5", "a fraction where a whole number is due"),
    "65 bits": ("integer", "9223372036854775808", "a whole number beyond 64 bits"),
    "a long number": ("integer", "9" * 5000, "a whole number beyond 64 bits"),
    "two": ("boolean", "2", "something else than 0 or 1"),
    "yes": ("boolean", "yes", "something else than 0 or 1"),
    "no date": ("date", "2024-02-30", "something else than a date"),
    "another order": ("date", "31/12/2024", "something else than a date"),
    "a year alone": ("date", "20240101", "something else than a date"),
    "a time of day": ("date", "2024-01-01 10:00:00", "a time of day"),
    "another city": ("category", SECRET, "a category that the schema does not have"),
    "another case": ("category", "ghent", "a category that the schema does not have"),
}


@pytest.mark.parametrize("what", BAD)
def test_cells_that_are_refused(read, what: str) -> None:
    kind, text, said = BAD[what]
    good = {"number": "1", "integer": "1", "boolean": "1", "date": "2024-01-01", "category": "Ghent"}[kind]
    error = refused(lambda: read(cells(good, text, good), schema(kind)), said)
    assert "1 cell, line 3" in str(error) and len(error.kinds) == 1
    assert read(cells(good, good), schema(kind)).rows == 2


@pytest.mark.parametrize("kind", BOUNDS)
def test_missing_values_where_none_may_be(read, kind: str) -> None:
    refused(lambda: read(cells("", ""), schema(kind, "")), "no value", "2 cells, line 2, 3", "missing = true")


def test_bounds(read) -> None:
    bounds = "low = 0.0\nhigh = 10.0"
    text = cells("0", "10", SECRET, "-1e-9", "")
    refused(lambda: read(text, schema(bounds=bounds)), "column 'x': a value out of bounds: 2 cells, line 4, 5")
    table = read(text, schema(bounds=bounds, column='missing = true\noutside = "clip"'))
    assert table.columns["x"].tolist() == [0, 10, 10, 0, 0]
    assert table.notes == ("column 'x': 2 values beyond the bounds, set to them",)
    whole = schema("integer", 'outside = "clip"', bounds="low = -9007199254740993\nhigh = 9007199254740993")
    assert read(cells("9007199254740994", "-9223372036854775808"), whole).columns["x"].tolist() == [
        2**53 + 1,
        -(2**53) - 1,
    ]


def test_everything_at_once(read) -> None:
    lines = ["id,x", "1,98765x", "1,2", ",3", "2,inf", "1.5E+12,4", "3,98765", ""]
    error = refused(
        lambda: read("\n".join(lines), schema(bounds="low = 0\nhigh = 10")),
        "the table of 'bank' has 6 problems", "something else than a number: 1 cell, line 2",
        "ids that stand in several rows: 2 rows, line 2, 3", "rows without an id: 1 row, line 4",
        "an infinite number: 1 cell, line 5", "column 'id': an id in scientific notation", "line 6",
        "a value out of bounds: 1 cell, line 7",
    )  # fmt: skip
    assert len(error.kinds) == 6


def test_problems_before_a_line_that_is_no_row(read) -> None:
    refused(lambda: read("id,x\n1,98765x\n2,3\n4,5,6\n7,y\n"), "something else than a number: 1 cell, line 2",
            "3 cells where the first line has 2", "line 4")  # fmt: skip
    with pytest.raises(InputError, match="3 cells where the first line has 2"):
        read("id,x\n1,2\n4,5,6\n")


def test_many_problems_are_counted(read) -> None:
    error = refused(lambda: read(cells(*["no"] * 2000), schema()), "2,000 cells, line 2, 3, 4, ...")
    assert len(str(error)) < 1000


# ---- ids
def test_rows_without_an_id(read) -> None:
    text = "id,x\n1,5\n,6\n \u200b,7\n2,no\n,no\n"
    refused(
        lambda: read(text), "rows without an id: 3 rows, line 3, 4, 6", "something else than a number: 1 cell, line 5"
    )
    table = read(text.replace("2,no", "2,8"), schema(table='missing = "drop"'))
    assert table.columns["x"].tolist() == [5, 8] and table.places.tolist() == [2, 5]
    assert table.notes == ("3 rows without an id left out",)
    assert read(text.replace("2,no", "2,8"), missing="drop").digest == table.digest
    refused(
        lambda: read(text.replace("2,no", "2,8"), schema(table='missing = "drop"'), missing="error"), "rows without"
    )


REPEATS = "id,x\nann,\nbob,1\nANN,5\neve,\nann ,7\nbob,2\n"


def test_ids_twice_are_an_error(read) -> None:
    refused(lambda: read(REPEATS), "ids that stand in several rows: 5 rows, line 2, 3, 4, ...", 'duplicates = "first"')
    kept = read(REPEATS, duplicates="keep")
    assert kept.rows == 6 and len(set(kept.ids)) == 3


@pytest.mark.parametrize(("rule", "values"), [("first", [5, 1, 0]), ("sum", [12, 3, 0]), ("mean", [6, 1.5, 0])])
def test_rows_of_one_id_become_one(read, rule: str, values: list[float]) -> None:
    table = read(REPEATS, schema(column=f'missing = true\nduplicates = "{rule}"'))
    assert table.ids == tuple(joined([name]) for name in ("ann", "bob", "eve"))
    assert table.columns["x"].tolist() == values and table.missing["x"].tolist() == [False, False, True]
    assert table.places.tolist() == [2, 3, 5] and table.notes == ("2 ids in several rows, 5 in all: they were merged",)
    frame = pandas.DataFrame({"id": ["ann", "bob", "ann", "eve", "ann", "bob"], "x": [None, 1, 5, None, 7, 2]})
    theirs = frame.groupby("id", sort=False)["x"].agg(rule).fillna(0)
    assert theirs.tolist() == values


def test_bounds_are_those_of_merged_rows(read) -> None:
    made = schema(bounds="low = 3.0\nhigh = 12.0", column='missing = true\nduplicates = "sum"')
    assert read(REPEATS, made).columns["x"].tolist() == [12, 3, 0]
    text = REPEATS.replace("7", "98765")
    refused(lambda: read(text, made), "a value out of bounds: 1 cell, line 2")
    refused(lambda: read(REPEATS, schema(column='duplicates = "sum"')), "no value", "1 cell, line 5")


def test_sums_of_whole_numbers_are_exact(read) -> None:
    made = schema("integer", 'duplicates = "sum"')
    assert read("id,x\n1,9223372036854775807\n1,-5\n", made).columns["x"].tolist() == [2**63 - 6]
    assert read("id,x\n1,9007199254740993\n1,1\n", made).columns["x"].tolist() == [2**53 + 2]
    refused(lambda: read("id,x\n1,9223372036854775807\n1,1\n", made), "a sum beyond 64 bits: 1 cell, line 2")


def test_columns_that_have_no_rule_are_named(read) -> None:
    text = SCHEMA.format(kind="number", column=BOUNDS["number"] + '\nduplicates = "sum"', table="", rule="text")
    text += '[columns.y]\nowner = "bank"\nkind = "boolean"\n'
    refused(lambda: read("id,x,y\n1,2,0\n1,3,0\n", data.Schema.parse(text)), "no rule have 'y'")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.none() | st.integers(-9, 9)), min_size=1, max_size=12))
def test_merging_is_what_a_dictionary_does(tmp_path_factory, rows: list[tuple[str, int | None]]) -> None:
    path = tmp_path_factory.mktemp("x") / "own.csv"
    path.write_text("id,x\n" + "".join(f"{name},{'' if value is None else value}\n" for name, value in rows))
    table = data.read(data.table("bank", path), schema("integer", 'missing = true\nduplicates = "sum"'))
    sums: dict[str, list[int]] = {}
    for name, value in rows:
        sums.setdefault(name, []).extend([] if value is None else [value])
    assert table.ids == tuple(joined([name]) for name in sums)
    assert table.columns["x"].tolist() == [sum(values) for values in sums.values()]
    assert table.missing["x"].tolist() == [not values for values in sums.values()]


def test_ids_that_may_have_been_numbers_are_noted(read) -> None:
    assert read("id,x\n1.0,5\n2.0,5\n").notes == (
        "2 ids with '.0' at the end: if they were whole numbers once, write them as text",
    )


def test_ids_that_are_exact(read) -> None:
    table = read("id,x\n1.5E+12,5\n1.5e+12,6\n Ab,7\nab,8\n", schema(rule="exact"))
    assert table.ids == tuple(joined([name]) for name in ("1.5E+12", "1.5e+12", " Ab", "ab"))


# ---- files and calls
@pytest.mark.parametrize(("text", "said"), [
    ("id,y\n1,2\n", "there is no column 'x'"), ("id;x\n1;2\n", "there is no column 'id', 'x'"), ("id,x,x\n1,2,3\n", "a name twice"),
    ("id,x\n1\n", "1 cell where the first line has 2"), ("", "the file is empty"), ('id,x\n1,"2\n', "quotation marks"),
    ("id,x\n1,\0\n", "NUL bytes"),
])  # fmt: skip
def test_files_that_are_no_such_table(read, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read(text)


def test_no_rows(read) -> None:
    refused(lambda: read("id,x\n"), "no rows")


def test_a_file_of_semicolons_says_so(read) -> None:
    with pytest.raises(InputError, match="with a semicolon it has 2: say sep="):
        read("id;x\n1;2\n")


def test_damaged_and_misnamed_files(read, tmp_path: Path) -> None:
    whole = gzip.compress(cells(*map(str, range(5000))).encode())
    for text, name, said in (
        (whole[: len(whole) // 2], "own.csv.gz", "ends too early"), (b"id,x\n1,2\n", "own.csv.gz", "not compressed"),
        (whole, "own.csv", "name it .csv.gz"), (b"\xff", "own.csv", "not text in utf-8"), (b"x", "own.xls", "save it as .xlsx"),
        (b"x", "own.json", "not a kind of file"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            read(text, name=name)
    with pytest.raises(InputError, match="no such file"):
        data.read(data.table("bank", tmp_path / "absent.csv"), schema())
    with pytest.raises(InputError, match="no ordinary file"):
        data.read(data.table("bank", tmp_path), schema())


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    source = data.table("shop", tmp_path / "of_somebody_else.csv")
    assert repr(source).startswith("table('shop', '") and source.party == "shop"


@pytest.mark.parametrize("wrong", [{"party": "all"}, {"decimal": ";"}, {"na_values": "NA"}, {"source": None}])
def test_calls_that_are_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        data.table(**({"party": "bank", "source": "x.csv"} | wrong))


def test_a_party_that_the_schema_does_not_know(read) -> None:
    with pytest.raises(InputError, match="name an owner of columns: bank, shop"):
        data.read(data.table("registry", "x.csv"), schema())
    with pytest.raises(InputError, match="duplicates"):
        read("id,x\n1,2\n", duplicates="first")
    with pytest.raises(InputError, match="rename names columns that are not there: 'y'"):
        read("id,x\n1,2\n", rename={"y": "x"})
    with pytest.raises(InputError, match="a column stands there twice: 'x'"):
        read("id,x,y\n1,2,3\n", rename={"y": "x"})


def test_no_text_of_a_table_shows_its_values(read) -> None:
    table = read(f"id,x\n{SECRET},{SECRET}\n")
    assert SECRET not in repr(table) and "1 row," in repr(table)


def test_the_digest_is_of_what_was_read(read) -> None:
    table = read("id,x\n1,2\n2,\n")
    assert read("x,id,more\n2.0,1 ,a\nnan,2,b\n").digest == table.digest and len(table.digest) == 64
    for other in ("id,x\n1,2\n2,0\n", "id,x\n1,3\n2,\n", "id,x\n1,2\n3,\n", "id,x\n2,\n1,2\n", "id,x\n1,2\n"):
        assert read(other).digest != table.digest


def test_what_is_wrong_with_several_tables_comes_at_once(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(f"id,x\n1,{SECRET}x\n")
    (tmp_path / "shop.csv").write_text("id,theirs\n1,2\n2,1\n")
    good, bad = (data.table(party, tmp_path / name) for party, name in (("shop", "shop.csv"), ("bank", "own.csv")))
    error = refused(lambda: read_all([bad, good], schema()), "the table of 'bank' has 1 problem", "the table of 'shop'")
    assert error.kinds == ("something else than a number", "something else than 0 or 1, or the words that the schema has for them")  # fmt: skip
    refused(lambda: read_all([bad], schema()), "the table of 'bank' has 1 problem")
    missing = data.table("shop", tmp_path / "absent.csv")
    assert "no form that can be read" in refused(lambda: read_all([bad, missing], schema()), "no such file").kinds
    (tmp_path / "shop.csv").write_text("id,theirs\n1,0\n2,1\n")
    (tmp_path / "own.csv").write_text("id,x\n1,5\n")
    assert {party: table.rows for party, table in read_all([bad, good], schema()).items()} == {"bank": 1, "shop": 2}
