"""What describes a column: as its owner computes it alone, and as sums over the rows of several."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial

import numpy as np
import torch

from securemodel.data.binning import pandas
from securemodel.data.column import Column
from securemodel.data.sides import Given, Own, Rows, Side, Total, column_of
from securemodel.data.whole import WITHHELD, Unit, from_floats, unit_of
from securemodel.data.withholding import enough, kept

ENDS_BITS = 40
"""The least and the largest value are multiples of the bounds' distance / 2^40, where several parties have values."""


def own_numbers(own: Own, quantiles: Sequence[Fraction], extremes: bool, minimum: int) -> torch.Tensor:
    """What an owner of all rows tells: [columns, 4 + quantiles (+ 2), 2], as `from_floats` has it.

    Count, missing values, mean, standard deviation, quantiles, least and largest value, as pandas computes them.
    """
    made = []
    for at in range(len(own.columns)):
        series = pandas().Series(own.column(at))
        count = len(series)
        if count < minimum:
            made.append([WITHHELD] * (4 + len(quantiles) + 2 * extremes))
            continue
        found = series.quantile([float(q) for q in quantiles]).tolist()
        seen = [x if count * min(q, 1 - q) >= minimum else WITHHELD for x, q in zip(found, quantiles, strict=True)]
        std = 0.0 if count > 1 and series.min() == series.max() else series.std()
        ends = [series.min(), series.max()] if extremes else []
        made.append([count, own.rows - count, series.mean(), std, *seen, *ends])
    return from_floats(np.array(made, np.float64))


def units(joint: Rows, names: Sequence[str]) -> list[Unit]:
    """The unit of each column in sums."""
    return [unit_of(column_of(joint, name), joint.rows) for name in names]


def moments(joint: Rows, names: tuple[str, ...]) -> Side:
    """Of some columns of one owner: ones, numbers and their squares in the unit, [rows, 3 columns]."""
    return Side(names, 3 * len(names), powers, partial(in_units, units(joint, names)))


def in_units(made: Sequence[Unit], own: Own) -> np.ndarray:
    """An owner's numbers in the units of the columns, [rows, columns]."""
    return np.stack([unit.whole(x) for unit, x in zip(made, own.values.T, strict=True)], 1)


def powers(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Features of numbers in units: ones, numbers and squares."""
    whole = values.to(torch.int64) * valid
    return torch.cat([valid, whole, whole * whole], 1)


def told_moments(total: Total, minimum: int, given: Given) -> torch.Tensor:
    """Count, sum and sum of squares of each column, [columns, 3]; zero where there are too few rows."""
    made = total(given).reshape(3, -1).T
    return kept(enough(made[:, :1], minimum), made)


def told_ends(largest: Total, moments: Total, at: int, minimum: int, given: Given) -> torch.Tensor:
    """What `ends` are at most of the column at a place of the moments; zero where there are too few rows."""
    return kept(enough(moments(given)[at : at + 1], minimum), largest(given))


def sensitivities(joint: Rows, names: Sequence[str]) -> list[float]:
    """By how much one row may change each of the moments, in their order."""
    most = [float(unit.most) for unit in units(joint, names)]
    return [1.0] * len(names) + [2 * m for m in most] + [m * m for m in most]


def ends(joint: Rows, name: str) -> Side:
    """A column as distance from the upper bound and from the lower one, both from 1 on: 0 where there is no value."""
    column, most = column_of(joint, name), 1 << ENDS_BITS
    room = max(column.high - column.low, 0.0) or 1.0
    step = room / most if column.kind == "number" or room > most else 1.0

    def features(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        both = torch.cat([column.high - values, values - column.low], 1) / step
        return (both.round().to(torch.int64) + 1) * valid

    return Side((name,), 2, features)


def end_values(column: Column, found: Sequence[int]) -> tuple[float, float]:
    """(least, largest value) from what `ends` are at most."""
    room = max(column.high - column.low, 0.0) or 1.0
    step = room / (1 << ENDS_BITS) if column.kind == "number" or room > 1 << ENDS_BITS else 1.0
    return column.high - (found[0] - 1) * step, column.low + (found[1] - 1) * step


def presence(name: str) -> Side:
    """One for each row that the owner of a column has."""
    return Side((name,), 1, prepare=_present, most=1)


def _present(own: Own) -> np.ndarray:
    return own.there.reshape(-1, 1).astype(np.float64)
