"""The example of a joint table, in small."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from securemodel import data
from securemodel.data.normalize import joined


@pytest.fixture
def people(example, tmp_path) -> pd.DataFrame:
    return example("joint_table", "make_files").make(tmp_path / "files", people=260, seed=3)


def test_the_files_say_what_is_known_of_everybody(example, people, tmp_path) -> None:
    tables = example("joint_table", "tables")
    read = {source.party: data.read(source, tables.SCHEMA) for source in tables.tables(tmp_path / "files")}
    ids = [joined([email, born.isoformat()]) for email, born in zip(people.index, people["born"], strict=True)]
    at = {party: {row: place for place, row in enumerate(table.ids)} for party, table in read.items()}
    common = set(at["bank"]) & set(at["shop"]) & set(at["registry"])
    assert common == set(ids) and len(ids) > 100
    for name, column in tables.SCHEMA.columns.items():
        table = read[column.owner]
        rows = [at[column.owner][row] for row in ids]
        values, theirs = table.columns[name][rows], people[name]
        absent = table.missing[name][rows] if column.missing else np.zeros(len(rows), bool)
        assert absent.tolist() == theirs.isna().tolist()
        if column.kind == "category":
            found = [column.labels[code] for code in values]
            wanted = [value if value in column.values else "other" for value in theirs]
            assert [f for f, a in zip(found, absent, strict=True) if not a] == [w for w, a in zip(wanted, absent, strict=True) if not a]  # fmt: skip
        elif column.kind == "date":
            assert [np.datetime64(int(value), "D").astype(object) for value in values] == theirs.tolist()
        else:
            wanted = np.clip(theirs.fillna(0).to_numpy(float), column.low, column.high)
            assert np.abs(values - wanted).max() < 1e-9


def test_each_kind_of_trouble_is_in_the_files(example, people, tmp_path) -> None:
    tables = example("joint_table", "tables")
    notes = {s.party: " ".join(data.read(s, tables.SCHEMA).notes) for s in tables.tables(tmp_path / "files")}
    assert "ids in several rows" in notes["bank"] and "ids in several rows" in notes["shop"]
    assert "in the class of others" in notes["shop"] and "without an id left out" in notes["registry"]
    strict = data.Schema.parse(
        (tables.HERE / "joint.toml").read_text().replace('missing = "drop"', 'missing = "error"')
    )
    with pytest.raises(data.TableErrors, match="rows without an id"):
        data.read(tables.tables(tmp_path / "files")[2], strict)
