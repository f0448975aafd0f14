"""What the numbers of a joint table look like: `describe`, as pandas has it, of rows that stay with their owners."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial

import torch

from protocols.errors import InputError, explain
from securemodel.data.answers import answered, asked_columns, check_rows
from securemodel.data.binning import Grid, pandas
from securemodel.data.describing import (
    end_values,
    ends,
    moments,
    own_numbers,
    presence,
    sensitivities,
    told_ends,
    told_moments,
)
from securemodel.data.noise import Noise, Spent, spent
from securemodel.data.quantiles import between, bins_at, fractions_of, listed, name_of
from securemodel.data.query import Query
from securemodel.data.sides import Given, Rows, Side, Sums, Total, column_of, owner_of
from securemodel.data.whole import WITHHELD, to_floats, unit_of
from securemodel.data.withholding import enough, kept
from securemodel.shown import Shown

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
FINE, COARSE = 1 << 16, 16
"""Bins of quantiles: where owners of rows count by themselves, and where each row is counted in secret."""


@dataclass(frozen=True, repr=False)
class Description(Shown):
    """The statistics of columns, as `pandas.DataFrame.describe` shows them.

    frame: a row for each statistic, a column for each column; NaN where it is withheld or undefined.
    withheld, undefined: names of statistics by column, of too few rows and of no value.
    within: how far a column's quantiles are at most from the true ones, where they are of bins.
    spent: what the noise on it leaves to be told, where noise was asked for.
    """

    numbers: Mapping[str, Mapping[str, float]]
    minimum: int
    withheld: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    undefined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    within: Mapping[str, float] = field(default_factory=dict)
    spent: Spent | None = None

    @property
    def frame(self):
        """The table as a pandas.DataFrame."""
        return pandas().DataFrame(self.numbers)

    def __getitem__(self, column: str):
        return self.frame[column]

    def __str__(self) -> str:
        lines = [self.frame.to_string()]
        few = f"withheld, of fewer than {self.minimum} rows"
        for what, named in ((few, self.withheld), ("undefined", self.undefined)):
            said = "; ".join(f"{', '.join(names)} of {column}" for column, names in named.items())
            lines += [f"{what}: {said}"] if said else []
        if any(self.within.values()):
            said = ", ".join(f"{column} {within:.3g}" for column, within in self.within.items() if within)
            lines.append(f"quantiles are of bins, and right within: {said}")
        return "\n".join([*lines, *([str(self.spent)] if self.spent else [])])


def describe(
    joint: Rows,
    columns: str | Sequence[str] | None = None,
    *,
    quantiles: float | Sequence[float] = QUANTILES,
    extremes: bool = False,
    bins: int | None = None,
    noise: float | None = None,
    reveal: str = "all",
) -> Description | None:
    """Count, missing values, mean, standard deviation and quantiles of columns that have numbers.

    `reveal` says who learns them: "all", or a party; others get None. Quantiles with fewer rows than the
    schema's minimum on a side are withheld, so the outermost ones stand for the least and the largest value;
    `extremes=True` tells these, which are two persons' own. Where no party has a column whole, quantiles are of `bins` of
    equal width within the schema's bounds: by default 65,536, or 16 where nobody knows which rows are joint.
    With `noise`, each party adds discrete Gaussian noise of so many times what one row may change to count, sum and sum
    of squares, and there are no quantiles. A date is the days since 1970-01-01. Raises InputError.
    """
    asked = _asked(joint, columns, quantiles, extremes, bins, noise)
    answer = answered(joint, question(joint, asked, reveal))
    return None if answer is None else _described(joint, asked, answer)


def quantiles(
    joint: Rows,
    column: str,
    q: float | Sequence[float] = (0.25, 0.5, 0.75),
    *,
    bins: int | None = None,
    reveal: str = "all",
) -> dict[float, float] | None:
    """Quantiles of a column, as `describe` finds them; NaN where too few rows are on a side. Raises InputError."""
    found = describe(joint, [column], quantiles=q, bins=bins, reveal=reveal)
    return None if found is None else {x: found.numbers[column][name_of(x)] for x in listed(q)}


@dataclass(frozen=True)
class _Asked:
    """What is asked of which columns, by owner: those that it computes alone, and those that take sums.

    Rows that are split have no owner: "" stands for all.
    """

    order: tuple[str, ...]
    alone: Mapping[str, tuple[str, ...]]
    summed: Mapping[str, tuple[str, ...]]
    quantiles: tuple[Fraction, ...]
    extremes: bool
    bins: int
    noise: Noise | None


def _asked(
    joint: Rows,
    columns: str | Sequence[str] | None,
    quantiles: float | Sequence[float],
    extremes: bool,
    bins: int | None,
    noise: float | None,
) -> _Asked:
    """Looks through what is asked. Raises InputError."""
    order = asked_columns(joint, columns)
    for name in order:
        if column_of(joint, name).kind == "category":
            fix = "ask value_counts for its values, or leave it out"
            raise InputError(explain(f"the column {name!r} has categories, and no mean", fix=fix))
    if not order:
        raise InputError(explain("there are no columns of numbers to describe", fix="ask value_counts of categories"))
    check_rows(joint)
    if noise is not None and extremes:
        raise InputError(
            explain("extremes with noise", why="they are two persons' values", fix="leave one of them out")
        )
    chosen = bins or (COARSE if joint.hidden else FINE)
    if not 2 <= chosen <= FINE:
        raise InputError(explain(f"{bins} bins for quantiles", fix=f"give 2 to {FINE}"))
    alone: dict[str, tuple[str, ...]] = {}
    summed: dict[str, tuple[str, ...]] = {}
    for name in order:
        party = owner_of(joint, name)
        kind = alone if noise is None and party and Sums(joint).alone((name,)) else summed
        kind[party or ""] = (*kind.get(party or "", ()), name)
    exact = () if noise is not None else fractions_of(quantiles)
    return _Asked(order, alone, summed, exact, extremes, chosen, None if noise is None else Noise(noise))


def question(joint: Rows, asked: _Asked, reveal: str) -> Query:
    """What the parties run for a description."""
    sums, minimum = Sums(joint), joint.schema.minimum
    for party, names in asked.alone.items():
        (own,) = sums.owners(names)
        shape = (len(names), 4 + len(asked.quantiles) + 2 * asked.extremes, 2)
        name = sums.give(party, partial(own_numbers, own, asked.quantiles, asked.extremes, minimum), shape)
        sums.tell(_alone(names), sums.given(name))
    for party, names in asked.summed.items():
        total = sums.add(moments(joint, names))
        if asked.noise:
            total = _sum(total, sums.noise(asked.noise, sensitivities(joint, names)))
        sums.tell(_summed(names), partial(told_moments, total, minimum))
        if joint.hidden:
            sums.tell(_joint_rows(party), partial(_enough_rows, sums.add(presence(names[0])), minimum))
        for name in names if asked.quantiles else ():
            grid = Grid(column_of(joint, name), asked.bins)
            counts = sums.histogram(Side((name,), grid.size, prepare=grid.codes))
            sums.tell(f"quantiles of {name}", partial(_quantile_bins, counts, asked.quantiles, minimum))
        for at, name in enumerate(names if asked.extremes else ()):
            sums.tell(
                f"least and largest value of {name}",
                partial(told_ends, sums.largest(ends(joint, name)), total, at, minimum),
            )
    return sums.query(f"describe {', '.join(asked.order)}", reveal)


def _alone(names: Sequence[str]) -> str:
    return f"numbers of {', '.join(names)}"


def _summed(names: Sequence[str]) -> str:
    return f"counts, sums and sums of squares of {', '.join(names)}"


def _joint_rows(party: str) -> str:
    return f"number of joint rows, from {party}"


def _enough_rows(rows: Total, minimum: int, given: Given) -> torch.Tensor:
    return kept(enough(rows(given), minimum), rows(given))


def _quantile_bins(counts: Total, quantiles: Sequence[Fraction], minimum: int, given: Given) -> torch.Tensor:
    return bins_at(counts(given), quantiles, minimum)


def _sum(first: Total, second: Total) -> Total:
    return lambda given: first(given) + second(given)


def _described(joint: Rows, asked: _Asked, answer: Mapping[str, torch.Tensor]) -> Description:
    """Puts what was revealed together."""
    quantiles = [name_of(float(q)) for q in asked.quantiles]
    names = ["count", "missing", "mean", "std", *quantiles, *(("min", "max") if asked.extremes else ())]
    numbers: dict[str, list[float]] = {}
    for columns in asked.alone.values():
        numbers.update(zip(columns, to_floats(answer[_alone(columns)]).tolist(), strict=True))
    for party, columns in asked.summed.items():
        there = int(answer[_joint_rows(party)]) if joint.hidden else joint.rows
        for name, sums in zip(columns, answer[_summed(columns)].tolist(), strict=True):
            numbers[name] = _of_sums(joint, asked, name, sums, there, answer)
    withheld, undefined = {}, {}
    for column in asked.order:
        few = tuple(name for name, x in zip(names, numbers[column], strict=True) if x == WITHHELD)
        none = tuple(name for name, x in zip(names, numbers[column], strict=True) if math.isnan(x))
        withheld.update({column: few} if few else {})
        undefined.update({column: none} if none else {})
    order = ["count", "missing", "mean", "std", *["min"] * asked.extremes, *quantiles, *["max"] * asked.extremes]
    table = {column: dict(zip(names, numbers[column], strict=True)) for column in asked.order}
    shown = {
        column: {name: math.nan if math.isinf(of[name]) else of[name] for name in order} for column, of in table.items()
    }
    grids = [Grid(column_of(joint, name), asked.bins) for columns in asked.summed.values() for name in columns]
    within = {grid.column.name: grid.within for grid in grids if asked.quantiles}
    told = spent(asked.noise, sum(3 * len(columns) for columns in asked.summed.values())) if asked.noise else None
    return Description(shown, joint.schema.minimum, withheld, undefined, within, told)


def _of_sums(
    joint: Rows, asked: _Asked, name: str, sums: Sequence[int], there: int, answer: Mapping[str, torch.Tensor]
) -> list[float]:
    """The numbers of a column, from sums over rows."""
    column, (count, total, squares) = column_of(joint, name), sums
    if count < joint.schema.minimum:
        return [WITHHELD] * (4 + len(asked.quantiles) + 2 * asked.extremes)
    unit, grid = unit_of(column, joint.rows), Grid(column, asked.bins)
    std = math.sqrt(unit.variance(total, squares, count)) if count > 1 else math.nan
    found = answer[f"quantiles of {name}"].tolist() if asked.quantiles else []
    values = [between(grid, pair, q, count) for pair, q in zip(found, asked.quantiles, strict=True)]
    least_most = end_values(column, answer[f"least and largest value of {name}"].tolist()) if asked.extremes else ()
    return [count, there - count, unit.mean(total, count), std, *values, *least_most]
