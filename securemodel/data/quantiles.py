"""Quantiles of what nobody has whole, from histograms over public bins.

A quantile of n numbers is between the numbers i = floor(q (n - 1)) and i + 1 in their order, as pandas and NumPy have it.
The bin of number i is how many cumulative counts are at most i. The bins are rows of a matrix: comparisons with the
cumulative sums of rows find the row, a product with the unit vector that they make gives its counts, and comparisons
with these the bin. So it takes twice the root of the number of bins in comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import torch

from protocols.errors import InputError, explain
from securemodel.data.binning import Grid
from securemodel.data.whole import WITHHELD

NOT_TOLD = -1
_ROW = 256


def listed(quantiles: float | Sequence[float]) -> list[float]:
    """Quantiles that are asked for; one is a list of one. Raises InputError for what are no numbers."""
    try:
        return [float(q) for q in (quantiles if isinstance(quantiles, Iterable) else [quantiles])]
    except (TypeError, ValueError) as problem:
        raise InputError(explain(f"the quantiles {quantiles!r} are no numbers", fix="give [0.25, 0.5]")) from problem


def fractions_of(quantiles: float | Sequence[float]) -> tuple[Fraction, ...]:
    """Quantiles as quotients of small numbers. Raises InputError for what is not between 0 and 1, with four digits."""
    asked = listed(quantiles)
    made = tuple(Fraction(q if math.isfinite(q) else 0).limit_denominator(10_000) for q in asked)
    for q, exact in zip(asked, made, strict=True):
        if not 0 < exact < 1 or abs(exact - q) > 1e-12:
            what = f"the quantile {q} is not between 0 and 1, or has more than four digits"
            raise InputError(
                explain(what, fix="give numbers such as 0.25; the least and largest value are extremes=True")
            )
    return made


def name_of(quantile: float) -> str:
    """As pandas calls it: "25%"."""
    return f"{100 * quantile:.10g}%"


def bins_at(histogram: torch.Tensor, quantiles: Sequence[Fraction], minimum: int) -> torch.Tensor:
    """The bins of the two numbers that each quantile is between, [quantiles, 2], from counts [bins]; of secrets, too.

    `NOT_TOLD` where fewer than `minimum` rows are on either side of it.
    """
    width = min(_ROW, histogram.shape[0])
    rows = -(-histogram.shape[0] // width)
    table = torch.nn.functional.pad(histogram, (0, rows * width - histogram.shape[0])).reshape(rows, width)
    count = histogram.sum()
    up = torch.tensor([[q.numerator] for q in quantiles for _ in (0, 1)])
    down = torch.tensor([[q.denominator] for q in quantiles for _ in (0, 1)])
    later = torch.tensor([[at] for _ in quantiles for at in (0, 1)])
    rank = up * (count - 1)  # [2 quantiles, 1]
    sizes = table.sum(1)
    before = ((sizes.cumsum(0) - later) * down <= rank).to(torch.int64)  # [2 quantiles, rows], ones and then zeros
    unit = torch.cat([torch.ones(before.shape[0], 1, dtype=torch.int64), before[:, :-1]], 1) - before
    counts = (before * sizes).sum(1, keepdim=True) + (unit @ table).cumsum(1)
    within = ((counts - later) * down <= rank).to(torch.int64)
    found = (before.sum(1) * width + within.sum(1)).reshape(len(quantiles), 2)
    beside = torch.tensor([min(q.numerator, q.denominator - q.numerator) for q in quantiles])
    least = torch.tensor([minimum * q.denominator for q in quantiles])
    return torch.where((beside * count >= least).reshape(-1, 1), found, NOT_TOLD)


def between(grid: Grid, found: Sequence[int], quantile: Fraction, count: int) -> float:
    """The quantile, from the bins of the two numbers it is between and how many numbers there are; `WITHHELD` if withheld."""
    if NOT_TOLD in found:
        return WITHHELD
    share = float(quantile * (count - 1) % 1)
    low, high = (grid.middle(code) for code in found)
    return low if share == 0 else low + share * (high - low)
