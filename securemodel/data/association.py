"""Whether two columns go together, and whether a column has changed: chi-square and population stability, one number each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from protocols.errors import InputError, explain
from securemodel.data.answers import answered, check_rows
from securemodel.data.binning import Bins
from securemodel.data.evidence import FRAC_BITS, joint_bins
from securemodel.data.query import Query
from securemodel.data.schema import Schema
from securemodel.data.sides import Given, Own, Rows, Side, Sums, Total, one_hot
from securemodel.shown import Shown
from securemodel.training.datasets import Owned, Way


@dataclass(frozen=True, repr=False)
class ChiSquare(Shown):
    """Pearson's chi-square of two columns, without a correction; `undefined` says why there is none."""

    columns: tuple[str, str]
    statistic: float
    dof: int
    undefined: str = ""

    @property
    def p_value(self) -> float:
        """How likely a larger statistic is where the columns do not go together."""
        half = torch.tensor([self.dof / 2, self.statistic / 2], dtype=torch.float64)
        return math.nan if self.undefined else float(torch.special.gammaincc(half[0], half[1]))

    def __str__(self) -> str:
        if self.undefined:
            return f"chi-square of {self.columns[0]} and {self.columns[1]}: undefined, {self.undefined}"
        said = f"{self.statistic:.4f} with {self.dof} degrees of freedom, p = {self.p_value:.4g}"
        return f"chi-square of {self.columns[0]} and {self.columns[1]}: {said}"


def chi_square(
    joint: Rows, first: str, second: str, bins: int | Sequence[float] = 10, *, reveal: str = "all"
) -> ChiSquare | None:
    """Chi-square of two columns that go into bins as for `woe`, as scipy.stats.chi2_contingency gives it without correction.

    The table stays secret; values that no row has do not count. Returns None where this party is not told. Raises
    InputError.
    """
    if first == second:
        raise InputError(explain(f"chi-square of {first!r} with itself", fix="name two columns"))
    check_rows(joint)
    sides = []
    for name in (first, second):
        chosen = joint_bins(joint, name, bins)
        sides.append(Side((name,), chosen.size, partial(one_hot, chosen.size), chosen.codes, 1))
    sums = Sums(joint)
    table = sums.add(*sides)
    sums.tell("chi-square", partial(_statistic, table, joint.rows))
    sums.tell("degrees of freedom", partial(_dof, table))
    query = sums.query(f"chi-square of {first} and {second}", reveal, frac_bits=FRAC_BITS)
    answer = answered(joint, query)
    if answer is None:
        return None
    statistic, dof = float(answer["chi-square"]), int(answer["degrees of freedom"])
    if dof < 1:
        return ChiSquare((first, second), math.nan, dof, "one of them has one value only")
    return ChiSquare((first, second), max(statistic, 0.0), dof)


def _statistic(total: Total, rows: int, given: Given) -> torch.Tensor:
    """The sum of D^2, with D = (N O - R C) / (N R C)^(1/2) for observed O, and R and C the sums of its row and column.

    Roots are of parts of the public number of rows, so that nothing small is lost.
    """
    table = total(given)
    margins = [table.sum(1, keepdim=True), table.sum(0, keepdim=True), table.sum().reshape(1, 1)]
    apart = (margins[2] * table - margins[0] * margins[1]) / rows / math.sqrt(rows)
    for margin in margins:
        apart = apart * torch.rsqrt(torch.where(margin > 0, margin, rows) / rows)
    return (apart * apart).sum()


def _dof(total: Total, given: Given) -> torch.Tensor:
    table = total(given)
    some = [(table.sum(dim) > 0).to(torch.int64).sum() for dim in (0, 1)]
    return (some[0] - 1) * (some[1] - 1)


def population_stability(
    first: Rows, second: Rows, column: str, bins: int | Sequence[float] = 10, *, reveal: str = "all"
) -> float | None:
    """Population stability index of a column between two tables of one schema, such as those that `split` gives.

    With half a row added to each bin, and p and q the bins' shares of rows in both, it is the sum of (p - q) log(p / q).
    Bins are those of the first table, as for `woe`. Below 0.1 is usually called stable, above 0.25 changed. The
    histograms stay secret. Returns None where this party is not told. Raises InputError.
    """
    if first.schema.digest != second.schema.digest:
        raise InputError(explain("the two tables have different schemas", fix="compare parts of one table"))
    for joint in (first, second):
        check_rows(joint)
    chosen = joint_bins(first, column, bins)
    both = _Both(first, second)
    sums = Sums(both)
    side = Side((column,), 2 * chosen.size, prepare=partial(_codes_of_both, first, chosen))
    sums.tell("population stability", partial(_stability, sums.histogram(side)))
    answer = answered(both, sums.query(f"population stability of {column}", reveal, frac_bits=FRAC_BITS))
    return None if answer is None else float(answer["population stability"])


def _stability(total: Total, given: Given) -> torch.Tensor:
    counts = total(given).reshape(2, -1) + 0.5
    shares, logs = counts / counts.sum(1, keepdim=True), torch.log(counts)
    apart = logs[0] - logs[1]
    return ((shares[0] - shares[1]) * apart).sum()


@dataclass(frozen=True)
class _Both:
    """Two tables of one schema as one: of each owner, first the rows of the one and then of the other."""

    first: Rows
    second: Rows

    @property
    def schema(self) -> Schema:
        return self.first.schema

    @property
    def parties(self) -> tuple[str, ...]:
        return self.first.parties

    @property
    def me(self) -> str | None:
        return self.first.me

    @property
    def hidden(self) -> bool:
        return self.first.hidden

    def ask(self, query: Query) -> dict[str, torch.Tensor | None]:
        return self.first.ask(query)

    @property
    def rows(self) -> int:
        return self.first.rows + self.second.rows

    @property
    def weights(self) -> dict[str, Owned] | None:
        if not self.first.weights or not self.second.weights:
            return None
        return {party: _stacked(of, self.second.weights[party]) for party, of in self.first.weights.items()}

    def parts(self, name: str) -> tuple[Owned, ...]:
        return tuple(map(_stacked, self.first.parts(name), self.second.parts(name)))

    def missing(self, name: str) -> tuple[Owned, ...] | None:
        one, other = self.first.missing(name), self.second.missing(name)
        return tuple(map(_stacked, one, other)) if one and other else None


def _stacked(one: Owned, other: Owned) -> Owned:
    """Rows of one tensor and then of another, in the order of the two tables."""
    shape = (one.shape[0] + other.shape[0], *one.shape[1:])
    way = None
    if one.way and other.way:
        first, second, count = one.way.positions, other.way.positions, one.shape[0]
        at = lambda: torch.cat([first.tensor, torch.where(second.tensor < 0, -1, second.tensor + count)])
        way = Way(Owned(first.party, at, (first.shape[0] + second.shape[0],), torch.int64), one.way.missing)
    return Owned(one.party, lambda: torch.cat([one.tensor, other.tensor]), shape, one.dtype, way)


def _codes_of_both(first: Rows, bins: Bins, own: Own) -> np.ndarray:
    """The bins of an owner's rows, those of the second table after those of the first; edges are of the first."""
    count = next(part.shape[0] for part in first.parts(bins.column.name) if part.party == own.party)
    missing = tuple(None if of is None else _cut(of, count) for of in own.missing)
    present = None if own.present is None else _cut(own.present, count)
    head = Own(own.party, count, tuple(_cut(of, count) for of in own.columns), missing, present)
    codes = replace(bins, edges=tuple(bins.edges_of(head).tolist())).codes(own) if not bins.labeled else bins.codes(own)
    later = np.arange(own.rows).reshape(-1, 1) >= count
    return np.where(codes >= 0, codes + bins.size * later, -1)


def _cut(owned: Owned, count: int) -> Owned:
    return Owned(owned.party, owned.tensor[:count], (count, *owned.shape[1:]), owned.dtype)
