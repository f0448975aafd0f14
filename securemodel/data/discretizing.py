"""KBinsDiscretizer and Clip: bins between quantiles, and values held between quantiles. Missing values are not taken."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from securemodel.data.fields import MOST_CATEGORIES
from securemodel.data.preprocess import (
    Fields,
    Parameters,
    Step,
    none_missing,
    numbers_only,
    per_feature,
    present,
    stacked,
)

Method = Literal["averaged_inverted_cdf", "linear"]
_NARROW = 1e-8


@dataclass(frozen=True)
class KBinsDiscretizer(Step):
    """Bins of numbers, as scikit-learn 1.9 makes them: an edge belongs to the bin above it.

    `quantile_method`: scikit-learn's default "averaged_inverted_cdf", or "linear", whose edges are those of pandas.qcut
    (which counts an edge to the bin below; WoEEncoder has qcut's sides, too). `strategy` "uniform" has bins of one width.
    Bins of no width are merged, as there; the number of features is public, so with `encode="onehot"` the last ones are
    then 0 in every row.
    """

    n_bins: int = 5
    encode: Literal["onehot", "onehot-dense", "ordinal"] = "onehot"
    strategy: Literal["quantile", "uniform"] = "quantile"
    quantile_method: Method = "averaged_inverted_cdf"

    def problems(self, fields: Fields) -> list[str]:
        bad = []
        if isinstance(self.n_bins, bool) or not isinstance(self.n_bins, int) or not 2 <= self.n_bins <= MOST_CATEGORIES:
            bad.append(f"KBinsDiscretizer: n_bins={self.n_bins!r} is no number from 2 to {MOST_CATEGORIES}")
        if self.encode not in ("onehot", "onehot-dense", "ordinal"):
            bad.append(f"KBinsDiscretizer: encode={self.encode!r}")
        if self.strategy not in ("quantile", "uniform"):
            bad.append(f"KBinsDiscretizer: strategy={self.strategy!r}; 'quantile' and 'uniform' are there")
        if self.quantile_method not in ("averaged_inverted_cdf", "linear"):
            bad.append(f"KBinsDiscretizer: quantile_method={self.quantile_method!r}")
        return numbers_only(self, fields) + none_missing(self, fields) + bad

    @property
    def levels(self) -> np.ndarray:
        """The quantiles that it needs, as fractions, least and largest value included."""
        return np.linspace(0, 1, self.n_bins + 1)

    def out(self, fields: Fields) -> Fields:
        if self.encode == "ordinal":
            return tuple(f.within(0.0, self.n_bins - 1.0) for f in fields)
        return tuple(f.flag(f"{f.name}_{k}.0") for f in fields for k in range(self.n_bins))

    def shapes(self, fields: Fields) -> dict[str, tuple[int, ...]]:
        return {"bin_edges_": (len(fields), self.n_bins + 1), "n_bins_": (len(fields),)}

    def fit(self, x: np.ndarray, fields: Fields) -> dict[str, np.ndarray]:
        return self.of_edges([self._edges(v) for v in present(x, fields)], fields)

    def _edges(self, values: np.ndarray) -> np.ndarray:
        if self.strategy == "uniform":
            return np.linspace(values.min(), values.max(), self.n_bins + 1)
        return np.percentile(values, 100 * self.levels, method=self.quantile_method)

    def of_edges(self, edges: list[np.ndarray], fields: Fields) -> dict[str, np.ndarray]:
        """The parameters of features with these edges: narrow bins merged, and filled up with infinity."""
        rows: list[dict[str, float | np.ndarray]] = []
        for field, all_edges in zip(fields, edges, strict=True):
            kept = all_edges
            if self.strategy == "quantile":
                kept = all_edges[np.ediff1d(all_edges, to_begin=np.inf) > _NARROW]
            if all_edges[0] == all_edges[-1] or len(kept) < 2:
                warnings.warn(f"{field.name!r} is constant, or nearly so, and becomes bin 0", stacklevel=2)
                kept = np.array([-np.inf, np.inf])
            elif len(kept) < len(all_edges):
                warnings.warn(f"{field.name!r} has bins of no width, which are merged", stacklevel=2)
            full = np.concatenate([kept, np.full(self.n_bins + 1 - len(kept), np.inf)])
            rows.append({"bin_edges_": full, "n_bins_": len(kept) - 1.0})
        return stacked(rows)

    def apply(self, x: torch.Tensor, p: Parameters, fields: Fields) -> torch.Tensor:
        inner = p["bin_edges_"][:, 1:-1]
        above = (x.unsqueeze(2) >= inner).to(x.dtype).sum(2)
        codes = torch.minimum(above, p["n_bins_"] - 1)  # beyond the last edge that is there
        if self.encode == "ordinal":
            return codes
        places = torch.arange(self.n_bins, dtype=x.dtype, device=x.device)
        return (codes.unsqueeze(2) == places).to(x.dtype).flatten(1)


@dataclass(frozen=True)
class Clip(Step):
    """Holds values between two quantiles of the fit (method "linear"). Missing values stay missing."""

    lower: float = 0.01
    upper: float = 0.99

    def problems(self, fields: Fields) -> list[str]:
        bad = [] if 0 <= self.lower < self.upper <= 1 else [f"Clip: {self.lower} and {self.upper} are no two quantiles"]
        return numbers_only(self, fields) + bad

    @property
    def levels(self) -> tuple[float, float]:
        """The quantiles that it needs, as fractions."""
        return self.lower, self.upper

    def out(self, fields: Fields) -> Fields:
        return fields

    def shapes(self, fields: Fields) -> dict[str, tuple[int, ...]]:
        return per_feature(("lower_", "upper_"), fields)

    def fit(self, x: np.ndarray, fields: Fields) -> dict[str, np.ndarray]:
        return self.of_quantiles([np.quantile(v, self.levels) for v in present(x, fields)])

    def of_quantiles(self, found: list[np.ndarray]) -> dict[str, np.ndarray]:
        """The parameters of features with these quantiles at `levels`."""
        return stacked([{"lower_": low, "upper_": high} for low, high in found])

    def apply(self, x: torch.Tensor, p: Parameters, fields: Fields) -> torch.Tensor:
        return x.clamp(p["lower_"], p["upper_"])

    def known(self, fields: Fields, p: Parameters) -> Fields:
        ends = zip(fields, p["lower_"].tolist(), p["upper_"].tolist(), strict=True)
        return tuple(f.within(low, high) for f, low, high in ends)
