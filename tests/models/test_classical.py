"""Models of scikit-learn give what scikit-learn gives, in the clear and among parties."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import classical
import numpy as np
import pytest
import torch
from sklearn import ensemble, linear_model, neighbors, preprocessing, tree
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.isotonic import IsotonicRegression
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits
from torch import nn

import securemodel
from securemodel.errors import InputError
from securemodel.models import from_sklearn, from_structure, structure
from securemodel.models.sklearn import Calibrated, Curves


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of the libraries would wait for those of torch."""
    with threadpool_limits(1, user_api="openmp"):
        yield


TWO = {"weights": "a", "inputs": "b", "outputs": "b"}
SCORES = {"class": "predict", "probabilities": "predict_proba", "scores": "decision_function", "value": "predict"}
BOUND = 2.0**-12
KERNELS = 2.0**-9
"""Sums over hundreds of support vectors, each with a kernel value that is rounded."""


class Both(nn.Module):
    """Several outputs of one model, compiled once."""

    def __init__(self, estimator, names, **options) -> None:
        super().__init__()
        self.parts = nn.ModuleList([from_sklearn(estimator, output=name, **options) for name in names])

    def forward(self, *columns):
        return tuple(part(*columns) for part in self.parts)


def fitted(estimator, x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return clone(estimator).fit(x, y)


def securely(module, *columns, **settings):
    program = securemodel.compile(module, columns, **{**TWO, **settings})
    with securemodel.local(program) as session:
        return session.run(*columns)


def right(estimator, name, x):
    made = getattr(estimator, SCORES[name])(x)
    return np.searchsorted(estimator.classes_, made) if name == "class" else made


def agrees(estimator, x, names, bound=BOUND):
    module, rows = Both(estimator, names).eval(), torch.tensor(x)
    with torch.no_grad():
        clear = module(rows)
    results = securely(module, rows)
    results = results if len(names) > 1 else (results,)
    for name, in_torch, made in zip(names, clear, results, strict=True):
        expected = right(estimator, name, x)
        assert made.shape == expected.shape and expected.std() > 0.01
        assert np.abs(in_torch.numpy() - expected).max() < 1e-6, name
        assert np.abs(made.numpy() - expected).max() < (bound if name != "class" else 1e-9), name


def outputs_of(estimator):
    return ["class", *(name for name in ("probabilities", "scores") if hasattr(estimator, SCORES[name]))]


THREE = (
    "logistic",
    "sgd",
    "svm",
    "perceptron",
    "bayes",
    "calibrated",
    "isotonic",
    "isotonic tree",
    "forest",
    "boosted",
    "ada",
    "histogram",
)
ONE_CASE = [name for name in classical.CLASSIFIERS if name not in THREE]
CASES = [(name, 2) for name in ONE_CASE] + [(name, 3) for name in THREE]
CASES += [pytest.param(name, 2, marks=pytest.mark.slow) for name in classical.CLASSIFIERS if name in THREE]


@pytest.mark.parametrize("name, classes", CASES)
def test_classifiers(name, classes):
    x, y = classical.table(classes=classes)
    estimator = fitted(classical.CLASSIFIERS[name], x, y)
    agrees(estimator, x[:100], outputs_of(estimator), KERNELS if name.startswith("svm") else BOUND)


@pytest.mark.parametrize("name", classical.REGRESSORS)
def test_regressors(name):
    x, y = classical.table()
    target = np.abs(x[:, 0] - 3) * 5 + y
    agrees(fitted(classical.REGRESSORS[name], x, target), x[:100], ["value"], KERNELS if name == "svr" else BOUND)


@pytest.mark.parametrize("name", classical.OF_ROWS)
def test_models_without_classes_and_targets(name):
    x, _ = classical.table(200)
    model, output = classical.OF_ROWS[name]
    estimator = fitted(model, x, None)
    expected = getattr(estimator, SCORES[output])(x[:60])
    assert expected.std() > 0.01
    module = from_sklearn(estimator)
    made = securely(module, torch.tensor(x[:60])).numpy()
    assert made.shape == expected.shape and np.abs(made - expected).max() < (1e-9 if output == "class" else BOUND)
    for other in {"class", "scores", "value", "probabilities"} - {output}:
        with pytest.raises(InputError, match=f"output='{output}'"):
            from_sklearn(estimator, output=other)


@pytest.mark.parametrize("name", classical.MIXED)
def test_categories_and_missing_values(name):
    x, y = classical.mixed()
    estimator = fitted(classical.MIXED[name], x, y)
    agrees(estimator, x[:150], outputs_of(estimator))


@pytest.mark.parametrize("code", [-2, np.nan])
def test_missing_categories_of_ordinal_encoders(code):
    x, y = classical.mixed()
    x[::5, 2] = np.nan
    y = np.where(np.isnan(x[:, 2]), x[:, 3] > 10, y)
    encoder = ColumnTransformer([("codes", preprocessing.OrdinalEncoder(encoded_missing_value=code), [2, 3])])
    forest = fitted(make_pipeline(encoder, ensemble.RandomForestClassifier(n_estimators=5, random_state=0)), x, y)
    agrees(forest, x[:100], ["class", "probabilities"])
    lines = make_pipeline(encoder, preprocessing.StandardScaler(), linear_model.LogisticRegression())
    if code == -2:
        agrees(fitted(lines, x, y), x[:100], ["class", "probabilities"])
        return
    lines = fitted(lines, np.nan_to_num(x), y)
    lines[0].transformers_[0][1].categories_[0][0] = np.nan  # such a model cannot be fitted
    with pytest.raises(InputError, match="encoded_missing_value"):
        from_sklearn(lines)


def thresholds_of(estimator) -> dict[int, set[float]]:
    """The thresholds of each column."""
    found: dict[int, set[float]] = {}
    if hasattr(estimator, "_predictors"):
        nodes = np.concatenate([p.nodes for row in estimator._predictors for p in row])
        pairs = [(n["feature_idx"], n["num_threshold"]) for n in nodes if not n["is_leaf"]]
    else:
        trees = [e.tree_ for e in np.ravel(getattr(estimator, "estimators_", [estimator]))]
        pairs = [(f, t) for tree_ in trees for f, t in zip(tree_.feature, tree_.threshold, strict=True) if f >= 0]
    for column, threshold in pairs:
        found.setdefault(int(column), set()).add(float(threshold))
    return found


TREES = {
    "forest": ensemble.RandomForestClassifier(n_estimators=5, max_depth=6, random_state=0),
    "boosted": ensemble.GradientBoostingClassifier(n_estimators=5, random_state=0),
    "histogram": ensemble.HistGradientBoostingClassifier(max_iter=5, random_state=0),
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("whole", [True, False], ids=["whole numbers", "reals"])
def test_rows_on_and_beside_thresholds(name, whole):
    x, y = classical.table(800)
    x = np.round(x) * 0.5 if whole else x  # of whole numbers' halves, thresholds are training values
    estimator = fitted(TREES[name], x, y)
    rows, random = x[:300].copy(), np.random.default_rng(0)
    for column, found in thresholds_of(estimator).items():
        values = random.choice(sorted(found), len(rows))
        step = np.float32 if name != "histogram" else np.float64
        beside = [values, np.nextafter(step(values), step(np.inf)), np.nextafter(step(values), step(-np.inf))]
        rows[:, column] = np.choose(random.integers(0, 3, len(rows)), beside)
    if name == "histogram":  # numbers that differ by less than 2^-40 of themselves are one
        rows = np.where(np.isin(rows, np.concatenate([[*t] for t in thresholds_of(estimator).values()])), rows, x[:300])
    made = securely(from_sklearn(estimator), torch.tensor(rows)).numpy()
    assert np.abs(made - estimator.predict_proba(rows)).max() < BOUND


def test_columns_are_opened_once_whatever_conditions_read_them():
    x, y = classical.table()
    module = from_sklearn(fitted(TREES["forest"], x, y))
    graph = securemodel.compile(module, torch.tensor(x[:50]), **TWO).graph
    opened = [node.shape for node in graph.nodes if node.op == "mask" and node.phase == "run"]
    assert len(module.body.thresholds) // 2 > 50 and max(map(np.prod, opened)) <= 50 * 2 * x.shape[1]


def single(threshold_rows, target, **options):
    return tree.DecisionTreeRegressor(**options).fit(np.array(threshold_rows, float).reshape(-1, 1), target)


def values(estimator, rows) -> list[float]:
    return np.round(securely(from_sklearn(estimator), torch.tensor(rows).reshape(-1, 1).double()).numpy(), 3).tolist()


def test_trees_round_to_float32_first():
    estimator = single([0.2, 0.3], [0.0, 1.0])
    assert estimator.tree_.threshold[0] == 0.2500000074505806
    assert values(estimator, [0.25000001, 0.25000003]) == [0.0, 1.0]


def test_missing_values_where_fitting_saw_none():
    for at, side in ((3, 1.0), (5, 1.0), (7, 0.0)):
        estimator = single(range(10), [float(i >= at) for i in range(10)])
        assert values(estimator, [np.nan]) == [side] == estimator.predict([[np.nan]]).tolist()


def test_missing_against_the_rest_has_an_infinite_threshold():
    x, y = np.array([np.nan] * 50 + [*range(50)]).reshape(-1, 1), [5.0] * 50 + [0.0] * 50
    for estimator in (tree.DecisionTreeRegressor(max_depth=1), ensemble.HistGradientBoostingRegressor(max_iter=1)):
        estimator.fit(x, y)
        expected = np.round(estimator.predict([[np.nan], [1e30], [0.0], [-1e30]]), 3).tolist()
        assert expected[0] > expected[1] == expected[2]
        assert values(estimator, [np.nan, 1e30, 0.0, -1e30]) == pytest.approx(expected)


def test_missing_values_are_refused_where_the_library_refuses_them():
    x, y = classical.table()
    rows = x[:5].copy()
    rows[0] = np.nan
    for name in ("boosted", "ada"):
        estimator = fitted(classical.CLASSIFIERS[name], x, y)
        with pytest.raises(InputError, match="out of range"):
            securely(from_sklearn(estimator), torch.tensor(rows))


def test_first_scores_of_several_classes_are_centered():
    x, y = np.zeros((10, 1)), [0] * 5 + [1] * 3 + [2] * 2
    for estimator in (ensemble.GradientBoostingClassifier(n_estimators=1), ensemble.HistGradientBoostingClassifier()):
        scores = from_sklearn(estimator.fit(x, y), output="scores")(torch.zeros(1, 1)).tolist()[0]
        assert scores == pytest.approx([0.4757, -0.0351, -0.4406], abs=1e-3)


def test_unknown_categories_are_missing_ones():
    x, y = classical.mixed()
    estimator = fitted(classical.MIXED["categories"], x, y)
    rows = x[:40].copy()
    rows[:20, 2], rows[20:, 3] = 7, np.nan
    made = securely(from_sklearn(estimator), torch.tensor(rows)).numpy()
    assert np.abs(made - estimator.predict_proba(rows)).max() < BOUND


def test_columns_of_two_parties_beside_the_owner_of_the_weights():
    x, y = classical.mixed()
    for name in ("forest", "categories"):
        estimator = fitted(classical.MIXED[name], x, y)
        module = from_sklearn(estimator, columns=[[2, 0], [1, 3]])
        parts = torch.tensor(x[:60])[:, [2, 0]], torch.tensor(x[:60])[:, [1, 3]]
        for owners in (("bank", "shop"), ("model", "shop")):
            parties = tuple(dict.fromkeys(["model", *owners]))
            made = securely(module, *parts, weights="model", inputs=owners, outputs="model", parties=parties)
            assert np.abs(made.numpy() - estimator.predict_proba(x[:60])).max() < BOUND


def test_what_is_public_makes_the_same_program():
    x, y = classical.mixed()
    for name in ("logistic", "categories"):
        module = from_sklearn(fitted(classical.MIXED[name], x, y))
        text = structure(module)
        other, rows = from_structure(text), torch.tensor(x[:5])
        assert all(buffer.is_meta for buffer in other.buffers()) and structure(other) == text
        programs = [securemodel.compile(m, rows, **TWO) for m in (module, other)]
        assert programs[0].digest == programs[1].digest
        secret = {f"{v:.6g}" for b in module.buffers() if b.is_floating_point() for v in b.flatten().tolist() if v % 1}
        assert secret and not any(number in text for number in secret)


def test_texts_that_are_no_structures_are_refused():
    x, y = classical.table()
    good = json.loads(structure(from_sklearn(fitted(TREES["forest"], x, y))))
    for bad in (
        "",
        "[]",
        "{}",
        json.dumps({**good, "format": "x"}),
        json.dumps({**good, "model": {"module": "Linear9"}}),
    ):
        with pytest.raises(InputError):
            from_structure(bad)


@pytest.mark.parametrize(
    "estimator, word",
    [
        ("model.pkl", "pickle"),
        (tree.DecisionTreeClassifier(), "not fitted"),
        (make_pipeline(preprocessing.PolynomialFeatures(), linear_model.LinearRegression()), "PolynomialFeatures"),
        (neighbors.RadiusNeighborsClassifier(1e9), "RadiusNeighbors"),
        (neighbors.KNeighborsClassifier(weights="distance"), "weights"),
        (ensemble.GradientBoostingClassifier(n_estimators=2, init=linear_model.LogisticRegression()), "another model"),
        (make_pipeline(preprocessing.MinMaxScaler(clip=True), linear_model.RidgeClassifier()), "clip"),
    ],
)
def test_what_is_refused_says_why(estimator, word):
    x, y = classical.table(60)
    if word not in ("pickle", "not fitted"):
        estimator.fit(x, y)
    with pytest.raises(InputError, match=word):
        from_sklearn(estimator)


class Same(nn.Module):
    def forward(self, scores):
        return scores


def test_isotonic_curves_with_steps_and_rows_that_no_class_is_likely_for():
    scores = np.array([-2.0, -1, -1 + 1e-6, 0, 1, 3])
    curves = [
        IsotonicRegression(out_of_bounds="clip").fit(scores, [0, 0, 0.5, 0.5, high, high]) for high in (0.6, 1, 0.8)
    ]
    module = Calibrated([Same()], [Curves(curves)]).eval()
    rows = np.array([[-3.0, -2, -1.5], [-1, -1 + 1e-6, -1 + 2e-6], [0.25, 0.5, 0.75], [9, -9, 1], [0, 1, 3]])
    chances = np.stack([curve.predict(rows[:, at]) for at, curve in enumerate(curves)], 1)
    total = chances.sum(1, keepdims=True)
    expected = np.where(total > 0, chances / np.where(total > 0, total, 1), 1 / 3)
    made = securely(module, torch.tensor(rows)).numpy()
    beside = np.array([0, 2, 3, 4])  # the second row stands in a step that is too steep for its scores
    assert np.abs(made - expected)[beside].max() < BOUND and expected[0].tolist() == [1 / 3] * 3


def test_isotonic_calibration_of_many_knots_is_refused(monkeypatch):
    monkeypatch.setattr(securemodel.models.sklearn, "_MOST_KNOTS", 5)
    x, y = classical.table()
    with pytest.raises(InputError, match="knots"):
        from_sklearn(fitted(classical.CLASSIFIERS["isotonic"], x, y))


def test_the_package_is_loaded_only_when_asked_for():
    code = """
import sys, securemodel
assert not {"sklearn", "securemodel.models"} & set(sys.modules)
import securemodel.models
assert not {"sklearn", "xgboost", "lightgbm", "catboost"} & set(sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
