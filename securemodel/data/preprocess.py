"""Steps of preprocessing, with the names, defaults and results of scikit-learn.

A step says what it needs to know of its features (`problems`), which features it makes (`out`), which numbers it fits
(`shapes`, `fit`) and how features follow from them (`apply`). Whoever has all rows of a column fits in the clear and
applies in float. Where rows are split, or a label is another party's, `securemodel.data.totals` and
`securemodel.data.targets` say what is added up, and what is revealed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from protocols.errors import InputError, explain
from securemodel.data.fields import Field

Parameters = Mapping[str, torch.Tensor]
Fields = tuple[Field, ...]
REFUSED = math.inf
"""In place of a value that a step refuses. `Columns` makes NaN of it, which no program takes: its owner is told before anything
is sent."""


@dataclass(frozen=True)
class Step(ABC):
    """A step that is not fitted; it is never changed. Features are float64[rows, features], NaN where missing."""

    @property
    def looks_at(self) -> str | None:
        """The column of labels whose values the fit needs, for encoders that look at one."""
        return None

    def problems(self, fields: Fields) -> list[str]:
        """Why the step cannot take these features; what it can't take is known before any row is read."""
        return []

    @abstractmethod
    def out(self, fields: Fields) -> Fields:
        """The features that it makes."""

    def shapes(self, fields: Fields) -> dict[str, tuple[int, ...]]:
        """The fitted parameters, by the names that scikit-learn gives them, and their shapes, which everybody knows."""
        return {}

    def fit(self, x: np.ndarray, fields: Fields) -> dict[str, np.ndarray]:
        """The parameters of these rows, in the clear. Raises InputError for a feature without values."""
        return {}

    @abstractmethod
    def apply(self, x: torch.Tensor, p: Parameters, fields: Fields) -> torch.Tensor:
        """The features of rows, of operations that torch.export can follow; each row by itself."""

    def apply_training(self, x: torch.Tensor, p: Parameters, fields: Fields, first: int, of: int) -> torch.Tensor:
        """`apply` to rows of the fit, from the row `first` of these `of` rows on."""
        return self.apply(x, p, fields)

    def known(self, fields: Fields, p: Parameters) -> Fields:
        """`out`, with the bounds that follow where the parameters are known to all."""
        return self.out(fields)


def present(x: np.ndarray, fields: Fields) -> list[np.ndarray]:
    """The values of each feature that are there. Raises InputError where one has none, naming all of these."""
    values = [column[~np.isnan(column)] for column in x.T]
    if empty := [field.name for field, some in zip(fields, values, strict=True) if not len(some)]:
        raise InputError(
            explain(f"no row has a value of {', '.join(map(repr, empty))}", where="fit()", why="every one of them is missing",
                    fix="drop these columns, or fit on other rows")
        )  # fmt: skip
    return values


def numbers_only(step: Step, fields: Fields) -> list[str]:
    """The problem of steps that compute with values: categories have none."""
    name = type(step).__name__
    return [
        f"{name} cannot compute with the categories of {f.name!r}: encode them first" for f in fields if not f.number
    ]


def none_missing(step: Step, fields: Fields) -> list[str]:
    """The problem of steps that have no place for what is missing, as they have none in scikit-learn."""
    name = type(step).__name__
    return [
        f"{name} has no place for missing values of {f.name!r}: put SimpleImputer before it"
        for f in fields
        if f.missing
    ]


def per_feature(names: Sequence[str], fields: Fields) -> dict[str, tuple[int, ...]]:
    """One number a feature for each of these."""
    return {name: (len(fields),) for name in names}


def stacked(rows: Sequence[Mapping[str, float | np.ndarray]]) -> dict[str, np.ndarray]:
    """Parameters of each feature, put together: float64[features, ...]."""
    return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}


def linear_bounds(fields: Fields, shift: torch.Tensor, scale: torch.Tensor) -> Fields:
    """The bounds of (x - shift) * scale."""
    ends = [
        sorted(((f.low - s) * c, (f.high - s) * c))
        for f, s, c in zip(fields, shift.tolist(), scale.tolist(), strict=True)
    ]
    return tuple(f.within(low, high) for f, (low, high) in zip(fields, ends, strict=True))
