"""Which sums of a table of categories may be told, when their differences are told with them.

A table has a sum for each category, of all rows and of the rows outside of each fold, and the totals of these. Whoever sees it
can subtract: all rows less those outside of a fold are those inside; a total less the categories that are told are the others.
So a category is told in all folds or in none, and what is withheld together has enough rows wherever it is left over
(complementary suppression, as offices of statistics do it).
"""

from __future__ import annotations

import numpy as np


def told_cells(inside: np.ndarray, every: np.ndarray, sizes: np.ndarray, least: int, folds: bool) -> np.ndarray:
    """bool[folds + 1, categories] (bool[1, categories] without folds): what may be told.

    inside: rows of each fold and category, [folds, categories]; every: of all folds. Counts below `least` may be given as 0
    where it is not known which they are: then folds that a category is not in count as too few. sizes: rows of each fold.
    """
    told = every >= least
    _leave_over(told, every, [(sizes.sum(), every)], least)
    if not folds:
        return told[None]
    outside = every - inside
    in_folds = told & ((inside >= least) | (inside == 0) & _known(inside, every)).all(0) & (outside >= least).all(0)
    rests = [(size, row) for size, row in zip(sizes, inside, strict=True)]
    rests += [(sizes.sum() - size, row) for size, row in zip(sizes, outside, strict=True)]
    _leave_over(in_folds, every, rests, least)
    return np.concatenate([told[None], np.repeat(in_folds[None], len(inside), 0)])


def _known(inside: np.ndarray, every: np.ndarray) -> np.ndarray:
    """Of which categories the rows of all folds are given, so that 0 means none."""
    return inside.sum(0) == every


def _leave_over(told: np.ndarray, every: np.ndarray, rests: list[tuple[int, np.ndarray]], least: int) -> None:
    """Takes the smallest categories out of what is told until what is left over has no rows, or enough, in each of these sets."""
    while told.any() and any(0 < size - row[told].sum() < least for size, row in rests):
        told[np.flatnonzero(told)[np.argmin(every[told])]] = False
