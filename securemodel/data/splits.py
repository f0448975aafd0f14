"""Which rows are for training and which are for testing: public positions, from a public seed or from the owner of a label.

Functions of counts and of public columns, so that every party finds the same positions without a message; only what
follows a secret label is drawn by the label's owner, who publishes the positions. Proportions are then exact, so the fold
of a row is independent of its label: positions tell how many rows each class has, up to rounding, and nothing of a row.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from protocols.errors import InputError, explain
from securemodel.compiler.positions import order

Fold = tuple[np.ndarray, np.ndarray]
"""Positions to train with, and to test with: int64, ascending, of 0..rows-1."""


@dataclass(frozen=True)
class Public:
    """What the positions follow from: all parties know it."""

    rows: int
    seed: int = 0

    def shuffled(self) -> np.ndarray:
        """All rows in an order that is the same on every machine."""
        return np.array(order(self.rows, self.seed, 0, 0))


def check_seed(seed: int) -> None:
    """Raises InputError unless the seed is a whole number."""
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise InputError(explain(f"the seed {seed!r} is no whole number", fix="give one that all parties say, as 7"))


def fraction_of(fraction: float) -> float:
    """A share of rows to train with. Raises InputError unless it lies between 0 and 1."""
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise InputError(
            explain(f"split({fraction!r}) leaves no rows on one side", fix="give a fraction in between, as 0.8")
        )
    return float(fraction)


def split_rows(rows: Public, fraction: float) -> Fold:
    """Two parts of the rows by a public seed, the first with this fraction of them. Raises InputError."""
    cut = round(fraction_of(fraction) * rows.rows)
    return _two(rows.shuffled(), cut, f"split({fraction})")


def fold_rows(rows: Public, count: int) -> list[Fold]:
    """As many folds, each row in the test of exactly one, their sizes alike as in scikit-learn's KFold. Raises InputError."""
    check_count(count, rows.rows)
    return folds_of(fold_numbers(rows, count), count)


def fold_numbers(rows: Public, count: int) -> np.ndarray:
    """int64[rows]: the fold in whose test each row is; the first rows % count folds have a row more."""
    numbers = np.empty(rows.rows, np.int64)
    sizes = np.full(count, rows.rows // count)
    sizes[: rows.rows % count] += 1
    numbers[rows.shuffled()] = np.repeat(np.arange(count), sizes)
    return numbers


def split_groups(groups: np.ndarray, fraction: float, seed: int = 0) -> Fold:
    """Rows of one group stay together: groups in a public order go to the first part until it has its share. Raises InputError.

    The part that is nearest to the fraction is taken, so it differs from it by at most half of the largest group.
    """
    numbers, sizes = _groups(groups)
    _need(len(sizes) > 1, "there is one group, which cannot be split", "split by rows, or by another column")
    taken = order(len(sizes), seed, 0, 0)
    filled = np.cumsum(sizes[taken])
    wanted = fraction_of(fraction) * len(numbers)
    cut = int(np.argmin(np.abs(filled[:-1] - wanted))) + 1
    first = np.isin(numbers, taken[:cut])
    return np.flatnonzero(first), np.flatnonzero(~first)


def fold_groups(groups: np.ndarray, count: int, seed: int = 0) -> list[Fold]:
    """Folds in which rows of one group stay together: the largest group goes to the smallest fold, and so on. Raises InputError.

    Groups of one size go in the order of a public seed. Sizes are as scikit-learn's GroupKFold has them.
    """
    numbers, sizes = _groups(groups)
    check_count(count, len(sizes), "groups")
    shuffled = order(len(sizes), seed, 0, 0)
    filled, fold = np.zeros(count, np.int64), np.empty(len(sizes), np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold[group] = np.argmin(filled)
        filled[fold[group]] += sizes[group]
    return folds_of(fold[numbers], count)


def split_by(values: np.ndarray, fraction: float) -> Fold:
    """Rows of small values first, as months: the first part is before the second in time. Raises InputError.

    Rows of one value stay together, and the cut is the one nearest to the fraction.
    """
    values = np.asarray(values)
    known, sizes = np.unique(values, return_counts=True)
    _need(len(known) > 1, "the public column has one value, which cannot be split", "give a column with several values")
    filled = np.cumsum(sizes)[:-1]
    cut = known[int(np.argmin(np.abs(filled - fraction_of(fraction) * len(values))))]
    return np.flatnonzero(values <= cut), np.flatnonzero(values > cut)


def fold_by(values: np.ndarray) -> list[Fold]:
    """A fold for each value of a public column, tested with the rows of that value. Raises InputError."""
    known, numbers = np.unique(np.asarray(values), return_inverse=True)
    check_count(len(known), len(known), "values")
    return folds_of(numbers.reshape(-1), len(known))


# ---- by a label that its owner alone knows
def split_stratified(labels: np.ndarray, fraction: float, minimum: int) -> Fold:
    """Two parts with the same share of each class, drawn by the owner of the labels. Raises InputError.

    labels: [rows], of the rows that are split. The draw is from the operating system's entropy: nobody can repeat it, so a
    second draw tells no more than the first. A class is cut at the nearest whole row.
    """
    chosen = np.zeros(len(labels), bool)
    for rows in _classes(labels, minimum, 2):
        cut = min(max(round(fraction_of(fraction) * len(rows)), 1), len(rows) - 1)
        chosen[_drawn(rows)[:cut]] = True
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def fold_stratified(labels: np.ndarray, count: int, minimum: int) -> np.ndarray:
    """int64[rows]: the fold of each row, every class spread over all folds alike, drawn by the labels' owner. Raises InputError.

    The rows left over of a class go on with the fold where those of the class before ended, so folds differ by a row at most.
    """
    check_count(count, len(labels))
    numbers, start = np.empty(len(labels), np.int64), 0
    for rows in _classes(labels, minimum, count):
        numbers[_drawn(rows)] = (start + np.arange(len(rows))) % count
        start = (start + len(rows)) % count
    return numbers


def folds_of(numbers: np.ndarray, count: int) -> list[Fold]:
    """The folds out of the number of each row's fold."""
    return [(np.flatnonzero(numbers != fold), np.flatnonzero(numbers == fold)) for fold in range(count)]


def check_count(count: int, rows: int, of: str = "rows") -> None:
    """Raises InputError unless there can be so many folds of so many rows."""
    if isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= rows:
        raise InputError(
            explain(f"no {count!r} folds of {rows} {of}", fix="give a whole number from 2 on, at most one for each")
        )


def _two(shuffled: np.ndarray, cut: int, what: str) -> Fold:
    _need(
        0 < cut < len(shuffled), f"{what} leaves no rows on one side of {len(shuffled)}", "give a fraction in between"
    )
    return np.sort(shuffled[:cut]), np.sort(shuffled[cut:])


def _groups(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, numbers, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    return numbers.reshape(-1), sizes


def _classes(labels: np.ndarray, minimum: int, at_least: int) -> Sequence[np.ndarray]:
    """The rows of each class. Raises InputError where one has fewer than `minimum`; its owner alone is told how many."""
    known, numbers, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    least = max(minimum, at_least)
    small = [
        f"{value!r} has {size}" for value, size in zip(known.tolist(), sizes.tolist(), strict=True) if size < least
    ]
    if small:
        raise InputError(
            explain("too few rows of a class to stratify by it", why=f"{'; '.join(small[:20])}; {least} are the least",
                    fix="split without stratify=, merge classes, or lower `minimum` in the schema where that is allowed")
        )  # fmt: skip
    return [np.flatnonzero(numbers.reshape(-1) == one) for one in range(len(known))]


def _drawn(rows: np.ndarray) -> np.ndarray:
    """Rows in an order that nobody can foresee."""
    words = np.frombuffer(secrets.token_bytes(16 * len(rows)), dtype=[("high", "<u8"), ("low", "<u8")])
    return rows[np.argsort(words, order=("high", "low"), kind="stable")]


def _need(ok: bool, what: str, fix: str) -> None:
    if not ok:
        raise InputError(explain(what, fix=fix))
