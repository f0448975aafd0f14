"""Bins of a column: those of equally many rows, of given edges, of equal width, or one for each value.

Bins of equally many rows are pandas.qcut's: edges by linear interpolation, closed on the right, the first one on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np

from protocols.errors import InputError, explain
from securemodel.data.column import Column
from securemodel.data.sides import Own

MISSING = "missing"
MOST_BINS = 4096


def pandas() -> Any:
    """The package pandas. Raises InputError where it is not installed."""
    try:
        import pandas as pd
    except ImportError as problem:
        what = "tables are read and shown with the package pandas, which is not installed"
        raise InputError(explain(what, fix="pip install 'securemodel[data]'")) from problem
    return pd


def quantile_edges(x: np.ndarray, bins: int) -> np.ndarray:
    """The edges of pandas.qcut(x, bins, duplicates="drop"); at least two where there are values, else none."""
    if not x.size or x.min() == x.max():
        return np.repeat(x[:1], 2)
    return pandas().qcut(x, bins, labels=False, duplicates="drop", retbins=True)[1]


def codes(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The bin of each number, right-closed, the first edge in the first bin; -1 for what is beyond the edges."""
    if len(edges) < 2:
        return np.full(x.shape, -1)
    at = np.searchsorted(edges, x, side="left") - 1
    at = np.where(x == edges[0], 0, at)
    return np.where(at >= len(edges) - 1, -1, at)


def intervals(edges: Sequence[float]) -> tuple[str, ...]:
    """Names of bins: "(1, 2.5]", the first one closed on both sides; edges have as many digits, from six on, as they differ in."""
    for digits in range(6, 18):
        ends = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(ends)) == len(set(edges)):
            break
    return tuple(f"{'(' if at else '['}{low}, {high}]" for at, (low, high) in enumerate(pairwise(ends)))


@dataclass(frozen=True)
class Bins:
    """The bins of a column. `size` is public: at most so many, one for missing values among them.

    edges: public ones, or None where the owner takes those of its own rows. For a category or boolean, a bin for each
    label.
    """

    column: Column
    count: int
    edges: tuple[float, ...] | None = None

    @property
    def labeled(self) -> bool:
        return bool(self.column.labels)

    @property
    def size(self) -> int:
        return self.count + self.column.missing

    def codes(self, own: Own) -> np.ndarray:
        """[rows, 1]: the bin of each row of an owner; -1 for rows that it does not have, or beyond the edges."""
        x, valid = own.values[:, 0], own.valid[:, 0]
        made = x.astype(np.int64) if self.labeled else codes(x, self.edges_of(own))
        absent = np.where(own.there, self.count if self.column.missing else -1, -1)
        return np.where(valid, made, absent).reshape(-1, 1)

    def edges_of(self, own: Own) -> np.ndarray:
        """The edges, for their owner."""
        return quantile_edges(own.column(), self.count) if self.edges is None else np.array(self.edges)

    def names(self, own: Own | None) -> tuple[str, ...]:
        """Names of all bins; those whose edges are their owner's have numbers for others."""
        rest = (MISSING,) if self.column.missing else ()
        if self.labeled:
            return self.column.labels + rest
        known = self.edges if self.edges is not None else None if own is None else self.edges_of(own)
        made = () if known is None else intervals(list(known))
        return made + tuple(f"bin {at + 1}" for at in range(len(made), self.count)) + rest


def edges_of(column: Column, given: Sequence[float]) -> tuple[float, ...]:
    """Edges of bins that somebody gives. Raises InputError."""
    try:
        edges = tuple(float(edge) for edge in given)
    except (TypeError, ValueError):
        edges = ()
    if len(edges) < 2 or not all(map(math.isfinite, edges)) or sorted(set(edges)) != list(edges):
        what = f"the edges {given!r} of bins of {column.name!r} are not two or more finite numbers that grow"
        raise InputError(explain(what, fix="give edges such as [0, 10, 100]"))
    return edges


def bins_of(column: Column, bins: int | Sequence[float]) -> Bins:
    """The bins that are asked for: a number of bins with equally many rows, or edges. Raises InputError."""
    if column.labels:
        return Bins(column, len(column.labels))
    if isinstance(bins, (int, Integral)):
        if not 2 <= bins <= MOST_BINS:
            raise InputError(explain(f"{bins} bins", where=f"bins of {column.name!r}", fix=f"give 2 to {MOST_BINS}"))
        return Bins(column, int(bins))
    edges = edges_of(column, bins)
    if len(edges) > MOST_BINS:
        raise InputError(explain(f"{len(edges) - 1} bins of {column.name!r}", fix=f"give at most {MOST_BINS} edges"))
    return Bins(column, len(edges) - 1, edges)


@dataclass(frozen=True)
class Grid:
    """Public bins that all values of a column are in: one for each whole number if they are few, else of equal width."""

    column: Column
    most: int

    @cached_property
    def size(self) -> int:
        return min(self.most, self._values) if self._values else self.most

    @property
    def _values(self) -> int:
        whole = self.column.kind != "number"
        return int(self.column.high - self.column.low) + 1 if whole else 0

    @property
    def exact(self) -> bool:
        """Whether each value has a bin of its own."""
        return 0 < self._values <= self.most

    @property
    def within(self) -> float:
        """How far a value is at most from the middle of its bin."""
        return 0.0 if self.exact else (self.column.high - self.column.low) / (2 * self.size)

    def codes(self, own: Own) -> np.ndarray:
        """[rows, 1]: the bin of each row of an owner; -1 for rows without a value."""
        x = own.values[:, 0] - self.column.low
        width = 1.0 if self.exact else (self.column.high - self.column.low) / self.size or 1.0
        made = np.clip(np.floor(x / width), 0, self.size - 1).astype(np.int64)
        return np.where(own.valid[:, 0], made, -1).reshape(-1, 1)

    def middle(self, code: int) -> float:
        """The middle of a bin, or the value it is for."""
        if self.exact:
            return self.column.low + code
        return self.column.low + (code + 0.5) * (self.column.high - self.column.low) / self.size

    @property
    def names(self) -> tuple[str, ...]:
        """The whole numbers that bins are for, where each has its own."""
        return tuple(str(int(self.column.low) + code) for code in range(self.size))

    @property
    def edges(self) -> np.ndarray:
        """The edges of bins of equal width."""
        return np.linspace(self.column.low, self.column.high, self.size + 1)
