"""Numbers as whole numbers: exactly back, edges of float64, and units that leave sums their room."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from securemodel.data.whole import ROOM_BITS, WITHHELD, from_floats, in_two, to_floats, together, unit_of
from securemodel.errors import InputError
from tests.data.stand_in import boolean, integer, number

EDGES = [0.0, 1.0, -1.0, 0.1, 5e-324, 2.2e-308, 1.7976931348623157e308, -1e-310, 2.0**53 + 2]


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(EDGES), min_size=1, max_size=8))
def test_floats_come_back_exactly(numbers):
    whole = from_floats(np.array(numbers))
    assert whole.dtype == torch.int64 and whole.abs().max() <= 2**53
    assert to_floats(whole).tolist() == numbers


def test_what_is_no_number_stays_apart():
    found = to_floats(from_floats(np.array([math.nan, WITHHELD, 1.0])))
    assert math.isnan(found[0]) and found[1] == WITHHELD and found[2] == 1.0
    assert set(from_floats(np.array([math.nan, WITHHELD]))[:, 0].tolist()) == {0}  # nothing of them is told


@given(
    st.lists(st.integers(-(2**62), 2**62) | st.sampled_from([0, 1, -1, 2**16 - 1, 2**28, -(2**28), 2**62]), min_size=1)
)
def test_two_parts_are_one_number(numbers):
    total = torch.tensor(numbers)
    parts = in_two(total)
    assert parts[..., 1].min() >= 0 and parts[..., 1].max() < 2**28
    assert torch.equal(together(parts), total)


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9), st.integers(1, 10**7), st.booleans())
def test_sums_of_squares_have_room(low, size, rows, whole):
    column = (
        integer("x", low=math.floor(low), high=math.floor(low) + math.floor(size))
        if whole
        else number("x", low=low, high=low + size)
    )
    unit = unit_of(column, rows)
    ends = unit.whole(np.array([column.low, column.high]))
    assert np.abs(ends).max() <= unit.most
    assert rows * unit.most**2 <= 2**ROOM_BITS
    assert (unit.factor == 1.0 and unit.origin == round(unit.origin)) or unit.most >= 2**16


def test_whole_numbers_stay_what_they_are():
    unit = unit_of(integer("x", low=-5, high=1000), 10**6)
    x = np.array([-5.0, 0.0, 7.0, 1000.0])
    total, squares = (int(unit.whole(x).sum()), int((unit.whole(x) ** 2).sum()))
    assert unit.mean(total, 4) == x.mean()
    assert unit.variance(total, squares, 4) == x.var(ddof=1)
    assert unit_of(boolean("x"), 10).most == 1


def test_bounds_that_are_none():
    with pytest.raises(InputError, match="'x' has no bounds"):
        unit_of(number("x", low=-math.inf), 10)
