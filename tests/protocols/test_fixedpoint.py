"""Reals in the ring and back: rounding, limits, and errors that tell no values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import InputError
from protocols.fixedpoint import decode, encode

LIMIT = 2.0**30


@settings(deadline=None, max_examples=100)
@given(st.floats(-LIMIT, LIMIT), st.integers(0, 24))
def test_encode_rounds_to_the_nearest(value, frac_bits):
    x = torch.tensor([value], dtype=torch.float64)
    made = int(encode(x, frac_bits, LIMIT, "x"))
    assert abs(made - value * 2**frac_bits) <= 0.5
    assert made == round(value * 2**frac_bits), "ties go to the even neighbor"


@settings(deadline=None, max_examples=100)
@given(st.integers(-(1 << 23), 1 << 23), st.integers(0, 24))
def test_what_fits_comes_back_unchanged(ring, frac_bits):
    x = decode(torch.tensor([ring]), frac_bits)
    assert x.dtype == torch.float32 and x.item() == ring / 2**frac_bits
    assert int(encode(x, frac_bits, 2.0**40, "x")) == ring


def test_wide_values_are_decoded_without_float32_on_the_way():
    ring = (1 << 40) + (1 << 20)
    assert decode(torch.tensor([ring]), 16).item() == ring / 2**16


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.bool]
)
def test_every_type_of_numbers_can_be_encoded(dtype):
    x = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    made = encode(x, 16, LIMIT, "x")
    assert made.dtype == torch.int64 and made.shape == x.shape
    assert torch.equal(made, torch.tensor([[0, 1 << 16], [1 << 16, 0]]))


def test_no_elements_and_no_axes():
    assert encode(torch.empty(0, 3), 16, LIMIT, "x").shape == (0, 3)
    assert encode(torch.tensor(1.5), 1, LIMIT, "x").item() == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), LIMIT * 1.001, -LIMIT * 1.001])
def test_what_has_no_place_in_the_ring_is_refused(bad):
    with pytest.raises(InputError, match="weight 'w'.*16 fractional bits.*rescale"):
        encode(torch.tensor([0.0, bad]), 16, LIMIT, "weight 'w'")


@pytest.mark.parametrize("edge", [LIMIT, -LIMIT])
def test_the_limit_itself_is_legal(edge):
    assert encode(torch.tensor([edge]), 16, LIMIT, "x").item() == int(edge) << 16


def test_errors_do_not_tell_the_value():
    with pytest.raises(InputError) as caught:
        encode(torch.tensor([7654321.0]), 16, 100.0, "x")
    assert "7654321" not in str(caught.value) and "7.65432" not in str(caught.value)
