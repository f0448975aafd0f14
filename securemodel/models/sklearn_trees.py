"""Trees, forests and boosting of scikit-learn, read from the estimator's arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from protocols.errors import explain
from securemodel.errors import InputError
from securemodel.models.forest import Trees
from securemodel.models.heads import Head, Output, Times
from securemodel.models.sklearn_ensembles import Negative, Powers, Scaled
from securemodel.models.sources import code_at_most

Columns = Sequence[Sequence[int]]
Condition = Callable[[int, np.ndarray, np.ndarray], list]
"""Conditions of a forest for splits "feature <= threshold" of one feature, with whether missing values go left."""


def is_tree_model(estimator: Any) -> bool:
    """Whether `read_trees` reads it."""
    return type(estimator).__name__ in _READERS or _is_bagged(estimator)


def _is_bagged(estimator: Any) -> bool:
    """Whether a bagging model is a forest: of trees on all columns that know all classes."""
    if type(estimator).__name__ not in _BAGGED:
        return False
    classes = np.size(getattr(estimator, "classes_", ()))
    whole = list(range(estimator.n_features_in_))
    return all(
        hasattr(member, "tree_") and np.size(getattr(member, "classes_", ())) == classes and list(taken) == whole
        for member, taken in zip(estimator.estimators_, estimator.estimators_features_, strict=True)
    )


def read_trees(estimator: Any, columns: Columns, output: Output, inputs: Any = None) -> nn.Module:
    """The module of a tree model. Raises InputError for forms that are not read.

    `inputs`: how features are made of columns (`securemodel.models.sklearn_steps.Features`); None: they are the columns.
    """
    name = type(estimator).__name__
    if isinstance(getattr(estimator, "classes_", None), list):
        raise InputError(explain(f"{name} predicts several targets", fix="fit one model for each"))
    return {**_READERS, **_BAGGED}[name](estimator, columns, output, inputs)


def _add(trees: Trees, tree: Any, values: np.ndarray, inputs: Any, allowed: bool = True) -> None:
    """One `tree_` of scikit-learn, with values float[nodes, outputs]; `allowed`: whether values may be missing."""
    inner = tree.children_left >= 0
    conditions = _conditions(trees, tree.feature, tree.threshold, tree.missing_go_to_left, inner, inputs, allowed)

    def split(node: int):
        if not inner[node]:
            return None
        condition, opposite = conditions[node]
        yes, no = int(tree.children_left[node]), int(tree.children_right[node])
        return (condition, no, yes) if opposite else (condition, yes, no)

    trees.add(split, lambda node: values[node])


def _conditions(trees, features, thresholds, missing_left, inner, inputs, allowed) -> dict[int, tuple[tuple, bool]]:
    """For each inner node its condition, and whether it is the opposite that leads to the left."""
    nodes = np.flatnonzero(inner)
    if inputs is not None:
        return inputs.conditions(trees, nodes, features, thresholds, missing_left)
    codes = code_at_most(thresholds, trees.single)
    side = lambda node: ("low" if missing_left[node] else "high") if allowed else "refused"
    return {int(n): (trees.number(features[n], codes[n], side(n)), False) for n in nodes}


def _shares(tree: Any) -> np.ndarray:
    """float[nodes, outputs]: a classifier's shares of classes; of two classes, that of the second."""
    values = tree.value[:, 0, :]
    values = values / np.where(values.sum(1, keepdims=True) == 0, 1, values.sum(1, keepdims=True))
    return values[:, 1:] if values.shape[1] == 2 else values


def _members(estimator: Any) -> list:
    return list(estimator.estimators_) if hasattr(estimator, "estimators_") else [estimator]


def _classifier(estimator: Any, columns: Columns, output: Output, inputs: Any) -> nn.Module:
    """The mean of the trees' shares of classes. Shares are added whole, so that equal sums stay equal."""
    members = _members(estimator)
    classes = len(estimator.classes_)
    if classes < 2:
        raise InputError(explain("a classifier with one class only", fix="it needs no model"))
    trees = Trees(1 if classes == 2 else classes, single=True)
    for member in members:
        _add(trees, member.tree_, _shares(member.tree_), inputs)
    return Head(trees.module(columns), output, "counts", float(len(members)))


def _regressor(estimator: Any, columns: Columns, output: Output, inputs: Any) -> nn.Module:
    members = _members(estimator)
    trees = Trees(members[0].tree_.value.shape[1], single=True)
    for member in members:
        _add(trees, member.tree_, member.tree_.value[:, :, 0] / len(members), inputs)
    return Head(trees.module(columns), "value")


def _boosted(estimator: Any, columns: Columns, output: Output, inputs: Any) -> nn.Module:
    """GradientBoosting: the first score, and trees times the learning rate; missing values are refused."""
    outputs = estimator.estimators_.shape[1]
    trees = Trees(outputs, single=True)
    if estimator.init is not None and not (isinstance(estimator.init, str) and estimator.init == "zero"):
        raise InputError(explain("gradient boosting that starts from another model", why="its scores depend on the row",
                                 fix="fit it with init=None or init='zero'"))  # fmt: skip
    trees.start = np.asarray(estimator._raw_predict_init(np.zeros((1, estimator.n_features_in_))), float).reshape(-1)
    for members in estimator.estimators_:
        for at, member in enumerate(members):
            value = np.zeros((member.tree_.node_count, outputs))
            value[:, at] = member.tree_.value[:, 0, 0] * estimator.learning_rate
            _add(trees, member.tree_, value, inputs, allowed=False)
    if not hasattr(estimator, "classes_"):
        return Head(trees.module(columns), "value")
    body, exponential = trees.module(columns), estimator.loss == "exponential"
    if exponential and output == "probabilities":
        return Head(Times(body, 2.0), output, "sigmoid")
    return Head(body, output, "sigmoid" if outputs == 1 else "softmax")


def _ada(estimator: Any, columns: Columns, output: Output, inputs: Any) -> nn.Module:
    """AdaBoost: each tree votes for its class, with a weight."""
    classes, weights = len(estimator.classes_), np.asarray(estimator.estimator_weights_, float)
    trees = Trees(1 if classes == 2 else classes, single=True)
    for member, weight in zip(estimator.estimators_, weights / weights.sum(), strict=False):
        if not is_tree_model(member) or not hasattr(member, "tree_"):
            raise InputError(explain(f"AdaBoost of {type(member).__name__}", fix="use decision trees as its estimator"))
        best = np.asarray(estimator.classes_.searchsorted(member.classes_))[member.tree_.value[:, 0, :].argmax(1)]
        votes = np.where(best[:, None] == np.arange(classes), 1.0, -1.0 / (classes - 1)) * weight
        _add(trees, member.tree_, votes[:, 1:] * 2 if classes == 2 else votes, inputs, allowed=False)
    body = trees.module(columns)
    if output != "probabilities":
        return Head(body, output)
    return Head(
        body if classes == 2 else Times(body, 1 / (classes - 1)), output, "sigmoid" if classes == 2 else "softmax"
    )


def _isolation(estimator: Any, columns: Columns, output: Output, inputs: Any) -> nn.Module:
    """decision_function of IsolationForest: the offset is taken from -2^-(depth over what is expected of random rows)."""
    members, per_member = estimator.estimators_, []
    if any(len(taken) != estimator.n_features_in_ for taken in estimator.estimators_features_):
        raise InputError(explain("IsolationForest of trees on some columns", fix="fit it with max_features=1.0"))
    for known, beyond in zip(estimator._decision_path_lengths, estimator._average_path_length_per_tree, strict=True):
        per_member.append(np.asarray(known, float) + beyond - 1)
    rows = float(estimator._max_samples)
    if rows <= 2:
        raise InputError(explain("IsolationForest of trees of two rows or less", fix="fit it with max_samples > 2"))
    expected = 2 * (math.log(rows - 1) + np.euler_gamma) - 2 * (rows - 1) / rows
    trees = Trees(1, single=True)
    for member, depths in zip(members, per_member, strict=True):
        _add(trees, member.tree_, depths[:, None] * (math.log(2) / (len(members) * expected)), inputs)
    chance = Powers(Negative(trees.module(columns)), less_one=False)
    return Head(Scaled(chance, np.array([-1.0]), np.array([-float(estimator.offset_)])), "scores")


def _histogram(estimator: Any, columns: Columns, output: Output, inputs: Any) -> nn.Module:
    """HistGradientBoosting: float64 columns, categories by value, which its encoder turns into ordinals in front."""
    if inputs is not None and estimator._preprocessor is not None:
        raise InputError(explain("categories of HistGradientBoosting after other steps", fix="give it the columns"))
    order, categories = list(range(estimator.n_features_in_)), {}
    if estimator._preprocessor is not None:
        known = estimator._preprocessor.named_transformers_["encoder"].categories_
        marked = np.asarray(estimator.is_categorical_)
        order = [*np.flatnonzero(marked), *np.flatnonzero(~marked)]
        categories = {at: _numbers(values) for at, values in enumerate(known)}
    outputs = estimator.n_trees_per_iteration_
    trees = Trees(outputs, single=False)
    trees.start = np.asarray(estimator._baseline_prediction, float).reshape(-1)
    for members in estimator._predictors:
        for at, predictor in enumerate(members):
            nodes = predictor.nodes
            values = np.zeros((len(nodes), outputs))
            values[:, at] = nodes["value"]
            _add_histogram(trees, predictor, values, order, categories, inputs)
    body = trees.module(columns)
    if hasattr(estimator, "classes_"):
        return Head(body, output, "sigmoid" if outputs == 1 else "softmax")
    return Head(body, "value", "exp" if estimator.loss in ("poisson", "gamma") else "none")


def _numbers(values: np.ndarray) -> list[float]:
    """Categories as a column has them: numbers as they are, other things by their place in the list."""
    if np.asarray(values).dtype.kind in "fiub":
        return [float(value) for value in values]
    return [math.nan if isinstance(v, float) and math.isnan(v) else float(at) for at, v in enumerate(values)]


def _add_histogram(trees: Trees, predictor: Any, values, order, categories, inputs) -> None:
    nodes = predictor.nodes
    ordinary = (nodes["is_leaf"] == 0) & (nodes["is_categorical"] == 0)
    mapped = np.array([order[f] for f in nodes["feature_idx"]])
    conditions = _conditions(
        trees, mapped, nodes["num_threshold"], nodes["missing_go_to_left"], ordinary, inputs, allowed=True
    )

    def split(node: int):
        if nodes["is_leaf"][node]:
            return None
        yes, no = int(nodes["left"][node]), int(nodes["right"][node])
        if nodes["is_categorical"][node]:
            names = categories[int(nodes["feature_idx"][node])]
            bits = predictor.raw_left_cat_bitsets[nodes["bitset_idx"][node]]
            left = [v for at, v in enumerate(names) if bits[at // 32] >> (at % 32) & 1 and not math.isnan(v)]
            if not nodes["missing_go_to_left"][node]:
                return trees.category(mapped[node], left), yes, no
            right = [v for at, v in enumerate(names) if v not in left and not math.isnan(v)]
            return trees.category(mapped[node], right), no, yes
        condition, opposite = conditions[node]
        return (condition, no, yes) if opposite else (condition, yes, no)

    trees.add(split, lambda node: values[node])


_READERS = {
    "DecisionTreeClassifier": _classifier,
    "ExtraTreeClassifier": _classifier,
    "RandomForestClassifier": _classifier,
    "ExtraTreesClassifier": _classifier,
    "DecisionTreeRegressor": _regressor,
    "ExtraTreeRegressor": _regressor,
    "RandomForestRegressor": _regressor,
    "ExtraTreesRegressor": _regressor,
    "GradientBoostingClassifier": _boosted,
    "GradientBoostingRegressor": _boosted,
    "AdaBoostClassifier": _ada,
    "IsolationForest": _isolation,
    "HistGradientBoostingClassifier": _histogram,
    "HistGradientBoostingRegressor": _histogram,
}
_BAGGED = {"BaggingClassifier": _classifier, "BaggingRegressor": _regressor}
"""Those that are read as forests where they are."""
