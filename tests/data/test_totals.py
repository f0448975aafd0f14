"""Fits of rows that several parties have, and of hidden rows, against scikit-learn on all rows together."""

import warnings

import numpy as np
import pytest
import torch

from protocols.errors import InputError
from securemodel.data import asks, totals
from securemodel.data.asks import run_fits, told
from securemodel.data.discretizing import Clip, KBinsDiscretizer
from securemodel.data.fields import Field
from securemodel.data.imputing import SimpleImputer
from securemodel.data.place import here
from securemodel.data.power import PowerTransformer, log_likelihood
from securemodel.data.query import compile_query
from securemodel.data.scaling import MinMaxScaler, RobustScaler, StandardScaler
from securemodel.data.totals import Part, Rows, fit_together
from securemodel.training.datasets import owned

impute = pytest.importorskip("sklearn.impute")
theirs = pytest.importorskip("sklearn.preprocessing")

AGE, INCOME, PAID = (
    Field("age", 18, 99, True, whole=True),
    Field("income", 0, 500_000, True),
    Field("paid", 0, 1, False, whole=True),
)
PARTIES = ("bank", "shop", "club")


def table(rows: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    x = np.stack(
        [draw.integers(18, 99, rows), draw.lognormal(10.5, 0.6, rows).clip(0, 5e5), draw.integers(0, 2, rows)], 1
    )
    x = x.astype(float)
    x[draw.random(rows) < 0.1, 0] = np.nan
    x[draw.random(rows) < 0.2, 1] = np.nan
    return x


def split(x: np.ndarray, sizes: tuple[int, ...]) -> Rows:
    parts, at = [], 0
    for party, size in zip(PARTIES, sizes, strict=False):
        rows = torch.from_numpy(x[at : at + size])
        parts.append(Part(owned(party, rows), lambda rows=rows: rows))
        at += size
    assert at == len(x)
    return Rows(tuple(parts))


ASKED: list = []


def ask(query):
    ASKED.append(query)
    return here(PARTIES).ask(compile_query(query, PARTIES))


def fit(step, fields, rows):
    ASKED.clear()
    (found,) = run_fits([fit_together(step, fields, rows, "x")], ask)
    assert {name: tuple(t.shape) for name, t in found.items()} == step.shapes(fields)
    return {name: values.numpy() for name, values in found.items()}


ALL = (AGE, INCOME, PAID)


def test_a_standard_scaler_of_three_parties():
    x = table(300)
    found = fit(StandardScaler(), ALL, split(x, (100, 150, 50)))
    wanted = theirs.StandardScaler().fit(x)
    for name in ("mean_", "var_", "scale_"):
        np.testing.assert_allclose(found[name], getattr(wanted, name), rtol=1e-6)
    assert len(ASKED) == 2  # counts of what may be missing first


def test_a_constant_is_one_whoever_has_its_rows():
    found = fit(StandardScaler(), (Field("x", 0, 10),), split(np.full((40, 1), 3.3), (20, 20)))
    assert found["scale_"].tolist() == [1.0] and found["mean_"][0] == pytest.approx(3.3, abs=1e-10)
    assert len(ASKED) == 1


def test_the_least_and_the_largest():
    x = table(90)
    found, wanted = fit(MinMaxScaler(), ALL, split(x, (45, 45))), theirs.MinMaxScaler().fit(x)
    np.testing.assert_allclose(found["data_min_"], wanted.data_min_, atol=5e5 * 2.0**-24)
    np.testing.assert_allclose(found["data_max_"], wanted.data_max_, atol=5e5 * 2.0**-24)
    np.testing.assert_allclose(found["scale_"], wanted.scale_, rtol=1e-5)


def test_quantiles_are_within_half_a_bin():
    x = table(201)
    found, wanted = fit(RobustScaler(), ALL, split(x, (100, 101))), theirs.RobustScaler().fit(x)
    half = np.array([1e-9, 5e5 / 2**17, 1e-9])
    assert (np.abs(found["center_"] - wanted.center_) <= half).all()
    assert (np.abs(found["scale_"] - wanted.scale_) <= 2 * half).all()


@pytest.mark.parametrize("method", ["averaged_inverted_cdf", "linear"])
def test_bins_of_whole_numbers_are_those_of_scikit_learn(method):
    x = table(120)[:, :1]
    x = x[~np.isnan(x[:, 0])]
    of = (Field("age", 18, 99, False, whole=True),)
    found = fit(KBinsDiscretizer(4, "ordinal", quantile_method=method), of, split(x, (60, len(x) - 60)))
    wanted = theirs.KBinsDiscretizer(4, encode="ordinal", quantile_method=method).fit(x)
    np.testing.assert_array_equal(found["bin_edges_"][0], wanted.bin_edges_[0])


def test_uniform_bins_and_clip():
    x = table(120)[:, 2:]
    found = fit(KBinsDiscretizer(4, strategy="uniform"), (PAID,), split(x, (60, 60)))
    np.testing.assert_array_equal(found["bin_edges_"], [[0, 0.25, 0.5, 0.75, 1]])
    y = table(120)[:, :1]
    clipped = fit(Clip(0.1, 0.9), (AGE,), split(y, (60, 60)))
    np.testing.assert_allclose([clipped["lower_"][0], clipped["upper_"][0]], np.nanquantile(y, [0.1, 0.9]), rtol=1e-9)


@pytest.mark.parametrize("strategy", ["mean", "median", "most_frequent", "constant"])
def test_what_stands_for_missing_values(strategy):
    x = table(150)[:, :1]
    found, wanted = (
        fit(SimpleImputer(strategy), (AGE,), split(x, (75, 75))),
        impute.SimpleImputer(strategy=strategy).fit(x),
    )
    np.testing.assert_allclose(found["statistics_"], wanted.statistics_.astype(float), rtol=1e-9)
    assert len(ASKED) == (0 if strategy == "constant" else 2)


def test_the_least_of_equally_frequent_values():
    x = np.array([[3.0], [1], [1], [3], [2], [np.nan]])
    assert fit(SimpleImputer("most_frequent"), (Field("x", 0, 5, True, whole=True),), split(x, (3, 3)))[
        "statistics_"
    ] == [1]


def test_a_lambda_whose_likelihood_is_near_the_best():
    x = table(300)[:, 1:2]
    found, wanted = fit(PowerTransformer(), (INCOME,), split(x, (150, 150))), theirs.PowerTransformer().fit(x)
    values = x[~np.isnan(x)]
    lam = found["lambdas_"][0]
    assert abs(lam - wanted.lambdas_[0]) <= 0.15
    assert log_likelihood(values, lam) > log_likelihood(values, wanted.lambdas_[0]) - 2e-3
    assert ["best_0"] in [list(query.reveal) for query in ASKED]
    from securemodel.data.power import yeo_johnson

    made = yeo_johnson(torch.from_numpy(values), torch.tensor(lam)).numpy()
    np.testing.assert_allclose([found["mean_"][0], found["scale_"][0]], [made.mean(), made.std()], rtol=1e-5)


def test_many_fits_are_few_queries():
    x = table(60)
    rows = [split(x[:, [k]], (30, 30)) for k in range(3)]
    ASKED.clear()
    steps = (StandardScaler(), RobustScaler(), StandardScaler())
    fits = [fit_together(step, (field,), of, field.name) for step, field, of in zip(steps, ALL, rows, strict=True)]
    found = run_fits(fits, ask)
    assert len(ASKED) == 2  # counts, and the mean of what cannot be missing; then all else
    wanted = theirs.StandardScaler().fit(x)
    assert found[2]["mean_"].item() == pytest.approx(wanted.mean_[2], rel=1e-9)
    assert found[0]["mean_"].item() == pytest.approx(wanted.mean_[0], rel=1e-9)


def test_nobody_has_a_value():
    x = np.full((20, 1), np.nan)
    with pytest.raises(InputError, match="no row has a value of 'age'"):
        fit(StandardScaler(), (AGE,), split(x, (10, 10)))


# ---- hidden rows
def hidden(x: np.ndarray, seed: int = 1):
    draw = np.random.default_rng(seed)
    mine, yours = draw.random(len(x)) < 0.8, draw.random(len(x)) < 0.7
    rows = torch.from_numpy(np.where(mine[:, None], x, 0.0))
    weights = (owned("bank", torch.from_numpy(mine).float()), owned("shop", torch.from_numpy(yours).float()))
    return Rows((Part(owned("bank", rows), lambda: rows),), weights), x[mine & yours]


def test_hidden_rows_have_no_part_in_moments():
    rows, true = hidden(table(200))
    found, wanted = fit(StandardScaler(), ALL, rows), theirs.StandardScaler().fit(true)
    widths = np.array([81, 5e5, 1])
    assert (np.abs(found["mean_"] - wanted.mean_) < widths * 2.0**-13).all()
    np.testing.assert_allclose(found["scale_"], wanted.scale_, rtol=0.01)


def test_hidden_rows_have_no_part_in_quantiles():
    rows, true = hidden(table(150)[:, :1])
    found = fit(SimpleImputer("median"), (AGE,), rows)
    assert found["statistics_"][0] == np.nanmedian(true)


def test_hidden_rows_are_neither_the_least_nor_the_largest(monkeypatch):
    x = table(40)
    x[:, 0] = x[:, 0].clip(20, 90)
    of_nobody = sorted({*range(40)} - {*hidden(np.arange(40.0)[:, None], 4)[1].flatten().astype(int)})
    x[of_nobody[:2], 0], x[of_nobody[2:4], 1] = (18, 99), (0, 5e5)
    rows, true = hidden(x, 4)
    found, wanted = fit(MinMaxScaler(), ALL, rows), theirs.MinMaxScaler().fit(true)
    np.testing.assert_allclose(found["data_min_"], wanted.data_min_, atol=5e5 * 2.0**-23)
    np.testing.assert_allclose(found["data_max_"], wanted.data_max_, atol=5e5 * 2.0**-23)
    bins = fit(KBinsDiscretizer(4, "ordinal", "uniform"), (PAID,), hidden(x[:, 2:], 4)[0])
    assert sorted(bins["bin_edges_"].flatten().tolist()) == [0, 0.25, 0.5, 0.75, 1]
    monkeypatch.setattr(totals, "_MOST_COMPARED", 100)
    with pytest.raises(InputError, match="of 40 hidden rows too many"):
        fit(MinMaxScaler(), ALL, rows)


# ---- what one party tells
def test_numbers_are_told_bit_for_bit():
    values = torch.tensor([0.1, -1e300, 5e-324, float("inf"), -0.0, 2.0**63], dtype=torch.float64)
    assert torch.equal(asks.values_of(asks.words_of(values)).view(torch.int64), values.view(torch.int64))
    shapes = {"a": (2, 2), "b": (2,)}
    made = {"a": values[:4].reshape(2, 2), "b": values[4:]}
    (found,) = run_fits([told("edges of age", "bank", shapes, lambda: made)], ask)
    assert all(torch.equal(found[name].view(torch.int64), made[name].view(torch.int64)) for name in shapes)
    assert ASKED[-1].once["words_0"].party == "bank"


def test_places_in_order_are_those_of_numpy():
    for count in (1, 2, 3, 10, 101):
        values = np.sort(np.random.default_rng(count).normal(size=count))
        for method in ("linear", "averaged_inverted_cdf"):
            levels = np.linspace(0, 1, 9)
            found = [values[a] + w * (values[b] - values[a]) for a, b, w in totals.positions_of(levels, count, method)]
            np.testing.assert_allclose(found, np.quantile(values, levels, method=method), rtol=1e-12, atol=1e-12)


def test_bins_of_places_in_the_clear():
    draw = np.random.default_rng(0)
    codes = np.sort(draw.integers(0, 1000, 77))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        histogram = torch.bincount(torch.from_numpy(codes), minlength=1000).double()
    assert totals.bins_at(histogram, range(77)).tolist() == codes.tolist()
