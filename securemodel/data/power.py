"""PowerTransformer: numbers made more like a normal distribution, by the transformation of Yeo and Johnson.

I.-K. Yeo, R. Johnson, A new family of power transformations to improve normality or symmetry, Biometrika 87 (2000).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from securemodel.data.preprocess import Fields, Parameters, Step, numbers_only, per_feature, present, stacked
from securemodel.data.scaling import moments

LAMBDAS = np.round(np.linspace(-2, 2, 41), 1)
"""What is tried first, and all that is tried where rows of several parties are added up: public."""
_FAR, _STEPS = 40.0, 40
_GOLDEN = (math.sqrt(5) - 1) / 2


def yeo_johnson(x: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    """The transformation: expm1(λ log1p(x)) / λ above zero, -expm1((2 - λ) log1p(-x)) / (2 - λ) below; NaN stays NaN."""
    up, down = torch.log1p(x.clamp(min=0)), torch.log1p((-x).clamp(min=0))
    return torch.where(x >= 0, _power(up, lam), -_power(down, 2 - lam)) + 0 * x


def _power(logs: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    zero = lam.abs() < torch.finfo(torch.float64).eps
    safe = torch.where(zero, 1.0, lam)
    return torch.where(zero, logs, torch.expm1(safe * logs) / safe)


def log_likelihood(values: np.ndarray, lam: float) -> float:
    """Of a row: -log(var) / 2 + (λ - 1) mean(sign(x) log1p(abs(x)))."""
    made = yeo_johnson(torch.from_numpy(values), torch.tensor(lam, dtype=torch.float64)).numpy()
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        found = -np.log(made.var()) / 2 + (lam - 1) * float((np.sign(values) * np.log1p(np.abs(values))).mean())
    return float(found) if np.isfinite(found) else -math.inf


def best_lambda(values: np.ndarray) -> float:
    """The λ of greatest likelihood: the best of LAMBDAS, or beyond their ends, then a golden section around it."""
    likelihood: Callable[[float], float] = lambda lam: log_likelihood(values, lam)
    found = {float(lam): likelihood(float(lam)) for lam in LAMBDAS}
    step = float(LAMBDAS[1] - LAMBDAS[0])
    while True:
        best = max(found, key=lambda lam: found[lam])
        if min(found) < best < max(found):
            break
        step *= 1.5
        outward = best + (step if best > 0 else -step)
        if abs(outward) > _FAR:
            return best
        found[outward] = likelihood(outward)
    near = sorted(found)
    at = near.index(best)
    return _section(likelihood, near[at - 1], near[at + 1])


def _section(f: Callable[[float], float], low: float, high: float) -> float:
    """The largest value of a function with one peak between two ends."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = f(left), f(right)
    for _ in range(_STEPS):
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = f(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = f(right)
    return (low + high) / 2


@dataclass(frozen=True)
class PowerTransformer(Step):
    """Yeo-Johnson with the λ of greatest likelihood, then mean 0 and variance 1. A constant feature becomes 0."""

    method: str = "yeo-johnson"
    standardize: bool = True

    def problems(self, fields: Fields) -> list[str]:
        bad = (
            [] if self.method == "yeo-johnson" else [f"PowerTransformer: {self.method!r}; there is 'yeo-johnson' alone"]
        )
        return numbers_only(self, fields) + bad

    def out(self, fields: Fields) -> Fields:
        return tuple(field.within() for field in fields)

    def shapes(self, fields: Fields) -> dict[str, tuple[int, ...]]:
        return per_feature(("lambdas_", "mean_", "scale_"), fields)

    def fit(self, x: np.ndarray, fields: Fields) -> dict[str, np.ndarray]:
        rows = []
        for values in present(x, fields):
            constant = moments(len(values), float(values.mean()), float(values.var()))
            is_constant = constant["scale_"] == 1.0 and values.max() == values.min()
            lam = 1.0 if is_constant else best_lambda(values)
            made = yeo_johnson(torch.from_numpy(values), torch.tensor(lam, dtype=torch.float64)).numpy()
            rows.append({"lambdas_": lam, **moments(len(made), float(made.mean()), float(made.var()))})
        return {name: values for name, values in stacked(rows).items() if name != "var_"}

    def apply(self, x: torch.Tensor, p: Parameters, fields: Fields) -> torch.Tensor:
        made = yeo_johnson(x, p["lambdas_"])
        return (made - p["mean_"]) / p["scale_"] if self.standardize else made
