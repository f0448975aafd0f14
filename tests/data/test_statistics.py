"""`describe` against pandas: rows that owners know, rows that are split, rows that nobody knows; in the clear and secret."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securemodel.data import describing
from securemodel.data.statistics import describe, quantiles
from securemodel.data.whole import unit_of
from securemodel.errors import InputError
from tests.data.stand_in import WAYS, boolean, category, integer, number, table

COLUMNS = [
    number("income"),
    integer("age", missing=True),
    number("buys", "shop", missing=True),
    boolean("late", "shop"),
]


def frame(seed: int, rows: int = 60) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    made = {
        "income": random.normal(0, 3, rows).clip(-10, 10),
        "age": random.integers(0, 101, rows).astype(float),
        "buys": random.choice([random.normal(0, 3, rows).clip(-10, 10), np.full(rows, 2.5)]),
        "late": random.integers(0, 2, rows).astype(float),
    }
    for name in ("age", "buys"):
        made[name][random.random(rows) < 0.2] = np.nan
    return pd.DataFrame(made)


def compare(found, right: pd.DataFrame, exact_quantiles: bool) -> None:
    wanted = right.describe(percentiles=[0.25, 0.5])
    wanted.loc["missing"] = right.isna().sum()
    for name in right.columns:
        for row in ("count", "missing", "mean", "std", "min", "max"):
            near = 0 if row in ("count", "missing") else 1e-6
            assert found.frame.loc[row, name] == pytest.approx(wanted.loc[row, name], rel=near, abs=near), (name, row)
        for row in ("25%", "50%"):
            within = 1e-9 if exact_quantiles else found.within.get(name, 0.0) + 1e-9
            assert abs(found.frame.loc[row, name] - wanted.loc[row, name]) <= within, (name, row)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(WAYS), st.integers(4, 80))
def test_numbers_are_pandas(seed, way, rows):
    joint, right = table(COLUMNS, frame(seed, rows), way, seed)
    if right.count().min() < 4:
        return
    bins = 256 if way == "hidden" else None
    found = describe(joint, quantiles=(0.25, 0.5), extremes=True, bins=bins)
    compare(found, right, way == "known")


@pytest.mark.parametrize(
    ("way", "parties"), [*((way, ("bank", "shop")) for way in WAYS), ("hidden", ("bank", "shop", "registry"))]
)
def test_secret_numbers_are_those_in_the_clear(way, parties):
    joint, right = table(COLUMNS[:3], frame(3), way, 3, clear=False, parties=parties)
    found = describe(joint, quantiles=(0.25, 0.5), extremes=True, bins=256 if way != "known" else None)
    compare(found, right[["income", "age", "buys"]], way == "known")


def test_it_prints_like_pandas():
    joint, right = table([number("income"), integer("age")], frame(1).fillna(3.0))
    words = lambda text: [line.split() for line in str(text).splitlines()]
    found = words(describe(joint, quantiles=(0.25, 0.5, 0.75), extremes=True))
    assert found.pop(2) == ["missing", "0.000000", "0.000000"]  # which pandas does not tell
    assert found == words(right[["income", "age"]].describe().to_string())


@pytest.mark.parametrize("way", WAYS)
def test_few_rows_are_withheld_and_named(way):
    data = frame(2, 100).assign(buys=lambda f: f.buys.where(f.index < 15))
    joint, _ = table(COLUMNS, data, way, 2, minimum=20)
    found = describe(joint, quantiles=(0.1, 0.5))
    assert found.withheld["buys"] == ("count", "missing", "mean", "std", "10%", "50%")
    assert found.withheld["income"] == ("10%",)  # fewer than 20 rows below it
    assert found.frame["buys"].isna().all()
    assert "withheld, of fewer than 20 rows: 10% of income" in str(found)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_withheld_does_not_leave_the_program(way):
    data = frame(2, 100).assign(buys=lambda f: f.buys.where(f.index < 15))
    joint, _ = table([number("buys", "shop", missing=True), number("income")], data, way, 2, minimum=20, clear=False)
    describe(joint, ["buys"], quantiles=(0.5,), bins=16)
    (answer,) = [joint.ask(query) for query in joint.queries[:1]]
    told = {name: x for name, x in answer.items() if "joint rows" not in name}
    if way == "known":
        assert all(mantissa == 0 for name in told for mantissa in told[name][..., 0].flatten().tolist())
    else:
        assert all(set(x.flatten().tolist()) <= {0, -1} for x in told.values())


@pytest.mark.parametrize("way", WAYS)
def test_a_constant_column_and_one_value(way):
    data = pd.DataFrame({"income": np.full(30, 0.1), "age": np.where(np.arange(30) < 2, 7.0, np.nan)})
    joint, _right = table(
        [number("income"), integer("age", missing=True), number("buys", "shop")], data.assign(buys=1.0), way
    )
    found = describe(joint, ["income"], quantiles=())
    assert found.frame["income"]["std"] == 0.0
    joint, _ = table([integer("age", missing=True), number("buys", "shop")], data.assign(buys=1.0).iloc[1:], "known")
    assert describe(joint, ["age"], quantiles=()).undefined == {"age": ("std",)}


@pytest.mark.parametrize("way", ["rows", "hidden"])
def test_sums_at_a_million_rows_have_room(way, monkeypatch):
    """As many rows as that only in name: the unit is theirs, and the totals are as large as they may become."""
    columns = [integer("age", low=0, high=10**6), number("buys", "shop", low=-1e9, high=1e9)]
    data = pd.DataFrame({"age": [0.0, 10**6] * 20, "buys": [-1e9, 1e9] * 20})
    joint, right = table(columns, data, way, clear=False)
    many = lambda joint, names: [unit_of(joint.schema.columns[name], 10**6) for name in names]
    monkeypatch.setattr(describing, "units", many)
    for name in data.columns:
        unit = unit_of(joint.schema.columns[name], 10**6)
        assert unit.most**2 * 10**6 < 2**61
        assert unit.factor != 1.0 or unit.most >= 5 * 10**5
    monkeypatch.setattr("securemodel.data.statistics.unit_of", lambda column, rows: unit_of(column, 10**6))
    found = describe(joint, quantiles=())
    wanted = right.describe()
    for name in data.columns:
        assert found.frame[name]["mean"] == pytest.approx(wanted[name]["mean"], rel=1e-6, abs=1e-3)
        assert found.frame[name]["std"] == pytest.approx(wanted[name]["std"], rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["rows", "hidden"]))
def test_quantiles_of_whole_numbers_are_exact(seed, way):
    joint, right = table(
        [integer("age", low=0, high=20), number("buys", "shop")],
        frame(seed).assign(age=lambda f: f.age % 21).fillna(4),
        way,
        seed,
        minimum=0,
    )
    q = (0.01, 0.25, 0.333, 0.5, 0.99)
    found = quantiles(joint, "age", q, bins=256)
    assert [found[x] for x in q] == pytest.approx(right.age.quantile(list(q)).tolist(), abs=1e-9)


def test_what_cannot_be_described_is_an_error():
    joint, _ = table([category("city", ["a", "b"]), number("buys", "shop")], frame(1).assign(city=0.0), minimum=20)
    for ask, why in (
        (lambda: describe(joint, ["city"]), "has categories"),
        (lambda: describe(joint, ["town"]), "no column 'town'"),
        (lambda: describe(joint, []), "no columns of numbers"),
        (lambda: describe(joint, ["buys"], quantiles=(1.0,)), "not between 0 and 1"),
        (lambda: describe(joint, ["buys"], bins=1), "1 bins"),
        (lambda: describe(joint, ["buys"], noise=1.0, extremes=True), "two persons"),
    ):
        with pytest.raises(InputError, match=why):
            ask()
    few, _ = table([number("buys", "shop"), number("income")], frame(1, 10), minimum=20)
    with pytest.raises(InputError, match="nothing is told of fewer than 20"):
        describe(few)


def test_only_the_receiver_is_told():
    joint, _ = table(COLUMNS, frame(1), "known")
    describe(joint, reveal="shop")
    assert joint.queries[0].reveal == "shop"
    joint.ask = lambda query: dict.fromkeys(["some"])
    assert describe(joint, reveal="shop") is None


def test_the_cost_of_split_rows_does_not_depend_on_their_number():
    sent = []
    for rows in (40, 400):
        joint, _ = table(COLUMNS[:1], frame(1, rows), "rows", clear=False)
        describe(joint, bins=256)
        sent.append(joint.plans[0].sent_bytes)
    assert sent[0] == sent[1]
    assert math.isfinite(sent[0]["bank"])


def test_one_name_and_one_quantile_are_lists_of_one():
    joint, right = table(COLUMNS, frame(1))
    assert list(describe(joint, "income").frame) == ["income"]
    found = quantiles(joint, "income", 0.5)
    assert found == {0.5: pytest.approx(right.income.median())}
    for q in (math.nan, math.inf, np.float32(0.1), None, "half", ["half"]):
        with pytest.raises(InputError, match="quantile"):
            quantiles(joint, "income", q)
