"""Drafts of schemas: they fit the file that they come from, and say less of it than the file does."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securemodel import data
from securemodel.data.propose import propose
from securemodel.errors import InputError


def frame(rows: int = 100) -> pandas.DataFrame:
    return pandas.DataFrame({
        "email": [f"p{i}@example.org" for i in range(rows)],
        "born": [(dt.date(1947, 3, 5) + dt.timedelta(200 * i)).isoformat() for i in range(rows)],
        "income": [None if i == 3 else 1234.5 * i for i in range(rows)],
        "visits": [i % 7 for i in range(rows)],
        "city": [("Ghent", "Utrecht")[i % 2] if i > 9 else f"Hamlet{i}" for i in range(rows)],
        "member": [("no", "yes")[i % 2] for i in range(rows)],
        "defaulted": [i % 3 == 0 for i in range(rows)],
        "zip": [("0900", "9000")[i % 2] for i in range(rows)],
        "since": pandas.to_datetime(["2024-02-29", "2025-01-01"] * (rows // 2)),
        "note": [f"text {i}" for i in range(rows)],
        "nothing": [None] * rows,
        "a name": [2 * i for i in range(rows)],
    })  # fmt: skip


DRAFT = """\
[table]
keys = ["email", "born"]
split = "columns"
minimum = 20

[keys.email]
normalize = "text"

[keys.born]
normalize = "date"

[columns.income]
owner = "bank"
kind = "number"
low = 0.0
high = 200000.0
missing = true

[columns.visits]
owner = "bank"
kind = "integer"
low = 0
high = 6

[columns.city]
owner = "bank"
kind = "category"
values = ["Ghent", "Utrecht"]
other = true

[columns.member]
owner = "bank"
kind = "category"
values = ["no", "yes"]

[columns.defaulted]
owner = "bank"
kind = "boolean"

[columns.zip]
owner = "bank"
kind = "category"
values = ["0900", "9000"]

[columns.since]
owner = "bank"
kind = "date"
low = 2024-01-01
high = 2025-12-31

[columns."a name"]
owner = "bank"
kind = "integer"
low = 0
high = 200

# left out, as it looks like ids or free text, or has no values: "note"
# left out, as it looks like ids or free text, or has no values: "nothing"
"""


def test_a_draft(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    frame().to_csv(path, index=False)
    for source in (frame(), path):
        text = propose(data.table("bank", source), ["email", "born"])
        assert text.startswith("# A draft") and "[table]" + text.split("[table]")[1] == DRAFT
        assert "Hamlet" not in text and "122215" not in text and "1947" not in text
        assert data.read(data.table("bank", source), data.Schema.parse(text)).rows == 100


def test_of_rows_that_all_parties_have() -> None:
    schema = data.Schema.parse(propose(data.table("bank", frame()), split="rows", minimum=5))
    assert schema.split == "rows" and schema.minimum == 5 and schema.columns["income"].owner is None
    assert schema.columns["born"].kind == "date" and (schema.columns["born"].low, schema.columns["born"].high) == (-10958, 14609)  # fmt: skip


def test_rare_categories_are_not_named() -> None:
    for minimum, named in ((45, True), (46, False)):
        text = propose(data.table("bank", frame()), ["email"], minimum=minimum)
        assert ("Ghent" in text) == named and "Hamlet" not in text


def test_how_a_file_is_written(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("x;day;y\n" + "1,5;31.12.2024;-\n2,25;01.01.2024;3\n")
    source = data.table("bank", path, sep=";", decimal=",", date_format="%d.%m.%Y", na_values=["-"])
    schema = data.Schema.parse(propose(source))
    assert [(c.name, c.kind, c.missing) for c in schema.columns.values()] == [
        ("x", "number", False), ("day", "date", False), ("y", "integer", True)]  # fmt: skip
    assert data.read(source, schema).columns["x"].tolist() == [1.5, 2.25]


def test_nothing_to_propose() -> None:
    with pytest.raises(InputError, match="no column of this file"):
        propose(data.table("bank", pandas.DataFrame({"note": ["a", "b"]})))
    with pytest.raises(InputError, match="there is no column 'id'"):
        propose(data.table("bank", frame()), ["id"])


def test_a_million_categories_are_left_out(monkeypatch) -> None:
    monkeypatch.setattr(sys.modules[propose.__module__], "_MOST_SEEN", 50)
    text = propose(data.table("bank", frame()), ["email"], minimum=1)
    assert '# left out, as it looks like ids or free text, or has no values: "note"' in text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e15, 1e15) | st.sampled_from([0.0, -1e-12, 1e-300, 123.456, 1.7e308, -1.7e308]), min_size=1, max_size=5))  # fmt: skip
def test_bounds_lie_outside_whatever_the_numbers(values: list[float]) -> None:
    source = data.table("bank", pandas.DataFrame({"x": [*values, 0.5]}))
    schema = data.Schema.parse(propose(source))
    assert data.read(source, schema).rows == len(values) + 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.integers(-(2**62), 2**62) | st.sampled_from([0, 1, 2**53 + 1, 2**63 - 1, -(2**63)]), min_size=1, max_size=5
    )
)
def test_bounds_of_whole_numbers(values: list[int]) -> None:
    source = data.table("bank", pandas.DataFrame({"x": [*values, 2]}))
    assert data.read(source, data.Schema.parse(propose(source))).rows == len(values) + 1


@pytest.mark.parametrize(
    ("value", "low", "high"), [(48231.77, 40000.0, 50000.0), (0.123, 0.1, 0.2), (-7.25, -8.0, -7.0), (42, 40, 50)]
)
def test_the_only_value_of_a_column_is_not_told(value: float, low: float, high: float) -> None:
    column = data.Schema.parse(propose(data.table("bank", pandas.DataFrame({"x": [value] * 3 + [None]})))).columns["x"]
    assert (column.low, column.high) == (low, high)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dates(), min_size=1, max_size=4))
def test_bounds_of_dates(values: list[dt.date]) -> None:
    source = data.table("bank", pandas.DataFrame({"x": [value.isoformat() for value in values]}))
    assert data.read(source, data.Schema.parse(propose(source))).rows == len(values)
