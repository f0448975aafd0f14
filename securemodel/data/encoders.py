"""TargetEncoder, as scikit-learn has it, and WoEEncoder.

D. Micci-Barreca, A preprocessing scheme for high-cardinality categorical attributes in classification and prediction problems,
SIGKDD Explorations 3 (2001), equations 3 to 6. Weights of evidence: I. J. Good, Probability and the Weighing of Evidence (1950).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from protocols.errors import InputError, explain
from securemodel.data.encoding import categories_of, categories_only, category_codes
from securemodel.data.fields import MOST_CATEGORIES, Field
from securemodel.data.preprocess import Fields, Parameters
from securemodel.data.splits import Public, fold_numbers
from securemodel.data.targets import LabelStep, Table


@dataclass(frozen=True)
class TargetEncoder(LabelStep):
    """A category as the mean of the label over its rows, drawn towards the mean of all (Micci-Barreca 2001).

    `smooth`: how many rows the mean of all counts for, or "auto". Rows of the fit are encoded in `cv` folds of a public
    `seed`, each by the rows outside of its fold; all others by all rows. Unknown categories get the mean of all.
    """

    smooth: float | Literal["auto"] = "auto"
    cv: int = 5
    seed: int = 0

    def problems(self, fields: Fields) -> list[str]:
        bad = []
        if self.smooth != "auto" and not (isinstance(self.smooth, (int, float)) and 0 <= self.smooth < np.inf):
            bad.append(f"TargetEncoder: smooth={self.smooth!r}")
        if isinstance(self.cv, bool) or not isinstance(self.cv, int) or not 2 <= self.cv <= 100:
            bad.append(f"TargetEncoder: cv={self.cv!r} is no number of folds from 2 to 100")
        return categories_only(self, fields) + bad

    @property
    def folds(self) -> int:
        return self.cv

    def fold_numbers(self, rows: int) -> np.ndarray:
        return fold_numbers(Public(rows, self.seed), self.cv)

    def size(self, field: Field) -> int:
        return len(categories_of(field))

    def out(self, fields: Fields) -> Fields:
        return tuple(Field(field.name) for field in fields)

    def shapes(self, fields: Fields) -> dict[str, tuple[int, ...]]:
        most = max(map(self.size, fields))
        return {"encodings_": (len(fields), self.cv + 1, most), "target_mean_": (self.cv + 1,)}

    def codes(self, x: torch.Tensor, p: Parameters, fields: Fields, at: int) -> torch.Tensor:
        return category_codes(x[:, at], fields[at])

    def encoded(self, tables: list[Table], fields: Fields, label: Field) -> dict[str, torch.Tensor]:
        width, most = (label.high - label.low) or 1.0, self.shapes(fields)["encodings_"][2]
        made = []
        for table in tables:
            found = torch.where(table.told, self._means(table), table.mean)
            filled = torch.cat([found, table.mean.expand(-1, most - found.shape[1])], 1)
            made.append(label.low + width * filled)
        return {"encodings_": torch.stack(made), "target_mean_": label.low + width * tables[0].mean[:, 0]}

    def _means(self, table: Table) -> torch.Tensor:
        rows = table.rows.clamp(min=1.0)
        if self.smooth != "auto":
            return (table.first + self.smooth * table.mean) / (rows + self.smooth)
        mean = table.first / rows
        within = (table.second / rows - mean * mean).clamp(min=0.0)
        weight = (table.var * rows) / (table.var * rows + within)
        return torch.where(weight.isnan(), table.mean, weight * mean + (1 - weight) * table.mean)

    def apply(self, x: torch.Tensor, p: Parameters, fields: Fields) -> torch.Tensor:
        return torch.stack([self._encoded(x, p, fields, at, 0) for at in range(len(fields))], 1)

    def _encoded(self, x: torch.Tensor, p: Parameters, fields: Fields, at: int, fold: int) -> torch.Tensor:
        """By the table of all rows, or that of a fold, counted from 1."""
        codes = self.codes(x, p, fields, at).unsqueeze(1)
        hot = (codes == torch.arange(self.size(fields[at]), dtype=x.dtype)).to(x.dtype)
        known = (hot * p["encodings_"][at, fold, : hot.shape[1]]).sum(1)
        return known + (1 - hot.sum(1)) * p["target_mean_"][fold]

    def apply_training(self, x: torch.Tensor, p: Parameters, fields: Fields, first: int, of: int) -> torch.Tensor:
        made, numbers = self.apply(x, p, fields), self.fold_numbers(of)[first : first + len(x)]
        for fold in range(self.cv):
            rows = torch.from_numpy(numbers == fold)
            made[rows] = torch.stack([self._encoded(x[rows], p, fields, at, fold + 1) for at in range(len(fields))], 1)
        return made


@dataclass(frozen=True)
class WoEEncoder(LabelStep):
    """A category, or a bin of a number, as its weight of evidence: log(e / E) - log(n / N) of a boolean label.

    e and n are the rows of the bin with the label 1 and 0, with 0.5 added to each; E and N those of all bins. Numbers have
    `bins` bins of equally many rows: the edges of pandas.qcut, an edge belonging to the bin below, the least value to the
    first bin. Missing values have a bin of their own. `iv_` is the information value, as `Joint.woe` has it. Bins that are withheld
    and unknown categories get 0.
    """

    bins: int = 10

    def problems(self, fields: Fields) -> list[str]:
        if isinstance(self.bins, bool) or not isinstance(self.bins, int) or not 2 <= self.bins <= MOST_CATEGORIES:
            return [f"WoEEncoder: bins={self.bins!r} is no number from 2 to {MOST_CATEGORIES}"]
        return categories_only(self, tuple(field for field in fields if not field.number))

    def problems_of_label(self, label: Field) -> list[str]:
        boolean = label.number and label.whole and (label.low, label.high) == (0.0, 1.0)
        more = [] if boolean else [f"WoEEncoder: the label {label.name!r} is no boolean"]
        return super().problems_of_label(label) + more

    def _flag(self, field: Field) -> bool:
        return field.categories is None and field.whole and (field.low, field.high) == (0.0, 1.0)

    def _binned(self, field: Field) -> bool:
        return field.categories is None and not self._flag(field)

    def size(self, field: Field) -> int:
        return self.bins + field.missing if self._binned(field) else len(categories_of(field))

    def edges_of(self, fields: Fields) -> tuple[str, ...]:
        return ("bin_edges_",) if any(map(self._binned, fields)) else ()

    def out(self, fields: Fields) -> Fields:
        return tuple(Field(field.name) for field in fields)

    def shapes(self, fields: Fields) -> dict[str, tuple[int, ...]]:
        count = len(fields)
        edges = {name: (count, self.bins + 1) for name in self.edges_of(fields)}
        return {**edges, "woe_": (count, max(map(self.size, fields))), "iv_": (count,)}

    def edges(self, x: np.ndarray, fields: Fields) -> dict[str, np.ndarray]:
        if not self.edges_of(fields):
            return {}
        made = np.full((len(fields), self.bins + 1), np.inf)
        for at, field in enumerate(fields):
            values = x[~np.isnan(x[:, at]), at]
            if self._binned(field) and len(values):
                found = np.unique(np.quantile(values, np.linspace(0, 1, self.bins + 1)))
                made[at, : len(found)] = found
        return {"bin_edges_": made}

    def codes(self, x: torch.Tensor, p: Parameters, fields: Fields, at: int) -> torch.Tensor:
        field, column = fields[at], x[:, at]
        if not self._binned(field):
            return category_codes(column, field)
        edges = p["bin_edges_"][at]
        inner = torch.where(edges[2:].isinf(), torch.inf, edges[1:-1])  # the last edge ends the last bin
        made = (column.unsqueeze(1) > inner).to(x.dtype).sum(1)
        return torch.where(column.isnan(), float(self.bins), made)

    def encoded(self, tables: list[Table], fields: Fields, label: Field) -> dict[str, torch.Tensor]:
        woe, iv = (
            torch.zeros(self.shapes(fields)["woe_"], dtype=torch.float64),
            torch.zeros(len(fields), dtype=torch.float64),
        )
        for at, table in enumerate(tables):
            count, ones = table.totals[0][0], table.totals[1][0]
            if not 0 < ones < count:
                raise InputError(explain(f"the label {label.name!r} has one class only", where="WoEEncoder",
                                         fix="fit on rows of both classes"))  # fmt: skip
            told, first, rows = table.told[0], table.first[0], table.rows[0]
            events, others = (first + 0.5) / ones, (rows - first + 0.5) / (count - ones)
            found = torch.where(told, torch.log(events) - torch.log(others), 0.0)
            shares = first / ones - (rows - first) / (count - ones)
            woe[at, : len(found)], iv[at] = found, (shares * found)[told].sum()
        return {"woe_": woe, "iv_": iv}

    def apply(self, x: torch.Tensor, p: Parameters, fields: Fields) -> torch.Tensor:
        made = []
        for at, field in enumerate(fields):
            places = torch.arange(self.size(field), dtype=x.dtype)
            hot = (self.codes(x, p, fields, at).unsqueeze(1) == places).to(x.dtype)
            made.append((hot * p["woe_"][at, : len(places)]).sum(1))
        return torch.stack(made, 1)
