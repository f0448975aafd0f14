"""Correlations, covariances and variance inflation against pandas, where columns are of several owners and rows are split."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securemodel.data.answers import LeakWarning
from securemodel.data.moments import correlation, covariance, vif
from securemodel.errors import InputError
from tests.data.stand_in import WAYS, category, integer, number, table

COLUMNS = [
    number("income"),
    integer("age", missing=True),
    number("buys", "shop"),
    integer("late", "shop", missing=True),
]


def frame(seed: int, rows: int = 80) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    income = random.normal(0, 2, rows)
    made = {
        "income": income.clip(-10, 10),
        "age": random.integers(0, 101, rows).astype(float),
        "buys": (random.choice([0.0, 1.0, 3.0]) * income + random.normal(0, 1, rows)).clip(-10, 10),
        "late": random.integers(0, 4, rows).astype(float),
    }
    for name in ("age", "late"):
        made[name][random.random(rows) < 0.3] = np.nan
    return pd.DataFrame(made)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(WAYS), st.integers(30, 80), st.booleans())
def test_pairs_are_pandas(seed, way, rows, complete):
    columns = COLUMNS[::2] if complete else COLUMNS
    joint, right = table(columns, frame(seed, rows), way, seed)
    right = right[[column.name for column in columns]]
    assert np.allclose(correlation(joint).frame, right.corr(), atol=1e-6)
    assert np.allclose(covariance(joint).frame, right.cov(), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    ("way", "parties"), [*((way, ("bank", "shop")) for way in WAYS), ("hidden", ("bank", "shop", "registry"))]
)
def test_secret_pairs_are_pandas(way, parties):
    joint, right = table(COLUMNS, frame(5), way, 5, clear=False, parties=parties)
    assert np.allclose(correlation(joint).frame, right.corr(), atol=1e-6)
    assert np.allclose(covariance(joint).frame, right.cov(), atol=1e-3, rtol=1e-5)


def test_of_complete_columns_of_two_owners_only_the_correlation_is_told():
    joint, right = table(COLUMNS[::2], frame(5), clear=False)
    assert np.allclose(correlation(joint).frame, right[["income", "buys"]].corr(), atol=1e-6)
    assert list(joint.plans[0].reveals) == [
        "income among each other", "buys among each other", "correlations of income with buys"
    ]  # fmt: skip
    answer = joint.ask(joint.queries[0])
    assert answer["income among each other"].shape == (1, 1, 1, 2)  # 1, and no variance
    assert joint.plans[0].sent_bytes["bank"] < 8 * len(right) + 400


@pytest.mark.parametrize("way", WAYS)
def test_constant_columns_are_left_out_and_named(way):
    joint, _right = table(COLUMNS[::2], frame(5).assign(buys=0.1), way, 5)
    found = correlation(joint)
    assert found.left_out == {"buys": "it is constant"}
    assert found.columns == ("income",)
    assert "left out: buys, it is constant" in str(found)
    assert covariance(joint).frame["buys"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("way", WAYS)
def test_pairs_of_few_rows_are_withheld(way):
    data = frame(5).assign(age=lambda f: f.age.where(f.index < 30))
    joint, right = table(COLUMNS, data.assign(income=1.0 * np.arange(80) / 10), way, 5, minimum=20)
    both = right.notna().astype(int).T @ right.notna().astype(int)
    found = correlation(joint)
    assert {frozenset(pair) for pair in found.withheld} == {
        frozenset((a, b)) for a in both for b in both if both.loc[a, b] < 20
    }
    assert found.withheld and all(np.isnan(found.frame.loc[pair]) for pair in found.withheld)
    assert "withheld, of fewer than 20 rows" in str(found)


@pytest.mark.parametrize("way", WAYS)
def test_variance_inflation(way):
    """1 / (1 - R^2) of a least-squares fit with a constant, as statsmodels defines it."""
    columns = [number("income"), integer("age"), number("buys", "shop")]
    joint, right = table(columns, frame(9).fillna(7.0), way, 9)
    found = vif(joint)
    for name in ("income", "age", "buys"):
        y = right[name].to_numpy()
        x = np.column_stack([np.ones(len(y)), right[["income", "age", "buys"]].drop(columns=name)])
        rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
        assert found[name] == pytest.approx(((y - y.mean()) ** 2).sum() / (rest**2).sum(), rel=1e-4)


def test_variance_inflation_of_columns_that_add_up_is_undefined_by_name():
    data = frame(9).assign(buys=lambda f: f.income / 2)
    joint, _ = table([number("income"), number("buys", "shop"), integer("late", "shop", missing=True)], data)
    found = vif(joint)
    assert found.undefined == {"income": "others give it exactly", "buys": "others give it exactly"}
    assert found["late"] == pytest.approx(1.0, abs=0.2)
    assert "buys  undefined: others give it exactly" in str(found)


def test_a_column_that_gives_the_label_is_warned_of():
    data = frame(9).assign(buys=lambda f: f.income + 0.01)
    joint, _ = table([number("income"), number("buys", "shop"), integer("late", "shop", missing=True)], data)
    with pytest.warns(LeakWarning, match="'buys' nearly tells 'income'"):
        correlation(joint, label="income")


def test_what_has_no_correlation_is_an_error():
    joint, _ = table([*COLUMNS, category("city", ["a", "b"])], frame(1).assign(city=0.0))
    for columns, why in ((["city", "age"], "has categories"), (["age"], "two different columns"), (["age", "age"], "two"),
                         (["age", "town"], "no column 'town'")):  # fmt: skip
        with pytest.raises(InputError, match=why):
            correlation(joint, columns)
