"""Pipelines on real joint tables: between processes, and where not everybody knows which rows are joint."""

import numpy as np
import pandas as pd
import pytest
import torch

from securemodel import data
from securemodel.errors import InputError
from tests.data.test_joint import between

ROWS = 80
SCHEMA = """
[table]
keys = ["who"]
split = "columns"
minimum = 5
[columns.income]
owner = "bank"
kind = "number"
low = 0
high = 100
missing = true
[columns.city]
owner = "shop"
kind = "category"
values = ["Ghent", "Oslo", "Utrecht"]
[columns.spent]
owner = "shop"
kind = "number"
low = 0
high = 1000
[columns.defaulted]
owner = "registry"
kind = "boolean"
"""
DRAW = np.random.default_rng(0)
PEOPLE = pd.DataFrame(
    {
        "who": [f"p{n}" for n in range(ROWS)],
        "income": np.where(DRAW.random(ROWS) < 0.1, np.nan, DRAW.uniform(0, 100, ROWS)),
        "city": DRAW.choice(["Ghent", "Oslo", "Utrecht"], ROWS),
        "spent": DRAW.uniform(0, 1000, ROWS),
        "defaulted": DRAW.integers(0, 2, ROWS),
    }
)
HAVE = {"bank": range(70), "shop": range(5, ROWS), "registry": range(ROWS - 2)}
COMMON = PEOPLE[5:70]


def tables() -> tuple[data.Schema, list[data.Source]]:
    columns = {"bank": ["who", "income"], "shop": ["who", "city", "spent"], "registry": ["who", "defaulted"]}
    made = [
        data.table(p, PEOPLE[columns[p]].iloc[list(rows)].sample(frac=1, random_state=1)) for p, rows in HAVE.items()
    ]
    return data.Schema.parse(SCHEMA), made


def pipeline(**changes) -> data.Pipeline:
    steps = {
        "income": [data.SimpleImputer("mean"), data.StandardScaler()],
        "city": data.TargetEncoder("defaulted", smooth=10.0),
        "spent": data.StandardScaler(),
    }
    return data.Pipeline(**{**steps, **changes})


def mean_of(prepared: data.Prepared, column: str) -> float:
    return float(prepared[column][-1].parameters["mean_"])


def test_rows_that_all_know():
    joint = data.local(*tables()).align("all")
    prepared = pipeline().fit(joint)
    assert mean_of(prepared, "spent") == pytest.approx(COMMON["spent"].mean(), rel=1e-12)
    assert prepared["income"][0].parameters["statistics_"].item() == pytest.approx(COMMON["income"].mean(), rel=1e-12)
    train, test = joint.split(0.8, 3)
    with pytest.raises(InputError, match="force=True"):
        pipeline().fit(test)
    made = pipeline().fit(train)(test)
    assert {name: column[0].shape for name, column in made.columns.items()} == {
        "bank": (13, 1), "shop": (13, 2), "defaulted": (13,),
    }  # fmt: skip


def test_rows_of_which_nobody_knows_whether_all_have_them():
    joint = data.local(*tables()).align("nobody")
    prepared = pipeline(city=data.OneHotEncoder()).fit(joint)
    assert prepared["spent"][0].known and prepared["income"][1].known
    assert mean_of(prepared, "spent") == pytest.approx(COMMON["spent"].mean(), abs=0.2)
    assert prepared["spent"][0].parameters["scale_"].item() == pytest.approx(COMMON["spent"].std(ddof=0), rel=0.01)
    made = prepared(joint)
    assert list(made.columns)[-1].startswith("weight_") and len(made) == joint.rows
    with pytest.raises(InputError, match="on hidden rows"):
        pipeline().fit(joint)


@pytest.mark.parametrize("unmatched", ["keep", "drop"])
def test_rows_that_one_party_knows(unmatched):
    joint = data.local(*tables()).align("bank", unmatched=unmatched)
    spent = [data.StandardScaler(), data.MinMaxScaler()]
    prepared = pipeline(city=data.OneHotEncoder(), spent=spent).fit(joint)
    ends = prepared["spent"][1].parameters
    spent = (COMMON["spent"] - COMMON["spent"].mean()) / COMMON["spent"].std(ddof=0)
    assert ends["data_min_"].item() == pytest.approx(spent.min(), abs=0.02)
    assert ends["data_max_"].item() == pytest.approx(spent.max(), abs=0.02)
    assert prepared["spent"][0].parameters["mean_"].item() == pytest.approx(COMMON["spent"].mean(), abs=0.2)
    assert prepared["spent"][0].known
    assert prepared.raw(joint)["shop"][0].way is not None
    with pytest.raises(InputError, match="one order at all parties"):
        prepared(joint)


def test_between_processes():
    def task(me, joint):
        aligned = joint.align("all")
        train, test = aligned.split(0.75, stratify="defaulted")
        prepared = pipeline().fit(train)
        rows = prepared(test).columns[me if me != "registry" else "defaulted"][0].tensor
        means = prepared["city"][0].parameters["target_mean_"]
        return train.digest, rows, means, mean_of(prepared, "spent"), prepared.feature_names_out

    got = between(task, tables=tables())
    assert not [found for found in got.values() if isinstance(found, BaseException)], got
    assert len({found[0] for found in got.values()}) == 1 and len({found[4] for found in got.values()}) == 1
    assert got["shop"][1].shape == (16, 2) and torch.isfinite(got["shop"][1]).all()
    assert got["shop"][3] > 100 and got["bank"][3] == 0.0  # the owner's alone
    assert 0.2 < got["shop"][2][0] < 0.8 and got["registry"][2].tolist() == [0.0] * 6
