"""Scalers: StandardScaler, MinMaxScaler, RobustScaler, as scikit-learn has them. Missing values stay missing."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch

from securemodel.data.preprocess import (
    Fields,
    Parameters,
    Step,
    linear_bounds,
    numbers_only,
    per_feature,
    present,
    stacked,
)

_TINY = 10 * np.finfo(np.float64).eps


@dataclass(frozen=True)
class Scaler(Step):
    """(x - shift) / scale, with the parameters of the step that are `taken`; None: it goes without."""

    def problems(self, fields: Fields) -> list[str]:
        return numbers_only(self, fields)

    def out(self, fields: Fields) -> Fields:
        return tuple(field.within() for field in fields)

    def taken(self, p: Parameters) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return None, None

    def apply(self, x: torch.Tensor, p: Parameters, fields: Fields) -> torch.Tensor:
        shift, scale = self.taken(p)
        x = x if shift is None else x - shift
        return x if scale is None else x / scale

    def known(self, fields: Fields, p: Parameters) -> Fields:
        shift, scale = self.taken(p)
        one = torch.ones(len(fields), dtype=torch.float64)
        return linear_bounds(fields, 0 * one if shift is None else shift, one if scale is None else 1 / scale)


@dataclass(frozen=True)
class StandardScaler(Scaler):
    """Takes the mean away and divides by the standard deviation (of the population). A constant feature becomes 0."""

    with_mean: bool = True
    with_std: bool = True

    def shapes(self, fields: Fields) -> dict[str, tuple[int, ...]]:
        return per_feature(("mean_", "var_", "scale_"), fields)

    def fit(self, x: np.ndarray, fields: Fields) -> dict[str, np.ndarray]:
        return stacked([moments(len(v), float(v.mean()), float(v.var())) for v in present(x, fields)])

    def taken(self, p: Parameters) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return (p["mean_"] if self.with_mean else None, p["scale_"] if self.with_std else None)


def moments(count: int, mean: float, var: float, rounding: float = 0.0) -> dict[str, float]:
    """The parameters of StandardScaler; a variance that rounding explains is a constant's, whose scale is 1.

    The bound is that of the two-pass algorithm: Chan, Golub, LeVeque, Algorithms for computing the sample variance, (1983).
    """
    eps = np.finfo(np.float64).eps
    constant = var <= max(count * eps * var + (count * mean * eps) ** 2, rounding)
    return {"mean_": mean, "var_": max(var, 0.0), "scale_": 1.0 if constant else float(np.sqrt(var))}


@dataclass(frozen=True)
class MinMaxScaler(Scaler):
    """From the least and the largest value to `feature_range`; `clip` holds other rows to it. A constant becomes its low end."""

    feature_range: tuple[float, float] = (0.0, 1.0)
    clip: bool = False

    def problems(self, fields: Fields) -> list[str]:
        low, high = self.feature_range
        return numbers_only(self, fields) + ([] if low < high else [f"MinMaxScaler: {self.feature_range} is no range"])

    def shapes(self, fields: Fields) -> dict[str, tuple[int, ...]]:
        return per_feature(("data_min_", "data_max_", "scale_", "min_"), fields)

    def fit(self, x: np.ndarray, fields: Fields) -> dict[str, np.ndarray]:
        return self.of_ends([(float(v.min()), float(v.max())) for v in present(x, fields)])

    def of_ends(self, ends: list[tuple[float, float]]) -> dict[str, np.ndarray]:
        """The parameters of features with these least and largest values."""
        (to_low, to_high), rows = self.feature_range, []
        for low, high in ends:
            scale = (to_high - to_low) / _no_zero(high - low)
            rows.append({"data_min_": low, "data_max_": high, "scale_": scale, "min_": to_low - low * scale})
        return stacked(rows)

    def apply(self, x: torch.Tensor, p: Parameters, fields: Fields) -> torch.Tensor:
        made = x * p["scale_"] + p["min_"]
        return made.clamp(*self.feature_range) if self.clip else made

    def out(self, fields: Fields) -> Fields:
        return tuple(field.within(*(self.feature_range if self.clip else ())) for field in fields)

    def known(self, fields: Fields, p: Parameters) -> Fields:
        return self.out(fields) if self.clip else linear_bounds(fields, -p["min_"] / p["scale_"], p["scale_"])


@dataclass(frozen=True)
class RobustScaler(Scaler):
    """Takes the median away and divides by the distance of two quantiles, in percent (method "linear")."""

    with_centering: bool = True
    with_scaling: bool = True
    quantile_range: tuple[float, float] = (25.0, 75.0)
    unit_variance: bool = False

    def problems(self, fields: Fields) -> list[str]:
        low, high = self.quantile_range
        bad = [] if 0 <= low < high <= 100 else [f"RobustScaler: {self.quantile_range} are no two percentages"]
        if self.unit_variance and not bad and not 0 < low < high < 100:
            bad = ["RobustScaler: unit_variance wants percentages within 0 and 100"]
        return numbers_only(self, fields) + bad

    def shapes(self, fields: Fields) -> dict[str, tuple[int, ...]]:
        return per_feature(("center_", "scale_"), fields)

    @property
    def levels(self) -> tuple[float, float, float]:
        """The quantiles that it needs, as fractions."""
        return self.quantile_range[0] / 100, 0.5, self.quantile_range[1] / 100

    def fit(self, x: np.ndarray, fields: Fields) -> dict[str, np.ndarray]:
        return self.of_quantiles([np.percentile(v, [*self.quantile_range[:1], 50, *self.quantile_range[1:]])
                                  for v in present(x, fields)])  # fmt: skip

    def of_quantiles(self, found: list[np.ndarray]) -> dict[str, np.ndarray]:
        """The parameters of features with these quantiles at `levels`."""
        adjust = 1.0
        if self.unit_variance:
            low, high = (NormalDist().inv_cdf(q / 100) for q in self.quantile_range)
            adjust = high - low
        return stacked([{"center_": mid, "scale_": _no_zero(high - low) / adjust} for low, mid, high in found])

    def taken(self, p: Parameters) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        return (p["center_"] if self.with_centering else None, p["scale_"] if self.with_scaling else None)


def _no_zero(width: float) -> float:
    return 1.0 if width < _TINY else width
