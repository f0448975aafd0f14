"""How often values are there, and what belongs to each: histograms, value counts, groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral

import numpy as np
import torch

from protocols.errors import InputError, explain
from securemodel.data.answers import answered, asked_columns, check_rows
from securemodel.data.binning import Bins, Grid, bins_of, edges_of, intervals, pandas
from securemodel.data.describing import in_units, powers
from securemodel.data.noise import Noise, Spent, spent
from securemodel.data.sides import Given, Rows, Side, Sums, Total, column_of, one_hot
from securemodel.data.whole import unit_of
from securemodel.data.withholding import enough_of_all
from securemodel.shown import Shown

MOST_CELLS = 4096
_NOT_TOLD = -(1 << 40)


@dataclass(frozen=True, repr=False)
class Counts(Shown):
    """How many rows have each value, or are in each bin. `series`: a pandas.Series, NaN where it is withheld."""

    column: str
    names: tuple[str, ...]
    numbers: tuple[float, ...]
    minimum: int
    spent: Spent | None = None

    @property
    def series(self):
        """The counts as a pandas.Series."""
        return pandas().Series(self.numbers, index=list(self.names), name=self.column)

    @property
    def withheld(self) -> tuple[str, ...]:
        """The values or bins that are not told."""
        return tuple(name for name, x in zip(self.names, self.numbers, strict=True) if math.isnan(x))

    def __getitem__(self, name: str) -> float:
        return self.numbers[self.names.index(name)]

    def __str__(self) -> str:
        lines = [self.series.to_string()]
        few = f"withheld, of fewer than {self.minimum} rows, or with one that is"
        lines += [f"{few}: {', '.join(self.withheld)}"] if self.withheld else []
        return "\n".join([*lines, *([str(self.spent)] if self.spent else [])])


def value_counts(joint: Rows, column: str, *, noise: float | None = None, reveal: str = "all") -> Counts | None:
    """How many rows have each value of a category, boolean or whole number, at whoever `reveal` names; None elsewhere.

    Values are in the schema's order. Those of fewer rows than the schema's minimum are withheld and, where these together
    are fewer, those of the fewest other rows: else they would follow from the rest. With `noise`, each party adds
    discrete Gaussian noise of so many times what one row may change. Raises InputError.
    """
    of = column_of(joint, column)
    if of.kind == "number":
        raise InputError(explain(f"the column {column!r} has real numbers", fix="ask histogram for its bins"))
    grid = Grid(of, MOST_CELLS)
    if not grid.exact:
        what = f"the column {column!r} may have {int(of.high - of.low) + 1} values, and counts are told of {MOST_CELLS}"
        raise InputError(explain(what, fix="ask histogram for its bins"))
    names = of.labels or grid.names
    return _counts(joint, column, Side((column,), grid.size, prepare=grid.codes), names, "value counts", noise, reveal)


def histogram(
    joint: Rows, column: str, bins: int | Sequence[float] = 10, *, noise: float | None = None, reveal: str = "all"
) -> Counts | None:
    """How many rows are in each of some bins of equal width between the schema's bounds, or between given edges.

    Bins are closed on the right, the first one on both sides. Otherwise as `value_counts`. Raises InputError.
    """
    of = column_of(joint, column)
    if of.labels:
        raise InputError(explain(f"the column {column!r} has no order", fix="ask value_counts of it"))
    if isinstance(bins, (int, Integral)):
        if not 1 <= bins <= MOST_CELLS:
            raise InputError(explain(f"{bins} bins", where=f"histogram of {column!r}", fix=f"give 1 to {MOST_CELLS}"))
        edges: Sequence[float] = np.linspace(of.low, of.high, int(bins) + 1).tolist()
    else:
        edges = edges_of(of, bins)
    chosen = bins_of(of, edges)
    side = Side((column,), chosen.count, prepare=partial(_without_missing, chosen))
    return _counts(joint, column, side, intervals(edges), "histogram", noise, reveal)


def _without_missing(bins: Bins, own) -> np.ndarray:
    return np.where(own.valid[:, :1], bins.codes(own), -1)


def _counts(
    joint: Rows, column: str, side: Side, names: tuple[str, ...], what: str, noise: float | None, reveal: str
) -> Counts | None:
    check_rows(joint)
    sums, minimum = Sums(joint), joint.schema.minimum
    total = sums.histogram(side)
    if noise is not None:
        total = _sum(total, sums.noise(Noise(noise), [math.sqrt(2.0)] * side.size))
    sums.tell(f"{what} of {column}", partial(_told, total, minimum))
    answer = answered(joint, sums.query(f"{what} of {column}", reveal))
    if answer is None:
        return None
    found = [math.nan if x == _NOT_TOLD else float(x) for x in answer[f"{what} of {column}"].tolist()]
    return Counts(column, names, tuple(found), minimum, None if noise is None else spent(Noise(noise), 1))


def _sum(first: Total, second: Total) -> Total:
    return lambda given: first(given) + second(given)


def _told(total: Total, minimum: int, given: Given) -> torch.Tensor:
    counts = total(given)
    return torch.where(enough_of_all(counts, minimum), counts, _NOT_TOLD)


@dataclass(frozen=True, repr=False)
class Groups(Shown):
    """Statistics of columns by group. `frame`: a pandas.DataFrame, a row for each group, with count, mean and std of each
    column as DataFrame.groupby(...).agg names them; NaN where fewer rows than `minimum` are behind them.
    """

    key: str
    names: tuple[str, ...]
    numbers: Mapping[tuple[str, str], tuple[float, ...]]
    minimum: int
    spent: Spent | None = None

    @property
    def frame(self):
        """The table as a pandas.DataFrame."""
        return pandas().DataFrame(self.numbers, index=pandas().Index(self.names, name=self.key))

    @property
    def withheld(self) -> Mapping[str, tuple[str, ...]]:
        """By column, the groups that are not told."""
        counts = {column: of for (column, what), of in self.numbers.items() if what == "count"}
        few = {
            column: tuple(n for n, x in zip(self.names, of, strict=True) if math.isnan(x))
            for column, of in counts.items()
        }
        return {column: names for column, names in few.items() if names}

    def __str__(self) -> str:
        lines = [self.frame.to_string()]
        few = "; ".join(f"{', '.join(names)} of {column}" for column, names in self.withheld.items())
        lines += [f"withheld, of fewer than {self.minimum} rows, or with one that is: {few}"] if few else []
        return "\n".join([*lines, *([str(self.spent)] if self.spent else [])])


def group_by(
    joint: Rows, key: str, values: Sequence[str] | str, *, noise: float | None = None, reveal: str = "all"
) -> Groups | None:
    """Count, mean and standard deviation of columns for each value of a category, boolean or whole number.

    As DataFrame.groupby(key)[values].agg(["count", "mean", "std"]) gives them, at whoever `reveal` names; None elsewhere.
    Key and values may be of different owners. Groups of too few rows are withheld as in `value_counts`. Raises InputError.
    """
    values = asked_columns(joint, values)
    of = column_of(joint, key)
    grid = Grid(of, MOST_CELLS)
    if of.kind == "number" or not grid.exact:
        what = f"the column {key!r} has too many values to group by"
        raise InputError(explain(what, fix="name a category, a boolean or whole numbers within narrow bounds"))
    for name in values:
        if column_of(joint, name).kind == "category":
            raise InputError(explain(f"the column {name!r} has categories, and no mean", fix="leave it out"))
    if not values or key in values:
        raise InputError(explain("groups need other columns than their key", fix="name them: values=[...]"))
    check_rows(joint)
    sums, minimum = Sums(joint), joint.schema.minimum
    groups = Side((key,), grid.size, partial(one_hot, grid.size), grid.codes)
    for name in values:
        unit = unit_of(column_of(joint, name), joint.rows)
        total = sums.add(groups, Side((name,), 3, powers, partial(in_units, [unit])))
        if noise is not None:
            changes = [math.sqrt(2.0), 2.0 * unit.most, math.sqrt(2.0) * unit.most**2]
            total = _noisy(total, sums.noise(Noise(noise), changes * grid.size))
        sums.tell(f"counts, sums and sums of squares of {name} by {key}", partial(_told_groups, total, minimum))
    answer = answered(joint, sums.query(f"{', '.join(values)} by {key}", reveal))
    if answer is None:
        return None
    numbers = {}
    for name in values:
        unit = unit_of(column_of(joint, name), joint.rows)
        rows = answer[f"counts, sums and sums of squares of {name} by {key}"].tolist()
        made = [_of_group(unit, *row) for row in rows]
        for at, what in enumerate(("count", "mean", "std")):
            numbers[name, what] = tuple(group[at] for group in made)
    names = of.labels or grid.names
    told = None if noise is None else spent(Noise(noise), 3 * len(values))
    return Groups(key, names, numbers, minimum, told)


def _noisy(total: Total, noise: Total) -> Total:
    def noisy(given: Given) -> torch.Tensor:
        made = total(given)
        return made + noise(given).reshape(made.shape)

    return noisy


def _told_groups(total: Total, minimum: int, given: Given) -> torch.Tensor:
    made = total(given)
    return torch.where(enough_of_all(made[:, 0], minimum).unsqueeze(1), made, _NOT_TOLD)


def _of_group(unit, count: int, total: int, squares: int) -> tuple[float, float, float]:
    if count == _NOT_TOLD:
        return math.nan, math.nan, math.nan
    std = math.sqrt(unit.variance(total, squares, count)) if count > 1 else math.nan
    return float(count), unit.mean(total, count), std
