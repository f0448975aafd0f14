"""Steps against scikit-learn, on drawn tables with missing values."""

import itertools
import warnings

import numpy as np
import pytest
import torch

from protocols.errors import InputError
from securemodel.data.discretizing import Clip, KBinsDiscretizer
from securemodel.data.encoding import OneHotEncoder, OrdinalEncoder
from securemodel.data.fields import Field
from securemodel.data.imputing import SimpleImputer
from securemodel.data.power import PowerTransformer, best_lambda, log_likelihood
from securemodel.data.preprocess import REFUSED
from securemodel.data.scaling import MinMaxScaler, RobustScaler, StandardScaler

impute = pytest.importorskip("sklearn.impute")
theirs = pytest.importorskip("sklearn.preprocessing")


def table(seed: int, rows: int = 101, missing: bool = True) -> np.ndarray:
    """Columns of unlike kinds: normal, skewed, few values with ties, constant, tiny and huge."""
    draw = np.random.default_rng(seed)
    columns = [
        draw.normal(3, 2, rows), draw.exponential(1000, rows), draw.integers(0, 5, rows).astype(float),
        np.full(rows, 7.25), draw.normal(0, 1e-6, rows), -draw.lognormal(3, 1, rows),
    ]  # fmt: skip
    x = np.stack(columns, 1)
    if missing:
        gone = draw.random(x.shape) < 0.2
        gone[0] = False
        x[gone] = np.nan
    return x


def fields(x: np.ndarray) -> tuple[Field, ...]:
    return tuple(
        Field(f"x{k}", float(np.nanmin(c)), float(np.nanmax(c)), bool(np.isnan(c).any())) for k, c in enumerate(x.T)
    )


def fitted(step, x, rows=None, of=None):
    """Parameters, and the features of other rows."""
    of = of or fields(x)
    assert step.problems(of) == []
    p = {name: torch.from_numpy(values) for name, values in step.fit(x, of).items()}
    assert {name: tuple(t.shape) for name, t in p.items()} == step.shapes(of)
    made = step.apply(torch.from_numpy(x if rows is None else rows), p, of)
    assert made.dtype == torch.float64 and made.shape[1] == len(step.out(of))
    return p, made.numpy()


SAME = [
    (StandardScaler(), theirs.StandardScaler()),
    (StandardScaler(with_mean=False), theirs.StandardScaler(with_mean=False)),
    (StandardScaler(with_std=False), theirs.StandardScaler(with_std=False)),
    (MinMaxScaler(), theirs.MinMaxScaler()),
    (MinMaxScaler((-1, 3), clip=True), theirs.MinMaxScaler(feature_range=(-1, 3), clip=True)),
    (RobustScaler(), theirs.RobustScaler()),
    (RobustScaler(with_centering=False), theirs.RobustScaler(with_centering=False)),
    (RobustScaler(with_scaling=False), theirs.RobustScaler(with_scaling=False)),
    (RobustScaler(quantile_range=(5, 80), unit_variance=True), theirs.RobustScaler(quantile_range=(5, 80), unit_variance=True)),
    (SimpleImputer(), impute.SimpleImputer()),
    (SimpleImputer("median", add_indicator=True), impute.SimpleImputer(strategy="median", add_indicator=True)),
    (SimpleImputer("most_frequent"), impute.SimpleImputer(strategy="most_frequent")),
    (SimpleImputer("constant"), impute.SimpleImputer(strategy="constant")),
    (SimpleImputer("constant", fill_value=-3.5), impute.SimpleImputer(strategy="constant", fill_value=-3.5)),
]  # fmt: skip


@pytest.mark.parametrize(("ours", "sklearn"), SAME, ids=lambda step: repr(step)[:60])
@pytest.mark.parametrize("seed", range(3))
def test_as_scikit_learn(ours, sklearn, seed):
    x, other = table(seed), table(seed + 100)
    sklearn.fit(x)
    p, made = fitted(ours, x)
    np.testing.assert_allclose(made, sklearn.transform(x), rtol=1e-9, atol=1e-9)
    _, again = fitted(ours, x, other)
    np.testing.assert_allclose(again, sklearn.transform(other), rtol=1e-9, atol=1e-9)
    for name, values in p.items():
        if getattr(sklearn, name, None) is not None:
            np.testing.assert_allclose(values.numpy(), np.asarray(getattr(sklearn, name), float), rtol=1e-9, atol=1e-12)


def test_names_are_those_of_scikit_learn():
    x = table(0)
    names = [f.name for f in fields(x)]
    for ours, sklearn in SAME:
        found = [f.name for f in ours.out(fields(x))]
        assert found == list(sklearn.fit(x).get_feature_names_out(names))


@pytest.mark.parametrize("method", ["averaged_inverted_cdf", "linear"])
@pytest.mark.parametrize("encode", ["ordinal", "onehot-dense"])
@pytest.mark.parametrize("strategy", ["quantile", "uniform"])
def test_bins_are_those_of_scikit_learn(method, encode, strategy):
    for seed, bins in itertools.product(range(3), (2, 4, 7)):
        x, other = table(seed, missing=False), table(seed + 9, missing=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sklearn = theirs.KBinsDiscretizer(bins, encode="ordinal", strategy=strategy, quantile_method=method).fit(x)
            _, made = fitted(KBinsDiscretizer(bins, encode, strategy, method), x, other)
        wanted = sklearn.transform(other)
        if encode == "onehot-dense":
            wanted = np.eye(bins)[wanted.astype(int)].reshape(len(x), -1)
        np.testing.assert_array_equal(made, wanted)


def test_the_two_conventions_of_quantile_bins():
    """1..10 in 4: scikit-learn 1, 3, 5.5, 8, 10 and qcut 1, 3.25, 5.5, 7.75, 10; an edge belongs to the bin above."""
    x = np.arange(1.0, 11)[:, None]
    of = (Field("x", 1, 10),)
    edges, codes = fitted(KBinsDiscretizer(4, "ordinal"), x, of=of)
    assert edges["bin_edges_"].tolist() == [[1, 3, 5.5, 8, 10]]
    assert codes[:, 0].tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    edges, codes = fitted(KBinsDiscretizer(4, "ordinal", quantile_method="linear"), x, of=of)
    assert edges["bin_edges_"].tolist() == [[1, 3.25, 5.5, 7.75, 10]]
    assert codes[:, 0].tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    with pytest.warns(UserWarning, match="no width"):
        _, codes = fitted(KBinsDiscretizer(4, "ordinal"), np.array([[0.0]] * 8 + [[1], [2.0]]), of=of)
    assert set(codes[:8, 0].tolist()) == {0}


@pytest.mark.parametrize("method", ["averaged_inverted_cdf", "linear"])
def test_numbers_nearer_than_any_bin_is_wide_are_in_bin_0(method):
    """Bins narrower than 1e-8 are merged, and one is left where all are; scikit-learn fails there."""
    x = np.linspace(0, 1e-9, 12)[:, None]
    with pytest.warns(UserWarning, match="nearly so"):
        _, codes = fitted(KBinsDiscretizer(3, "ordinal", quantile_method=method), x, of=(Field("x", 0, 1),))
    assert codes[:, 0].tolist() == [0] * 12


def test_the_names_of_bins():
    x = table(0, missing=False)[:, :2]
    sklearn = theirs.KBinsDiscretizer(3, encode="onehot-dense", quantile_method="averaged_inverted_cdf").fit(x)
    assert [f.name for f in KBinsDiscretizer(3).out(fields(x))] == list(sklearn.get_feature_names_out(["x0", "x1"]))


def test_clip_is_numpy_between_quantiles():
    x = table(4)
    p, made = fitted(Clip(0.05, 0.9), x)
    low, high = np.nanquantile(x, [0.05, 0.9], axis=0)
    np.testing.assert_allclose(p["lower_"], low, rtol=1e-12)
    np.testing.assert_allclose(made, np.clip(x, low, high), rtol=1e-12)


CITIES = ("Ghent", "Oslo", "Utrecht")


@pytest.mark.parametrize("drop", [None, "first", "if_binary"])
@pytest.mark.parametrize("missing", [False, True])
def test_one_hot_as_scikit_learn(drop, missing):
    draw = np.random.default_rng(0)
    codes = np.stack([draw.integers(0, 3, 50), draw.integers(0, 2, 50)], 1).astype(float)
    words = np.array([[CITIES[int(a)], "yn"[int(b)]] for a, b in codes], object)
    if missing:
        codes[::7, 0], words[::7, 0] = np.nan, np.nan
    of = (Field("city", 0, 2, missing, CITIES), Field("paid", 0, 1, False, ("y", "n")))
    known = [[*CITIES, *([np.nan] if missing else [])], ["y", "n"]]
    sklearn = theirs.OneHotEncoder(categories=[np.array(k, object) for k in known], drop=drop, sparse_output=False).fit(
        words
    )
    _, made = fitted(OneHotEncoder(drop), codes, of=of)
    np.testing.assert_array_equal(made, sklearn.transform(words))
    assert [f.name for f in OneHotEncoder(drop).out(of)] == list(sklearn.get_feature_names_out(["city", "paid"]))


def test_ordinal_as_scikit_learn():
    codes = np.array([[0.0], [2], [np.nan], [1]])
    words = np.array([["Ghent"], ["Utrecht"], [np.nan], ["Oslo"]], object)
    of = (Field("city", 0, 2, True, CITIES),)
    known = [np.array([*CITIES, np.nan], object)]
    for given in (None, -1.0, 9.0):
        sklearn = theirs.OrdinalEncoder(categories=known, encoded_missing_value=np.nan if given is None else given)
        _, made = fitted(OrdinalEncoder(encoded_missing_value=given), codes, of=of)
        np.testing.assert_array_equal(made, sklearn.fit_transform(words))


def test_unknown_categories_are_refused_or_have_a_place():
    rows = torch.tensor([[0.0], [3.0]], dtype=torch.float64)
    of = (Field("city", 0, 2, False, CITIES),)
    assert OneHotEncoder().apply(rows, {}, of).tolist() == [[1, 0, 0], [REFUSED] * 3]
    assert OneHotEncoder(handle_unknown="ignore").apply(rows, {}, of).tolist() == [[1, 0, 0], [0, 0, 0]]
    assert OrdinalEncoder().apply(rows, {}, of).tolist() == [[0], [REFUSED]]
    step = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    assert step.apply(rows, {}, of).tolist() == [[0], [-1]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("standardize", [True, False])
def test_power_as_scikit_learn(seed, standardize):
    columns = [0, 1, 2, 5]  # of a constant with missing values scikit-learn 1.9 finds a lambda by chance; ours is 1
    x, other = table(seed)[:, columns], table(seed + 50)[:, columns]
    sklearn = theirs.PowerTransformer(standardize=standardize).fit(x)
    p, made = fitted(PowerTransformer(standardize=standardize), x, other)
    np.testing.assert_allclose(p["lambdas_"], sklearn.lambdas_, atol=2e-6)
    np.testing.assert_allclose(made, sklearn.transform(other), rtol=1e-3, atol=1e-5)


def test_a_lambda_beyond_those_that_are_tried_first():
    draw = np.random.default_rng(1)
    for values in (100 + 30 * draw.beta(8, 1, 400), 1 / draw.uniform(0.02, 1, 400) ** 2):
        found, wanted = best_lambda(values), theirs.PowerTransformer().fit(values[:, None]).lambdas_[0]
        assert log_likelihood(values, found) >= log_likelihood(values, wanted) - 1e-9


def test_a_constant_becomes_zero():
    x = np.full((20, 1), 0.1) * 3
    for step in (StandardScaler(), MinMaxScaler(), RobustScaler(), PowerTransformer()):
        _, made = fitted(step, x, of=(Field("x", 0, 1),))
        np.testing.assert_allclose(made, 0, atol=1e-12)


def test_features_without_values_are_named_all_at_once():
    x = table(0)
    x[:, [1, 4]] = np.nan
    for step in (StandardScaler(), MinMaxScaler(), RobustScaler(), SimpleImputer(), Clip(), PowerTransformer()):
        with pytest.raises(InputError, match="'x1', 'x4'"):
            step.fit(x, tuple(Field(f"x{k}", missing=True) for k in range(x.shape[1])))


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (StandardScaler(), "categories of 'city'"),
        (SimpleImputer("mean"), "have no mean"),
        (SimpleImputer("mode"), "'mode' is none of"),
        (SimpleImputer("constant", fill_value="Rome"), "'Rome' is no value"),
        (SimpleImputer("constant", fill_value=1.0), "no value of 'city'"),
        (KBinsDiscretizer(1), "n_bins=1"),
        (KBinsDiscretizer(True), "n_bins=True"),
        (KBinsDiscretizer(strategy="kmeans"), "kmeans"),
        (RobustScaler(quantile_range=(80, 20)), "no two percentages"),
        (MinMaxScaler((1, 1)), "no range"),
        (Clip(0.9, 0.1), "no two quantiles"),
        (PowerTransformer("box-cox"), "box-cox"),
        (OneHotEncoder(drop="last"), "drop='last'"),
        (OrdinalEncoder(unknown_value=1.0), "unknown_value"),
    ],
)
def test_what_a_step_cannot_take_is_known_before_rows_are(step, wanted):
    assert any(wanted in text for text in step.problems((Field("city", 0, 2, False, CITIES),)))


def test_bins_and_encoders_say_what_they_cannot_take():
    number = (Field("age", 0, 99, True),)
    assert "put SimpleImputer" in KBinsDiscretizer().problems(number)[0]
    assert "KBinsDiscretizer" in OneHotEncoder().problems(number)[0]
    many = (Field("city", 0, 4999, False, tuple(map(str, range(5000)))),)
    assert "more than 4096" in OrdinalEncoder().problems(many)[0]


def test_a_filled_category_keeps_its_names():
    of = (Field("city", 0, 2, True, CITIES),)
    step = SimpleImputer("constant", fill_value="Oslo")
    _, made = fitted(step, np.array([[0.0], [np.nan], [2]]), of=of)
    assert made[:, 0].tolist() == [0, 1, 2]
    assert step.out(of) == (Field("city", 0, 2, False, CITIES),)


@pytest.mark.parametrize(
    "step", [StandardScaler(), MinMaxScaler((-2, 5)), MinMaxScaler(clip=True), RobustScaler(), Clip()]
)
def test_bounds_hold_for_all_rows_within_the_bounds_before(step):
    x = table(3, missing=False)
    of = fields(x)
    p = {name: torch.from_numpy(values) for name, values in step.fit(x[:40], of).items()}
    made = step.apply(torch.from_numpy(x), p, of)
    low, high = (
        torch.tensor([getattr(f, end) for f in step.known(of, p)], dtype=torch.float64) for end in ("low", "high")
    )
    assert (made >= low - 1e-9 * (1 + low.abs())).all() and (made <= high + 1e-9 * (1 + high.abs())).all()
    assert not torch.isinf(low).any()
