"""Positions of splits and folds: every row once, the sizes of scikit-learn, the proportions of classes exact."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import InputError
from securemodel.data import splits
from securemodel.data.splits import Public

model_selection = pytest.importorskip("sklearn.model_selection")


def check_fold(fold: splits.Fold, rows: int) -> None:
    train, test = fold
    assert len(train) and len(test)
    for part in fold:
        assert part.dtype == np.int64 and (np.diff(part) > 0).all()
    assert sorted([*train, *test]) == list(range(rows))


@given(st.integers(2, 300), st.floats(0.01, 0.99), st.integers(0, 2**31))
def test_a_split_is_a_split(rows, fraction, seed):
    if not 0 < round(fraction * rows) < rows:
        with pytest.raises(InputError, match="no rows on one side"):
            splits.split_rows(Public(rows, seed), fraction)
        return
    fold = splits.split_rows(Public(rows, seed), fraction)
    check_fold(fold, rows)
    assert len(fold[0]) == round(fraction * rows)
    again = splits.split_rows(Public(rows, seed), fraction)
    assert all((a == b).all() for a, b in zip(fold, again, strict=True))


def test_positions_stay_what_they_are():
    """All parties find these on every machine and in every version."""
    assert splits.split_rows(Public(10, 7), 0.8)[1].tolist() == WRITTEN[0]
    assert splits.fold_numbers(Public(10, 7), 3).tolist() == WRITTEN[1]


WRITTEN = [[4, 6], [1, 0, 1, 0, 2, 2, 2, 0, 1, 0]]


@given(st.integers(2, 200), st.integers(2, 9), st.integers(0, 100))
def test_folds_have_the_sizes_of_scikit_learn(rows, count, seed):
    if count > rows:
        with pytest.raises(InputError, match="folds of"):
            splits.fold_rows(Public(rows, seed), count)
        return
    folds = splits.fold_rows(Public(rows, seed), count)
    for fold in folds:
        check_fold(fold, rows)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(rows))
    wanted = [len(test) for _, test in model_selection.KFold(count).split(np.zeros((rows, 1)))]
    assert [len(test) for _, test in folds] == wanted


@given(st.lists(st.integers(0, 8), min_size=12, max_size=60), st.integers(0, 50))
def test_groups_stay_together(groups, seed):
    groups = np.array(groups)
    if len(set(groups)) < 3:
        return
    folds = [splits.split_groups(groups, 0.7, seed), *splits.fold_groups(groups, 3, seed)]
    for train, test in folds:
        check_fold((train, test), len(groups))
        assert not set(groups[train]) & set(groups[test])
    assert abs(len(folds[0][0]) - 0.7 * len(groups)) <= np.bincount(groups).max()


def test_group_folds_have_the_sizes_of_scikit_learn():
    draw = np.random.default_rng(0)
    groups = draw.integers(0, 17, 200)
    wanted = [len(test) for _, test in model_selection.GroupKFold(4).split(groups[:, None], groups=groups)]
    assert sorted(len(test) for _, test in splits.fold_groups(groups, 4, 3)) == sorted(wanted)


def test_by_a_public_column_the_first_part_is_before_the_second():
    months = np.array([3, 1, 2, 1, 3, 2, 4, 4, 1, 2])
    train, test = splits.split_by(months, 0.6)
    check_fold((train, test), 10)
    assert months[train].max() < months[test].min() and len(train) == 6
    assert [sorted(set(months[test])) for _, test in splits.fold_by(months)] == [[1], [2], [3], [4]]
    with pytest.raises(InputError, match="one value"):
        splits.split_by(np.ones(5), 0.5)


@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from([0.5, 0.8, 0.9]))
def test_a_stratified_split_has_exact_proportions(zeros, ones, fraction):
    labels = np.array([0] * zeros + [1] * ones)
    train, test = splits.split_stratified(labels, fraction, 20)
    check_fold((train, test), zeros + ones)
    assert (labels[train] == 0).sum() == round(fraction * zeros)
    assert (labels[train] == 1).sum() == round(fraction * ones)


def test_a_stratified_draw_is_nobodys_to_repeat():
    labels = np.arange(200) % 2
    first, second = (splits.split_stratified(labels, 0.5, 20)[0] for _ in range(2))
    assert first.tolist() != second.tolist()


def test_positions_say_nothing_of_a_row():
    """Each row is in the training part equally often, whatever its class: a thousand draws, six standard deviations."""
    labels = np.array([1] * 20 + [0] * 60)
    drawn = sum(np.isin(np.arange(80), splits.split_stratified(labels, 0.75, 20)[0]) for _ in range(1000))
    assert abs(drawn - 750).max() < 6 * np.sqrt(1000 * 0.75 * 0.25)


@given(st.integers(20, 70), st.integers(20, 70), st.integers(2, 5))
def test_stratified_folds_spread_every_class(zeros, ones, count):
    labels = np.array([0] * zeros + [1] * ones)
    numbers = splits.fold_stratified(labels, count, 20)
    for of in (numbers, numbers[labels == 0], numbers[labels == 1]):
        sizes = np.bincount(of, minlength=count)
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("labels", [[0] * 50 + [1] * 19, ["a"] * 19 + ["b"] * 90])
def test_small_classes_are_refused_and_counted_for_their_owner(labels):
    with pytest.raises(InputError, match="has 19; 20 are the least"):
        splits.split_stratified(np.array(labels), 0.8, 20)
    with pytest.raises(InputError, match="too few rows of a class"):
        splits.fold_stratified(np.array(labels), 5, 20)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, True, "0.8", float("nan")])
def test_no_fraction(fraction):
    with pytest.raises(InputError, match="fraction in between"):
        splits.split_rows(Public(10), fraction)


@pytest.mark.parametrize("count", [0, 1, 11, True, 2.0])
def test_no_folds(count):
    with pytest.raises(InputError, match="folds of 10 rows"):
        splits.fold_rows(Public(10), count)
