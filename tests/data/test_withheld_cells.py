"""No sum of few rows follows from what is told: by linear algebra over all cells of small tables."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from securemodel.data.withheld_cells import told_cells

COUNTS = st.integers(1, 3).flatmap(
    lambda folds: st.integers(1, 4).flatmap(
        lambda size: st.lists(st.lists(st.integers(0, 9), min_size=size, max_size=size), min_size=folds, max_size=folds)
    )
)


def revealed(told: np.ndarray, folds: int, size: int) -> np.ndarray:
    """Each sum that is told as a row over cells [fold, category], the last category being rows of none."""
    rows = []
    for at in range(len(told)):
        here = np.ones((folds, size + 1))
        if at:
            here[at - 1] = 0
        rows.append(here.ravel())  # the total
        for k in np.flatnonzero(told[at]):
            cell = np.zeros((folds, size + 1))
            cell[:, k] = here[:, k]
            rows.append(cell.ravel())
    return np.array(rows)


def follows(rows: np.ndarray, wanted: np.ndarray) -> bool:
    return np.linalg.matrix_rank(np.vstack([rows, wanted])) == np.linalg.matrix_rank(rows)


@given(COUNTS, st.booleans(), st.integers(0, 6))
@settings(max_examples=150, deadline=None)
def test_what_is_left_over_has_enough_rows(inside, in_folds, unknown):
    inside, least = np.array(inside), 5
    folds, size = inside.shape
    in_folds = in_folds and folds > 1
    sizes = inside.sum(1) + unknown + least  # a fold is never small itself
    told = told_cells(inside, inside.sum(0), sizes, least, in_folds)
    assert told.shape == (folds + 1 if in_folds else 1, size)
    rows = revealed(told, folds, size)
    for group in sets(folds, size, in_folds):
        count = (inside * group).sum()
        if 0 < count < least:
            mask = np.concatenate([group, np.zeros((folds, 1))], 1).ravel()
            assert not follows(rows, mask)


def sets(folds: int, size: int, in_folds: bool):
    """Cells of a fold and category, categories of all folds, and pairs of these."""
    each = []
    for k in range(size):
        whole = np.zeros((folds, size))
        whole[:, k] = 1
        each.append(whole)
        if in_folds:
            for f in range(folds):
                one = np.zeros((folds, size))
                one[f, k] = 1
                each += [one, whole - one]
    return [*each, *(a + b for a in each for b in each if (a * b).sum() == 0)]


def test_what_may_be_told_is():
    many = np.array([[20, 30], [25, 20]])
    assert told_cells(many, many.sum(0), many.sum(1), 20, True).all()
    few = np.array([[20, 30, 1], [25, 20, 0]])
    told = told_cells(few, few.sum(0), few.sum(1), 20, True)
    assert told[0].tolist() == [False, True, False]  # the smallest of the others is withheld with it
    assert told_cells(few, few.sum(0), few.sum(1) + 40, 20, True)[0].tolist() == [
        True,
        True,
        False,
    ]  # unknown ones hide it
    masked = np.array([[0, 30], [25, 20]])  # of fold 0 it is not known how many
    assert told_cells(masked, np.array([40, 50]), np.array([60, 70]), 20, True).tolist() == [
        [True, True],
        [False, True],
        [False, True],
    ]
