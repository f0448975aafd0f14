"""Weight of evidence, information value, chi-square and population stability, against their formulas in float and scipy."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from securemodel.data.answers import LeakWarning
from securemodel.data.association import chi_square, population_stability
from securemodel.data.binning import codes, quantile_edges
from securemodel.data.evidence import information_value, woe
from securemodel.errors import InputError
from tests.data.stand_in import WAYS, boolean, category, integer, number, table

COLUMNS = [number("income"), integer("age", missing=True), category("city", ["a", "b", "c"]), boolean("late", "shop")]


def frame(seed: int, rows: int = 200, strength: float = 0.1) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    income = random.normal(0, 3, rows).clip(-10, 10)
    made = {
        "income": income,
        "age": random.integers(0, 101, rows).astype(float),
        "city": random.integers(0, 3, rows).astype(float),
        "late": (random.normal(0, 1, rows) + strength * income > 0.5).astype(float),
    }
    made["late"][:2] = 0, 1
    made["age"][random.random(rows) < 0.2] = np.nan
    return pd.DataFrame(made)


def evidence(bins: np.ndarray, late: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    events = np.array([((bins == k) & (late == 1)).sum() for k in range(count)], float)
    others = np.array([((bins == k) & (late == 0)).sum() for k in range(count)], float)
    weights = np.log((events + 0.5) / events.sum()) - np.log((others + 0.5) / others.sum())
    return weights, float(((events / events.sum() - others / others.sum()) * weights).sum())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=40), st.integers(2, 12))
def test_bins_are_those_of_qcut(numbers, bins):
    x = np.array(numbers)
    edges = quantile_edges(x, bins)
    if len(set(numbers)) == 1:
        assert codes(x, edges).tolist() == [0] * len(x)
        return
    wanted, their_edges = pd.qcut(x, bins, labels=False, duplicates="drop", retbins=True)
    assert edges.tolist() == their_edges.tolist()
    assert codes(x, edges).tolist() == wanted.tolist()


def test_the_sides_of_bins():
    x = np.arange(1.0, 11.0)
    assert quantile_edges(x, 4).tolist() == [1, 3.25, 5.5, 7.75, 10]
    assert codes(x, quantile_edges(x, 4)).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert codes(np.array([1.0, 2.0, 2.5, 0.9, 3.1]), np.array([1.0, 2.0, 3.0])).tolist() == [0, 0, 1, -1, -1]


def compare(joint, right: pd.DataFrame, own: pd.DataFrame, near: float) -> None:
    found = woe(joint, ["income", "age", "city"], "late", {"income": 5, "age": [0, 30, 60, 100], "city": 2})
    late = right.late.to_numpy()
    bins = codes(right.income.to_numpy(), quantile_edges(own.income.to_numpy(), 5))
    if joint.schema.split == "rows":  # of public bins, and told to all
        bins = codes(right.income.to_numpy(), np.array([-10.0, *right.income.quantile([0.2, 0.4, 0.6, 0.8]), 10.0]))
    ages = codes(right.age.to_numpy(), np.array([0.0, 30.0, 60.0, 100.0]))
    ages = np.where(right.age.isna(), 3, ages)
    for name, at, count in (("income", bins, 5), ("age", ages, 4), ("city", right.city.to_numpy(), 3)):
        weights, value = evidence(at, late, count)
        slack = 0.3 if joint.schema.split == "rows" and name == "income" else near
        assert np.array(found[name].woe) == pytest.approx(weights, abs=slack), name
        assert found[name].iv == pytest.approx(value, abs=slack), name
    assert found["city"].names == ("a", "b", "c")
    assert found["age"].names == ("[0, 30]", "(30, 60]", "(60, 100]", "missing")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(WAYS))
def test_evidence_is_its_formula(seed, way):
    data = frame(seed)
    joint, right = table(COLUMNS, data, way, seed)
    own = data[joint.present["bank"]] if way == "hidden" else data
    compare(joint, right, own, 1e-5)


THREE = ("bank", "shop", "registry")


@pytest.mark.parametrize(
    ("way", "parties"),
    [("known", THREE[:2]), ("hidden", THREE), *(pytest.param(*case, marks=pytest.mark.slow) for case in
     (("known", THREE), ("rows", THREE), ("rows", THREE[:2]), ("hidden", THREE[:2])))],
)  # fmt: skip
def test_secret_evidence_is_its_formula(way, parties):
    data = frame(6)
    joint, right = table(COLUMNS, data, way, 6, clear=False, parties=parties)
    own = data[joint.present["bank"]] if way == "hidden" else data
    compare(joint, right, own, 1e-3)


def test_the_owner_of_bins_alone_is_told_by_default():
    joint, _ = table(COLUMNS, frame(1))
    woe(joint, "income", "late")
    assert set(joint.queries[0].reveal.values()) == {"bank"}
    woe(joint, "income", "late", reveal="all")
    assert set(joint.queries[1].reveal.values()) == {"all"}
    joint.ask = lambda query: dict.fromkeys(query.reveal)
    assert woe(joint, "income", "late") == {}
    told = "of income"
    assert all(name.endswith(told) for name in joint.queries[0].reveal)


def test_others_do_not_see_the_edges():
    joint, _ = table(COLUMNS, frame(1))
    joint.me = "shop"
    assert woe(joint, "income", "late", 3)["income"].names == ("bin 1", "bin 2", "bin 3")
    joint.me = "bank"
    assert woe(joint, "income", "late", 3)["income"].names[0].startswith("[")


@pytest.mark.parametrize(("way", "clear"), [*((way, True) for way in WAYS), ("hidden", False)])
def test_small_bins_are_withheld(way, clear):
    data = frame(1).assign(city=lambda f: np.where(f.index < 12, 2.0, f.city % 2))
    joint, _ = table(COLUMNS, data, way, 1, 20, clear)
    found = woe(joint, "city", "late")["city"]
    assert found.withheld == ("c",) and math.isnan(found.woe[2]) and not math.isnan(found.iv)
    assert "withheld, of fewer than 20 rows: c" in str(found)


@pytest.mark.parametrize(("way", "clear"), [*((way, True) for way in WAYS), ("known", False)])
def test_a_label_of_one_class_is_undefined_by_name(way, clear):
    joint, _ = table(COLUMNS, frame(1).assign(late=0.0), way, 1, clear=clear)
    found = woe(joint, "city", "late")["city"]
    assert found.undefined == "all rows have one class of late" and math.isnan(found.iv)
    assert math.isnan(information_value(joint, "city", "late")["city"])


def test_a_column_that_gives_the_label_is_warned_of():
    joint, _ = table(COLUMNS, frame(1, strength=20.0))
    with pytest.warns(LeakWarning, match="'income' nearly tells 'late'"):
        woe(joint, "income", "late")


def test_a_column_named_twice_is_asked_once():
    joint, _ = table(COLUMNS, frame(1))
    assert list(woe(joint, ["income", "income"], "late", np.int64(4))) == ["income"]


def test_what_is_no_label_is_an_error():
    joint, _ = table(COLUMNS, frame(1))
    for columns, label, why in (
        ("income", "city", "two classes"),
        ("late", "late", "other columns"),
        ([], "late", "other"),
    ):
        with pytest.raises(InputError, match=why):
            woe(joint, columns, label)
    with pytest.raises(InputError, match="no bins of 'age'"):
        woe(joint, ["income", "age"], "late", {"income": 4})
    for bins in (1, 5000, 2.5, "auto", np.int64(1), [1.0], [2.0, 1.0], [0.0, math.inf]):
        with pytest.raises(InputError):
            woe(joint, "income", "late", bins)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(WAYS))
def test_chi_square_is_scipys(seed, way):
    joint, right = table(COLUMNS, frame(seed), way, seed)
    wanted = chi2_contingency(pd.crosstab(right.city, right.late), correction=False)
    found = chi_square(joint, "city", "late")
    assert found.statistic == pytest.approx(wanted.statistic, rel=1e-3, abs=1e-3)
    assert (found.dof, found.p_value) == (wanted.dof, pytest.approx(wanted.pvalue, rel=2e-3, abs=1e-3))


@pytest.mark.parametrize("way", WAYS)
def test_secret_chi_square(way):
    joint, right = table(COLUMNS, frame(8), way, 8, clear=False)
    wanted = chi2_contingency(pd.crosstab(right.city, right.late), correction=False)
    found = chi_square(joint, "city", "late")
    assert found.statistic == pytest.approx(wanted.statistic, rel=1e-3, abs=5e-3)
    assert found.dof == wanted.dof
    assert list(joint.plans[0].reveals) == ["chi-square", "degrees of freedom"]


def test_chi_square_of_values_that_no_row_has():
    joint, _right = table(COLUMNS, frame(8).assign(city=lambda f: f.city * (f.city < 2)), clear=False)
    assert chi_square(joint, "city", "late").dof == 1
    constant, _ = table(COLUMNS, frame(8).assign(city=1.0))
    found = chi_square(constant, "city", "late")
    assert found.undefined == "one of them has one value only" and "undefined" in str(found)


def stability(first: np.ndarray, second: np.ndarray, count: int) -> float:
    p, q = (np.bincount(x.astype(int), minlength=count) + 0.5 for x in (first, second))
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


@pytest.mark.parametrize("clear", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_population_stability(way, clear):
    one, first = table(COLUMNS, frame(1), way, 1, clear=clear)
    other, second = table(COLUMNS, frame(2, 150).assign(income=lambda f: f.income / 2), way, 2, clear=clear)
    near = 1e-5 if clear else 2e-3
    assert population_stability(one, other, "city") == pytest.approx(stability(first.city, second.city, 3), abs=near)
    edges = [-10.0, -1.0, 0.0, 1.0, 10.0]
    wanted = stability(
        codes(first.income.to_numpy(), np.array(edges)), codes(second.income.to_numpy(), np.array(edges)), 4
    )
    assert population_stability(one, other, "income", edges) == pytest.approx(wanted, abs=near)
    assert wanted > 0.05


def test_bins_of_a_comparison_are_those_of_the_first_table():
    one, first = table(COLUMNS, frame(1))
    other, second = table(COLUMNS, frame(2).assign(income=lambda f: f.income / 2))
    edges = quantile_edges(first.income.to_numpy(), 4)
    inside = codes(second.income.to_numpy(), edges)
    wanted = stability(codes(first.income.to_numpy(), edges), inside[inside >= 0], 4)
    assert population_stability(one, other, "income", 4) == pytest.approx(wanted, abs=1e-5)
