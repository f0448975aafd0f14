"""Models of scikit-learn that are made of others: averages, votes, one model for each class or target, stacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from protocols.errors import explain
from securemodel.errors import InputError
from securemodel.models.heads import Best, Head, Output
from securemodel.models.sklearn_steps import Features

Read = Callable[[Any, Features, Output], nn.Module]
"""Reads a member: the estimator, what its features are, the output that is wanted of it."""


def is_ensemble(estimator: Any) -> bool:
    """Whether `read_ensemble` reads it."""
    return type(estimator).__name__ in _READERS


def read_ensemble(estimator: Any, x: Features, output: Output, read: Read) -> nn.Module:
    """The module of a model that is made of others. Raises InputError for forms that are not read."""
    return _READERS[type(estimator).__name__](estimator, x, output, read)


class Joined(nn.Module):
    """Results of several models side by side: float[rows, columns]. `second`: of those with two columns, only the second."""

    def __init__(self, members: Sequence[nn.Module], second: bool) -> None:
        super().__init__()
        self.members, self.second = nn.ModuleList(members), second

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        made = [member(*columns) for member in self.members]
        made = [result.unsqueeze(1) if result.ndim == 1 else result for result in made]
        made = [result[:, 1:] if self.second and result.shape[1] == 2 else result for result in made]
        return torch.cat(made, 1)


class Averaged(nn.Module):
    """The mean of several models' results; their weights are public."""

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.members, self.weights = nn.ModuleList(members), [float(weight) for weight in weights]

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        made = [member(*columns) * weight for member, weight in zip(self.members, self.weights, strict=True)]
        return torch.stack(made).sum(0) * (1 / math.fsum(self.weights))


class Votes(nn.Module):
    """The public weights of the models that name each class: float[rows, classes]; of two classes, for the second."""

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float], count: int) -> None:
        super().__init__()
        self.members, self.weights, self.count = nn.ModuleList(members), [float(w) for w in weights], count

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        named = torch.stack([member(*columns) for member in self.members])
        votes = named.double().unsqueeze(2) if self.count == 2 else F.one_hot(named, self.count).double()
        return (votes * torch.tensor(self.weights, dtype=torch.float64).reshape(-1, 1, 1)).sum(0)


class Pairs(nn.Module):
    """Of scores of pairs of classes (i, j), above `middle` for i: for each class how many pairs it wins.

    `sums`: a part of at most a third is added, by which scores of equal numbers are ordered, as scikit-learn does.
    """

    def __init__(self, body: nn.Module, count: int, sums: bool = True, middle: float = 0.0) -> None:
        super().__init__()
        self.body, self.count, self.sums, self.middle = body, count, sums, middle

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        dec = self.body(*columns)
        pairs = [(i, j) for i in range(self.count) for j in range(i + 1, self.count)]
        first = torch.tensor([[float(i == c) for c in range(self.count)] for i, _ in pairs], dtype=torch.float64)
        second = torch.tensor([[float(j == c) for c in range(self.count)] for _, j in pairs], dtype=torch.float64)
        lost = (dec < self.middle).double()
        votes = first.sum(0) + lost @ (second - first)
        if not self.sums:
            return votes
        sums = dec @ (first - second)
        return votes + sums / (3 * (sums.abs() + 1))


class Stacked(nn.Module):
    """A linear model on the results of others, and, where there is a second part, on the columns themselves."""

    weights: torch.Tensor

    def __init__(self, body: nn.Module, weights: np.ndarray, rest: nn.Module) -> None:
        super().__init__()
        self.body, self.rest = body, rest
        self.register_buffer("weights", torch.tensor(weights))

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        return self.body(*columns) @ self.weights + self.rest(*columns)


class Scaled(nn.Module):
    """Results times a factor, plus a shift, of each target."""

    factor: torch.Tensor
    shift: torch.Tensor

    def __init__(self, body: nn.Module, factor: np.ndarray, shift: np.ndarray) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("factor", torch.tensor(factor))
        self.register_buffer("shift", torch.tensor(shift))

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        return self.body(*columns) * self.factor + self.shift


def _same_classes(estimator: Any, members: Sequence[Any]) -> None:
    if any(len(member.classes_) != len(estimator.classes_) for member in members):
        raise InputError(
            explain(f"{type(estimator).__name__}: a member has not seen all classes in fitting",
                    fix="fit it with more rows for each member")
        )  # fmt: skip


def _usual_score(member: Any) -> tuple[Output, float]:
    """What scikit-learn compares of a model of two classes, and with which number."""
    return ("scores", 0.0) if hasattr(member, "decision_function") else ("probabilities", 0.5)


def _bagging(estimator: Any, x: Features, output: Output, read: Read) -> nn.Module:
    """Means over members, which may have drawn columns; classes without probabilities are voted for."""
    members, whole = estimator.estimators_, list(range(x.count))
    taken = [x if list(at) == whole else x.taken(at) for at in estimator.estimators_features_]
    each = lambda wanted: [read(member, mine, wanted) for member, mine in zip(members, taken, strict=True)]
    ones = [1.0] * len(members)
    if output == "value":
        return Averaged(each("value"), ones)
    _same_classes(estimator, members)
    if output == "scores":
        return Averaged(each("scores"), ones)
    if not hasattr(members[0], "predict_proba"):
        return Head(Votes(each("class"), ones, len(estimator.classes_)), output, "counts", float(len(members)))
    body = Averaged(each("probabilities"), ones)
    return Best(body) if output == "class" else body


def _voting(estimator: Any, x: Features, output: Output, read: Read) -> nn.Module:
    members, weights = estimator.estimators_, estimator._weights_not_none
    weights = [1.0] * len(members) if weights is None else weights
    if output == "value":
        return Averaged([read(member, x, "value") for member in members], weights)
    _same_classes(estimator, members)
    if output == "scores" or (output == "probabilities" and estimator.voting == "hard"):
        raise InputError(explain(f"output={output!r} of VotingClassifier(voting={estimator.voting!r})", fix="'class'"))
    if estimator.voting == "hard":
        votes = Votes([read(member, x, "class") for member in members], weights, len(estimator.classes_))
        return Head(votes, output, "counts", math.fsum(weights))
    body = Averaged([read(member, x, "probabilities") for member in members], weights)
    return Best(body) if output == "class" else body


def _one_for_each_class(estimator: Any, x: Features, output: Output, read: Read) -> nn.Module:
    """OneVsRestClassifier; its members' scores decide, or their probabilities where they have no scores."""
    if estimator.multilabel_:
        raise InputError(explain("OneVsRestClassifier with several labels", fix="read each of its estimators_"))
    members = estimator.estimators_
    if any(type(member).__name__ == "_ConstantPredictor" for member in members):
        raise InputError(explain("OneVsRestClassifier with a class that has no rows", fix="fit it with rows of it"))
    compared, _ = _usual_score(members[0])
    if output == "probabilities" and len(members) > 1:
        chances = Joined([read(member, x, "probabilities") for member in members], second=True)
        return Shares(chances)
    if len(members) == 1:
        return read(members[0], x, output)
    body = Joined([read(member, x, compared) for member in members], second=True)
    return Best(body) if output == "class" else body


class Shares(nn.Module):
    """Numbers over their sum."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        made = self.body(*columns)
        return made / made.sum(1, keepdim=True)


class Negative(nn.Module):
    """Scores with the other sign."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        return -self.body(*columns)


def _one_for_each_pair(estimator: Any, x: Features, output: Output, read: Read) -> nn.Module:
    members = estimator.estimators_
    compared, middle = _usual_score(members[0])
    if output == "probabilities":
        raise InputError(explain("OneVsOneClassifier has no predict_proba", fix="output='scores' or 'class'"))
    if len(members) == 1 and output == "class":
        return read(members[0], x, output)
    body = Joined([read(member, x, compared) for member in members], second=True)
    pairs = Pairs(Negative(body), len(estimator.classes_), middle=-middle)
    if len(members) == 1:
        return Head(Joined([pairs], second=True), output)
    return Best(pairs) if output == "class" else pairs


def _targets(estimator: Any, x: Features, output: Output, read: Read) -> nn.Module:
    return Joined([read(member, x, "value") for member in estimator.estimators_], second=False)


_SCALERS = ("StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler")


def _transformed(estimator: Any, x: Features, output: Output, read: Read) -> nn.Module:
    """TransformedTargetRegressor, whose target was scaled, or is the logarithm that the model gives."""
    transformer, body = estimator.transformer_, read(estimator.regressor_, x, "value")
    name = type(transformer).__name__
    if name in _SCALERS:
        none, one = transformer.inverse_transform(np.array([[0.0], [1.0]]).repeat(transformer.n_features_in_, 1))
        return Scaled(body, one - none, none)
    inverse = getattr(transformer, "inverse_func", transformer)
    if inverse is None:
        return body
    if inverse not in (np.exp, np.expm1):
        raise InputError(explain(f"a target that was transformed by {name}", why="its inverse is not known",
                                 fix="use a scaler, or func=numpy.log and inverse_func=numpy.exp, or their 1p and m1"))  # fmt: skip
    return Powers(body, inverse is np.expm1)


class Powers(nn.Module):
    """exp of results; `less_one`: less 1."""

    def __init__(self, body: nn.Module, less_one: bool) -> None:
        super().__init__()
        self.body, self.less_one = body, less_one

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        made = torch.exp(self.body(*columns))
        return made - 1 if self.less_one else made


_READERS: dict[str, Callable[[Any, Features, Output, Read], nn.Module]] = {
    "BaggingClassifier": _bagging,
    "BaggingRegressor": _bagging,
    "VotingClassifier": _voting,
    "VotingRegressor": _voting,
    "OneVsRestClassifier": _one_for_each_class,
    "OneVsOneClassifier": _one_for_each_pair,
    "MultiOutputRegressor": _targets,
    "TransformedTargetRegressor": _transformed,
}
