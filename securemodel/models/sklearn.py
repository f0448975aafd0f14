"""Models of scikit-learn as torch modules, read from the fitted estimator: `from_sklearn`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from protocols.errors import explain
from securemodel.errors import InputError
from securemodel.models.columns import groups_of, settled
from securemodel.models.heads import Best, Head, Link, Output
from securemodel.models.sklearn_ensembles import Joined, Pairs, Stacked, is_ensemble, read_ensemble
from securemodel.models.sklearn_steps import Features
from securemodel.models.sklearn_trees import is_tree_model, read_trees

Columns = Sequence[Sequence[int]]


def from_sklearn(
    estimator: Any, *, columns: Sequence[Sequence[int | str]] | None = None, output: Output | None = None
) -> nn.Module:
    """The module of a fitted estimator or pipeline of scikit-learn; it takes float[rows, columns], and missing values as NaN.

    `columns`: for features of several parties, which columns (places, or names as in fitting) each of them has, in the
    order of the module's inputs. `output`: "probabilities" (predict_proba; the default of classifiers that have it),
    "scores" (decision_function), "class" (the index of the class in `module.classes`), or "value" (of regressors).
    Give float64 tensors: float32 would move numbers across thresholds that are float64.

    Thresholds, leaves, coefficients, centers and support vectors are buffers. Public is what the module's code has: the
    kind of model, which columns each tree's nodes read, the shape of trees, the side of missing values, the values of
    categories, and the order of magnitude (a power of two) of columns that are scaled.

    Raises InputError for models and options that are not read.
    """
    if isinstance(estimator, (str, bytes)) or not hasattr(estimator, "get_params"):
        raise InputError(
            explain(
                f"from_sklearn takes a fitted estimator, not {type(estimator).__name__}",
                why="files of estimators are pickles, or name code to run", fix="load it yourself where you trust it",
            )
        )  # fmt: skip
    if not hasattr(estimator, "n_features_in_"):
        raise InputError(explain(f"{type(estimator).__name__} is not fitted", fix="call fit first"))
    width = int(estimator.n_features_in_)
    names = list(getattr(estimator, "feature_names_in_", []))
    module: nn.Module = _read(estimator, Features.of_columns(width), groups_of(columns, width, names), output)
    return settled(module, getattr(estimator, "classes_", None), names)


def _read(estimator: Any, x: Features, columns: Columns, output: Output | None) -> nn.Module:
    name = type(estimator).__name__
    if name == "Pipeline":
        *steps, last = [step for _, step in estimator.steps]
        for step in steps:
            x = x.after(step)
        return _read(last, x, columns, output)
    if name in _CHOSEN:
        return _read(getattr(estimator, _CHOSEN[name]), x, columns, output)
    classifier = hasattr(estimator, "classes_")
    wanted: Output = output or _ONLY.get(name, _usual(estimator) if classifier else "value")
    if (_ONLY[name] != wanted if name in _ONLY else classifier == (wanted == "value")) or wanted not in (
        "probabilities",
        "scores",
        "class",
        "value",
    ):
        fix = f"output={_ONLY[name]!r}" if name in _ONLY else "see the documentation of from_sklearn"
        raise InputError(explain(f"output={wanted!r} of {name}", fix=fix))
    if is_tree_model(estimator):
        return read_trees(estimator, columns, wanted, x if x.steps else None)
    if is_ensemble(estimator):
        return read_ensemble(estimator, x, wanted, lambda member, mine, give: _read(member, mine, columns, give))
    if name == "CalibratedClassifierCV":
        return _calibrated(estimator, x, columns, wanted)
    if name not in _READERS:
        raise InputError(
            explain(f"no reader for {name}", where="securemodel.models.from_sklearn",
                    fix=f"models that are read: {', '.join(sorted(_READERS))}, CalibratedClassifierCV, trees and forests")
        )  # fmt: skip
    _refuse_several_labels(estimator)
    body, link = _READERS[name](estimator, x, columns)
    if (
        name == "NearestCentroid"
        and wanted == "class"
        and np.isclose(estimator.class_prior_, 1 / len(estimator.classes_)).all()
    ):
        return Best(_nearest(np.asarray(estimator.centroids_, float), x, columns))  # not by the scores
    if name in ("SVC", "NuSVC") and isinstance(body, Pairs):
        body = _of_pairs(estimator, body, wanted)
    if wanted == "probabilities" and link == "none":
        raise InputError(explain(f"{name} has no probabilities", fix="output='scores' or 'class'; or calibrate it"))
    return Head(body, wanted, link, float(estimator.n_neighbors) if link == "counts" else 1.0)


_ONLY: dict[str, Output] = {
    "KMeans": "class",
    "MiniBatchKMeans": "class",
    "IsolationForest": "scores",
    "OneClassSVM": "scores",
}
"""What is read of models without classes and targets."""
_CHOSEN = {
    "GridSearchCV": "best_estimator_",
    "RandomizedSearchCV": "best_estimator_",
    "HalvingGridSearchCV": "best_estimator_",
    "HalvingRandomSearchCV": "best_estimator_",
    "RANSACRegressor": "estimator_",
}
"""Models that are one of their members."""


def _refuse_several_labels(estimator: Any) -> None:
    """Several labels, or targets of neighbors; linear models of several targets are read."""
    binarizer = getattr(estimator, "_label_binarizer", None)
    several = getattr(binarizer, "y_type_", "").startswith("multilabel") or getattr(estimator, "outputs_2d_", False)
    several = several or (type(estimator).__name__ == "KNeighborsRegressor" and np.ndim(estimator._y) > 1)
    if several or isinstance(getattr(estimator, "classes_", None), list):
        raise InputError(explain(f"{type(estimator).__name__} predicts several targets", fix="fit one model for each"))


def _usual(estimator: Any) -> Output:
    return "probabilities" if hasattr(estimator, "predict_proba") else "scores"


def _linear(estimator: Any, x: Features, columns: Columns) -> tuple[nn.Module, Link]:
    coefficients = np.atleast_2d(estimator.coef_)
    intercept = np.broadcast_to(np.asarray(estimator.intercept_, float).reshape(-1), len(coefficients))
    body = x.times(coefficients.T, intercept).module(columns)
    return body, _link_of_linear(estimator, len(coefficients))


def _link_of_linear(estimator: Any, scores: int) -> Link:
    name = type(estimator).__name__
    if name in ("PoissonRegressor", "GammaRegressor", "TweedieRegressor"):
        if name == "TweedieRegressor" and estimator.link == "identity":
            return "none"
        return "exp" if name != "TweedieRegressor" or estimator.power > 0 or estimator.link == "log" else "none"
    if name in ("LogisticRegression", "LogisticRegressionCV", "LinearDiscriminantAnalysis"):
        return "sigmoid" if scores == 1 else "softmax"
    if name == "SGDClassifier" and estimator.loss == "log_loss":
        return "sigmoid"
    return "none"


class Dense(nn.Module):
    """x @ weights + bias."""

    weights: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weights: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float64))
        self.register_buffer("bias", torch.tensor(bias, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weights + self.bias


class Network(nn.Module):
    """A multi-layer perceptron, whose first layer is folded into the features."""

    def __init__(self, first: nn.Module, activation: str, layers: list[Dense]) -> None:
        super().__init__()
        self.first, self.activation, self.layers = first, activation, nn.ModuleList(layers)

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        x = self.first(*columns)
        for layer in self.layers:
            x = layer(_ACTIVATIONS[self.activation](x))
        return x


_ACTIVATIONS: dict[str, Any] = {
    "relu": torch.relu, "tanh": torch.tanh, "logistic": torch.sigmoid, "identity": lambda x: x
}  # fmt: skip


def _perceptron(estimator: Any, x: Features, columns: Columns) -> tuple[nn.Module, Link]:
    if estimator.n_outputs_ > 1 and estimator.out_activation_ != "softmax":
        raise InputError(explain("a perceptron with several targets", fix="fit one for each"))
    first = x.times(estimator.coefs_[0], estimator.intercepts_[0]).module(columns)
    layers = [Dense(*layer) for layer in zip(estimator.coefs_[1:], estimator.intercepts_[1:], strict=True)]
    body = Network(first, estimator.activation, layers)
    links: dict[str, Link] = {"logistic": "sigmoid", "softmax": "softmax", "identity": "none", "exp": "exp"}
    return body, links[estimator.out_activation_]


class Quadratic(nn.Module):
    """x^2 @ squares + x @ slopes + start."""

    squares: torch.Tensor
    slopes: torch.Tensor
    start: torch.Tensor

    def __init__(self, x: nn.Module, squares: np.ndarray, slopes: np.ndarray, start: np.ndarray) -> None:
        super().__init__()
        self.x = x
        self.register_buffer("squares", torch.tensor(squares))
        self.register_buffer("slopes", torch.tensor(slopes))
        self.register_buffer("start", torch.tensor(start))

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        x = self.x(*columns)
        return (x * x) @ self.squares + x @ self.slopes + self.start


def _spread(x: Features, center: np.ndarray, spread: np.ndarray) -> tuple[Features, np.ndarray, np.ndarray]:
    """(features less a center, over a power of two near their spread; the centers; the powers)."""
    powers = 2.0 ** np.round(np.log2(np.maximum(spread, 1e-30)))
    if x.steps:
        return x, np.zeros(x.count), np.ones(x.count)
    sources = [type(s)(s.column, int(math.log2(p)), s.missing) for s, p in zip(x.sources, powers, strict=True)]  # type: ignore
    return Features(x.width, sources, center / powers, x.a, x.b, x.steps), center, powers


def _gaussian(estimator: Any, x: Features, columns: Columns) -> tuple[nn.Module, Link]:
    theta, var = estimator.theta_, estimator.var_
    x, center, power = _spread(x, theta.mean(0), np.sqrt(var.mean(0) + theta.var(0)))
    theta, var = (theta - center) / power, var / power**2
    start = (
        np.log(estimator.class_prior_) - 0.5 * np.log(2 * np.pi * estimator.var_).sum(1) - 0.5 * (theta**2 / var).sum(1)
    )
    body = Quadratic(x.module(columns), (-0.5 / var).T, (theta / var).T, start)
    return _difference(body, estimator), "sigmoid" if len(estimator.classes_) == 2 else "softmax"


class Ellipses(nn.Module):
    """float[rows, classes]: -0.5 times the squared length of each class's features, of which there are `each`, plus `start`."""

    start: torch.Tensor

    def __init__(self, x: nn.Module, each: int, start: np.ndarray) -> None:
        super().__init__()
        self.x, self.each = x, each
        self.register_buffer("start", torch.tensor(start))

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        x = self.x(*columns)
        return (x * x).reshape(len(x), -1, self.each).sum(2) * -0.5 + self.start


def _ellipses(
    x: Features, columns: Columns, means: np.ndarray, axes: Sequence[np.ndarray], start: np.ndarray
) -> nn.Module:
    """`axes`: for each class float[features, each], by which rows less the class's mean are multiplied."""
    each = max(axis.shape[1] for axis in axes)
    axes = [np.pad(axis, ((0, 0), (0, each - axis.shape[1]))) for axis in axes]
    spread = 1 / np.sqrt(np.mean([(axis**2).sum(1) for axis in axes], 0) + 1e-30)
    x, center, power = _spread(x, means.mean(0), spread)
    axes = [axis * power[:, None] for axis in axes]
    bias = [-(mean - center) / power @ axis for mean, axis in zip(means, axes, strict=True)]
    return Ellipses(x.times(np.hstack(axes), np.hstack(bias)).module(columns), each, start)


def _quadratic(estimator: Any, x: Features, columns: Columns) -> tuple[nn.Module, Link]:
    """Quadratic discriminant analysis."""
    axes = [r * s**-0.5 for r, s in zip(estimator.rotations_, estimator.scalings_, strict=True)]
    start = np.log(estimator.priors_) - 0.5 * np.array([np.log(s).sum() for s in estimator.scalings_])
    body = _ellipses(x, columns, np.asarray(estimator.means_), axes, start)
    return _difference(body, estimator), "sigmoid" if len(estimator.classes_) == 2 else "softmax"


def _centroids(estimator: Any, x: Features, columns: Columns) -> tuple[nn.Module, Link]:
    """NearestCentroid as discriminant analysis with one diagonal of variances."""
    if estimator.metric != "euclidean":
        raise InputError(explain(f"NearestCentroid with the distance {estimator.metric!r}", fix="use 'euclidean'"))
    deviation, centroids = estimator.within_class_std_dev_, np.asarray(estimator.centroids_, float)
    axis = np.diag(math.sqrt(2) / np.where(deviation == 0, 1, deviation))
    body = _ellipses(x, columns, centroids, [axis] * len(centroids), 2 * np.log(estimator.class_prior_))
    return _difference(body, estimator), "sigmoid" if len(centroids) == 2 else "softmax"


def _nearest(centroids: np.ndarray, x: Features, columns: Columns) -> nn.Module:
    """float[rows, centroids]: largest for the nearest one."""
    x, center, power = _spread(x, centroids.mean(0), np.full(x.count, centroids.std()))
    centroids = (centroids - center) / power
    return x.times(2 * centroids.T, -(centroids**2).sum(1)).module(columns)


def _clusters(estimator: Any, x: Features, columns: Columns) -> tuple[nn.Module, Link]:
    return _nearest(np.asarray(estimator.cluster_centers_, float), x, columns), "none"


class Second(nn.Module):
    """The second of two scores less the first."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        scores = self.body(*columns)
        return scores[:, 1:] - scores[:, :1]


def _difference(body: nn.Module, estimator: Any) -> nn.Module:
    return Second(body) if len(estimator.classes_) == 2 else body


def _counts(estimator: Any, x: Features, columns: Columns) -> tuple[nn.Module, Link]:
    """Naive Bayes of counts and of bits: linear in the features."""
    name, weights, start = type(estimator).__name__, estimator.feature_log_prob_.T, estimator.class_log_prior_
    if name == "ComplementNB":
        start = start if len(estimator.classes_) == 1 else np.zeros(len(estimator.classes_))
    if name == "BernoulliNB":
        none = np.log(1 - np.exp(weights))
        weights, start = weights - none, start + none.sum(0)
        x = x.bits(estimator.binarize)
    if len(estimator.classes_) == 2:
        return x.times(weights[:, 1:] - weights[:, :1], start[1:] - start[:1]).module(columns), "sigmoid"
    return x.times(weights, start).module(columns), "softmax"


class Kernel(nn.Module):
    """Values of a kernel between features and vectors, times coefficients: float[rows, scores]."""

    vectors: torch.Tensor
    lengths: torch.Tensor
    coefficients: torch.Tensor
    start: torch.Tensor

    def __init__(self, x: nn.Module, kind: str, vectors, coefficients, start, gamma=1.0, coef0=0.0, degree=3) -> None:
        super().__init__()
        self.x, self.kind, self.gamma, self.coef0, self.degree = x, kind, float(gamma), float(coef0), int(degree)
        self.register_buffer("vectors", torch.tensor(vectors.T.copy()))
        self.register_buffer("lengths", torch.tensor((vectors**2).sum(1)))
        self.register_buffer("coefficients", torch.tensor(coefficients))
        self.register_buffer("start", torch.tensor(start))

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        x = self.x(*columns)
        products = x @ self.vectors
        if self.kind == "rbf":
            distances = (x * x).sum(1, keepdim=True) - 2 * products + self.lengths
            values = torch.exp(distances * -self.gamma)
        elif self.kind == "poly":
            values = (self.gamma * products + self.coef0) ** self.degree
        else:
            values = torch.tanh(self.gamma * products + self.coef0)
        return values @ self.coefficients + self.start


def _support(estimator: Any, x: Features, columns: Columns) -> tuple[nn.Module, Link]:
    """Support vector machines with the kernels of the library."""
    kind = estimator.kernel
    if kind not in ("linear", "rbf", "poly", "sigmoid"):
        raise InputError(explain(f"the kernel {kind!r}", fix="use linear, rbf, poly or sigmoid"))
    vectors, dual = np.asarray(estimator.support_vectors_, float), np.asarray(estimator.dual_coef_, float)
    classes = len(getattr(estimator, "classes_", [0, 1]))
    start = np.asarray(estimator.intercept_, float)
    coefficients = dual.T if classes == 2 else _pairs(dual, np.cumsum([0, *estimator.n_support_]), classes)
    if kind == "linear":
        body: nn.Module = x.times(vectors.T @ coefficients, start).module(columns)
    else:
        if not x.steps and kind == "rbf":
            x, center, _ = _spread(x, vectors.mean(0), np.full(x.count, 1 / math.sqrt(estimator._gamma)))
            power = 2.0 ** np.round(np.log2(1 / math.sqrt(estimator._gamma)))
            vectors, gamma = (vectors - center) / power, estimator._gamma * power**2
        else:
            gamma = estimator._gamma
        body = Kernel(x.module(columns), kind, vectors, coefficients, start, gamma, estimator.coef0, estimator.degree)
    return (body if classes == 2 else Pairs(body, classes)), "none"


def _of_pairs(estimator: Any, pairs: Pairs, output: Output) -> nn.Module:
    """Classes are those with most pairs, the first of several, unless ties are broken; scores may be those of pairs."""
    if output == "class":
        return Pairs(pairs.body, pairs.count, sums=estimator.break_ties)
    return pairs if estimator.decision_function_shape == "ovr" else pairs.body


def _pairs(dual: np.ndarray, bounds: np.ndarray, classes: int) -> np.ndarray:
    """float[vectors, pairs]: the coefficients of each pair of classes, out of libsvm's table."""
    columns = []
    for i in range(classes):
        for j in range(i + 1, classes):
            column = np.zeros(dual.shape[1])
            column[bounds[i] : bounds[i + 1]] = dual[j - 1, bounds[i] : bounds[i + 1]]
            column[bounds[j] : bounds[j + 1]] = dual[i, bounds[j] : bounds[j + 1]]
            columns.append(column)
    return np.array(columns).T


class Nearest(nn.Module):
    """Means of what the k nearest of few rows have: float[rows, outputs]; those with equal distance in their order."""

    rows: torch.Tensor
    lengths: torch.Tensor
    values: torch.Tensor

    def __init__(self, x: nn.Module, rows: np.ndarray, k: int, values: np.ndarray) -> None:
        super().__init__()
        self.x, self.k = x, k
        self.register_buffer("rows", torch.tensor(rows.T.copy()))
        self.register_buffer("lengths", torch.tensor((rows**2).sum(1)))
        self.register_buffer("values", torch.tensor(values))

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        closeness = 2 * (self.x(*columns) @ self.rows) - self.lengths
        chosen = closeness.topk(self.k, 1).indices
        return F.one_hot(chosen, self.rows.shape[1]).sum(1).double() @ self.values


def _neighbors(estimator: Any, x: Features, columns: Columns) -> tuple[nn.Module, Link]:
    if estimator.weights != "uniform" or estimator.effective_metric_ != "euclidean":
        raise InputError(explain("nearest neighbors with weights or another distance",
                                 fix="use weights='uniform' and the Euclidean distance"))  # fmt: skip
    rows, k = np.asarray(estimator._fit_X, float), estimator.n_neighbors
    if len(rows) > 2048:
        raise InputError(explain(f"nearest neighbors among {len(rows)} rows", why="each is compared, and sorted",
                                 fix="keep at most 2048 rows, or fit another model"))  # fmt: skip
    x, center, power = _spread(x, rows.mean(0), np.full(x.count, rows.std()))
    rows = (rows - center) / power
    if hasattr(estimator, "classes_"):
        labels = np.asarray(estimator._y).reshape(-1)
        values = (labels[:, None] == np.arange(len(estimator.classes_))).astype(float)
        return Nearest(x.module(columns), rows, k, values[:, 1:] if values.shape[1] == 2 else values), "counts"
    return Nearest(x.module(columns), rows, k, np.asarray(estimator._y, float).reshape(-1, 1) / k), "none"


class Logistic(nn.Module):
    """sigmoid(slope * score + start) of each column of scores."""

    slopes: torch.Tensor
    starts: torch.Tensor

    def __init__(self, calibrators: Sequence[Any]) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor([-float(c.a_) for c in calibrators], dtype=torch.float64))
        self.register_buffer("starts", torch.tensor([-float(c.b_) for c in calibrators], dtype=torch.float64))

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(scores * self.slopes + self.starts)


class Curve(nn.Module):
    """A line between each two knots, and constants beyond the outer ones, of float[rows]: a comparison for each knot."""

    knots: torch.Tensor
    steps: torch.Tensor
    first: torch.Tensor

    def __init__(self, knots: np.ndarray, heights: np.ndarray) -> None:
        """`knots` rise. Two that are nearer than 2^-12, which scores hardly tell apart, are one step halfway."""
        super().__init__()
        gaps = np.append(np.diff(knots), np.inf)
        narrow = gaps < 2.0**-12
        slopes = np.where(narrow, 0.0, np.diff(heights, append=heights[-1]) / gaps)
        starts = np.where(np.append(False, narrow[:-1]), knots - np.append(0.0, gaps[:-1]) / 2, knots)
        table = np.stack([heights, slopes, starts], 1)
        self.register_buffer("knots", torch.tensor(starts))
        self.register_buffer("steps", torch.tensor(np.diff(table, axis=0, prepend=[[heights[0], 0.0, 0.0]])))
        self.register_buffer("first", torch.tensor(float(heights[0]), dtype=torch.float64))

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        passed = (scores.unsqueeze(1) >= self.knots).double() @ self.steps
        height, slope, start = passed.unbind(1)
        return self.first + height + slope * (scores - start)


class Curves(nn.Module):
    """A curve of each column of scores."""

    def __init__(self, calibrators: Sequence[Any]) -> None:
        super().__init__()
        self.curves = nn.ModuleList([Curve(c.X_thresholds_, c.y_thresholds_) for c in calibrators])

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return torch.stack([curve(scores[:, at]) for at, curve in enumerate(self.curves)], 1)


class Calibrated(nn.Module):
    """Means of calibrated probabilities: float[rows, classes]. Of more than two classes none may be likely: then all are."""

    def __init__(self, members: list[nn.Module], calibrations: list[nn.Module]) -> None:
        super().__init__()
        self.members, self.calibrations = nn.ModuleList(members), nn.ModuleList(calibrations)

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        made = []
        for member, calibration in zip(self.members, self.calibrations, strict=True):
            scores = member(*columns)
            scores = scores.unsqueeze(1) if scores.ndim == 1 else scores
            chance = calibration(scores[:, 1:] if scores.shape[1] == 2 else scores)
            made.append(torch.cat([1 - chance, chance], 1) if chance.shape[1] == 1 else _over_their_sum(chance))
        return torch.stack(made).mean(0)


_LEAST = 2.0**-12
_MOST_KNOTS = 2048


def _over_their_sum(chances: torch.Tensor) -> torch.Tensor:
    total = chances.sum(1, keepdim=True)
    return torch.where(total > _LEAST, chances / total.clamp(min=_LEAST), 1 / chances.shape[1])


def _calibrated(estimator: Any, x: Features, columns: Columns, output: Output) -> nn.Module:
    members, calibrations = [], []
    kinds = {"sigmoid": Logistic, "isotonic": Curves}
    if estimator.method not in kinds:
        raise InputError(
            explain(f"calibration with method={estimator.method!r}", fix="use method='sigmoid' or 'isotonic'")
        )
    if output == "scores":
        raise InputError(explain("CalibratedClassifierCV has no decision_function", fix="output='probabilities'"))
    for member in estimator.calibrated_classifiers_:
        inner = member.estimator
        has = "scores" if hasattr(inner, "decision_function") else "probabilities"
        knots = max(np.size(getattr(c, "X_thresholds_", 0)) for c in member.calibrators)
        if knots > _MOST_KNOTS:
            raise InputError(explain(f"isotonic calibration with {knots} knots", why="a score is compared with each",
                                     fix=f"calibrate with fewer rows (at most {_MOST_KNOTS} knots), or method='sigmoid'"))  # fmt: skip
        members.append(_read(inner, x, columns, has))  # type: ignore[arg-type]
        calibrations.append(kinds[estimator.method](member.calibrators))
    body = Calibrated(members, calibrations)
    return body if output == "probabilities" else Best(body)


def _stacking(estimator: Any, x: Features, columns: Columns) -> tuple[nn.Module, Link]:
    """A linear model on what the members give; another would need its columns in the clear."""
    name, final, classifier = type(estimator).__name__, estimator.final_estimator_, hasattr(estimator, "classes_")
    if type(final).__name__ not in _LINEAR:
        raise InputError(explain(f"{name} that ends with {type(final).__name__}", fix="end it with a linear model"))
    if classifier and "predict" in estimator.stack_method_:
        raise InputError(explain(f"{name} on predicted classes", fix="stack_method='predict_proba'"))
    outputs: dict[str, Output] = {"predict_proba": "probabilities", "decision_function": "scores", "predict": "value"}
    members = zip(estimator.estimators_, estimator.stack_method_, strict=True)
    body = Joined([_read(member, x, columns, outputs[method]) for member, method in members], second=classifier)
    weights = np.atleast_2d(final.coef_).T.astype(float)
    bias = np.broadcast_to(np.asarray(final.intercept_, float).reshape(-1), weights.shape[1])
    passed = x.count if estimator.passthrough else 0
    stacked, rest = weights[: len(weights) - passed], np.zeros((x.count, weights.shape[1]))
    rest[:passed] = weights[len(weights) - passed :]
    return Stacked(body, stacked, x.times(rest, bias).module(columns)), _link_of_linear(final, weights.shape[1])


_LINEAR = (
    "LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV", "Lars", "LassoLars",
    "BayesianRidge", "ARDRegression", "HuberRegressor", "TheilSenRegressor", "QuantileRegressor", "SGDRegressor",
    "LinearSVR", "PoissonRegressor", "GammaRegressor", "TweedieRegressor",
    "LogisticRegression", "LogisticRegressionCV", "LinearDiscriminantAnalysis", "RidgeClassifier", "RidgeClassifierCV",
    "SGDClassifier", "Perceptron", "LinearSVC", "OrthogonalMatchingPursuit", "OrthogonalMatchingPursuitCV", "LarsCV",
    "LassoLarsCV", "LassoLarsIC", "MultiTaskLasso", "MultiTaskLassoCV", "MultiTaskElasticNet", "MultiTaskElasticNetCV",
    "PassiveAggressiveClassifier", "PassiveAggressiveRegressor",
)  # fmt: skip
_READERS = {
    **dict.fromkeys(_LINEAR, _linear),
    "MLPClassifier": _perceptron,
    "MLPRegressor": _perceptron,
    "GaussianNB": _gaussian,
    "MultinomialNB": _counts,
    "ComplementNB": _counts,
    "BernoulliNB": _counts,
    "SVC": _support,
    "NuSVC": _support,
    "SVR": _support,
    "NuSVR": _support,
    "OneClassSVM": _support,
    "QuadraticDiscriminantAnalysis": _quadratic,
    "NearestCentroid": _centroids,
    "KMeans": _clusters,
    "MiniBatchKMeans": _clusters,
    "StackingClassifier": _stacking,
    "StackingRegressor": _stacking,
    "KNeighborsClassifier": _neighbors,
    "KNeighborsRegressor": _neighbors,
}
