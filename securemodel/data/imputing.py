"""SimpleImputer: what stands in place of missing values, as scikit-learn has it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from securemodel.data.preprocess import Fields, Parameters, Step, per_feature, present

Strategy = Literal["mean", "median", "most_frequent", "constant"]
STRATEGIES = ("mean", "median", "most_frequent", "constant")


@dataclass(frozen=True)
class SimpleImputer(Step):
    """Puts the mean, the median, the most frequent value (the least of these) or `fill_value` where a value is missing.

    `fill_value` is 0 unless given; of a column of categories it is a category's name. `add_indicator` appends a 0/1
    feature for each that the schema says may be missing: which of them are missing in the rows of the fit, as
    scikit-learn asks, is nobody's business.
    """

    strategy: Strategy = "mean"
    fill_value: float | str | None = None
    add_indicator: bool = False

    def problems(self, fields: Fields) -> list[str]:
        if self.strategy not in STRATEGIES:
            return [f"SimpleImputer: {self.strategy!r} is none of {', '.join(STRATEGIES)}"]
        found = []
        for field in fields:
            if not field.number and self.strategy in ("mean", "median"):
                found.append(f"SimpleImputer: the categories of {field.name!r} have no {self.strategy}")
            elif self.strategy == "constant" and not self._fits(field):
                found.append(f"SimpleImputer: {self.fill_value!r} is no value of {field.name!r}")
        return found

    def _fits(self, field) -> bool:
        value = self.fill_value
        if field.number:
            return value is None or (isinstance(value, (int, float)) and np.isfinite(value))
        return isinstance(value, str) and value in field.categories

    def out(self, fields: Fields) -> Fields:
        filled = tuple(replace(self._filled(f), missing=False) for f in fields)
        return filled + (
            tuple(f.flag(f"missingindicator_{f.name}") for f in fields if f.missing) if self.add_indicator else ()
        )

    def _filled(self, field):
        if self.strategy == "constant" and field.number:
            value = float(self.fill_value or 0)
            whole = field.whole and value.is_integer()
            return replace(field, low=min(field.low, value), high=max(field.high, value), whole=whole)
        return replace(field, whole=field.whole and self.strategy == "most_frequent")

    def shapes(self, fields: Fields) -> dict[str, tuple[int, ...]]:
        return per_feature(("statistics_",), fields)

    def fit(self, x: np.ndarray, fields: Fields) -> dict[str, np.ndarray]:
        if self.strategy == "constant":
            return self.of_values(self.constants(fields))
        return self.of_values([_value(v, self.strategy) for v in present(x, fields)])

    def constants(self, fields: Fields) -> list[float]:
        """The fill values of strategy "constant"."""
        value = self.fill_value
        return [float(value or 0) if f.categories is None else float(f.categories.index(str(value))) for f in fields]

    def of_values(self, values: list[float]) -> dict[str, np.ndarray]:
        """The parameters with these fill values."""
        return {"statistics_": np.array(values, np.float64)}

    def apply(self, x: torch.Tensor, p: Parameters, fields: Fields) -> torch.Tensor:
        gone = x.isnan()
        made = torch.where(gone, p["statistics_"], x)
        places = [at for at, field in enumerate(fields) if field.missing]
        return torch.cat([made, gone[:, places].to(x.dtype)], 1) if self.add_indicator and places else made


def _value(values: np.ndarray, strategy: str) -> float:
    if strategy == "mean":
        return float(values.mean())
    if strategy == "median":
        return float(np.median(values))
    known, counts = np.unique(values, return_counts=True)
    return float(known[counts.argmax()])
