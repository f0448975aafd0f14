"""Statistics of real joint tables: however their rows were aligned, they are pandas' of the joined frame."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from securemodel import data
from securemodel.errors import InputError

SCHEMA = """
[table]
keys = ["id"]
split = "columns"
minimum = 5
[columns.income]
owner = "bank"
kind = "number"
low = -100
high = 100
[columns.age]
owner = "bank"
kind = "integer"
low = 0
high = 100
missing = true
[columns.city]
owner = "shop"
kind = "category"
values = ["Ghent", "Utrecht", "Delft"]
[columns.late]
owner = "shop"
kind = "boolean"
"""


def frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    random = np.random.default_rng(5)
    bank = pd.DataFrame(
        {"id": [f"p{at}" for at in random.permutation(90)], "income": random.normal(0, 20, 90).round(3)}
    )
    bank["age"] = pd.array(random.integers(0, 101, 90), dtype="Int64")
    bank.loc[random.random(90) < 0.2, "age"] = pd.NA
    shop = pd.DataFrame({"id": [f"p{at}" for at in random.permutation(np.arange(20, 120))]})
    shop["city"] = random.choice(["Ghent", "Utrecht", "Delft"], 100, p=[0.5, 0.4, 0.1])
    shop["late"] = random.integers(0, 2, 100)
    return bank, shop


def tables() -> list[data.Source]:
    bank, shop = frames()
    return [data.table("bank", bank), data.table("shop", shop)]


@pytest.mark.parametrize(
    ("learns", "unmatched"), [("all", "keep"), ("nobody", "keep"), ("bank", "keep"), ("bank", "drop"), ("shop", "keep")]
)
def test_statistics_are_pandas_of_the_joined_frame(learns, unmatched):
    bank, shop = frames()
    right = bank.merge(shop, on="id")
    with data.local(data.Schema.parse(SCHEMA), tables()) as waiting:
        joint = waiting.align(learns=learns, unmatched=unmatched)
        found = joint.describe(["income", "age", "late"], quantiles=(0.5,), bins=256)
        wanted = right[["income", "age", "late"]].astype(float).describe()
        for row in ("count", "mean", "std"):
            assert found.frame.loc[row].tolist() == pytest.approx(wanted.loc[row].tolist(), abs=1e-4), row
        for name in wanted:
            assert abs(found.frame[name]["50%"] - wanted[name]["50%"]) <= found.within.get(name, 0) + 1e-9
        numbers = right[["income", "age", "late"]].astype(float)
        assert np.allclose(joint.correlation().frame, numbers.corr(), atol=1e-5)
        assert joint.value_counts("city").series.to_dict() == right.city.value_counts().to_dict()
        means = joint.group_by("city", "income").frame["income"]["mean"]
        assert means.to_dict() == pytest.approx(right.groupby("city").income.mean().to_dict(), abs=1e-4)
        table = pd.crosstab(right.city, right.late).reindex(["Ghent", "Utrecht", "Delft"]).to_numpy()
        logs = np.log((table + 0.5) / table.sum(0))
        assert joint.woe("city", "late")["city"].woe == pytest.approx(logs[:, 1] - logs[:, 0], abs=1e-3)


def test_views_are_described_as_they_are():
    bank, shop = frames()
    with data.local(data.Schema.parse(SCHEMA), tables()) as waiting:
        joint = waiting.align(learns="all")
        train, test = joint.split(0.7, seed=3)
        ages = [view.describe(["age"], quantiles=()).frame["age"] for view in (joint, train, test)]
        assert sum(x["count"] for x in ages[1:]) == ages[0]["count"]
        assert 0 <= data.population_stability(train, test, "city") < 1
        assert bank.merge(shop, on="id").age.mean() == pytest.approx(ages[0]["mean"])


def test_rows_that_are_not_aligned_are_no_table():
    with data.local(data.Schema.parse(SCHEMA), tables()) as joint:
        for ask in (
            joint.describe,
            joint.correlation,
            lambda: joint.value_counts("city"),
            lambda: joint.woe("city", "late"),
        ):
            with pytest.raises(InputError, match="not aligned yet"):
                ask()
