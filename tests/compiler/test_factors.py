"""Products with public numbers: exact where they can be, to 16 significant bits elsewhere, and within the range."""

from fractions import Fraction

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from running import IDLE_THIRD, TWO, run
from test_functions import Veiled
from torch import nn

import securemodel
from securemodel.compiler.passes.scales import dyadic

UNIT = 2.0**-16
SETTINGS = pytest.mark.parametrize("settings", [TWO, IDLE_THIRD], ids=["two", "three"])


@given(factor=st.floats(-(2.0**30), 2.0**30), frac_bits=st.integers(4, 24))
@example(factor=1 / 384, frac_bits=16)
@example(factor=1 - 2.0**-20, frac_bits=16)
def test_factors_are_rounded_as_stated_and_take_no_more_range_than_one(factor, frac_bits):
    numerator, bits = dyadic(factor, frac_bits)
    assert 0 <= bits <= 2 * frac_bits
    error = abs(Fraction(numerator, 2**bits) - Fraction(factor))
    unit = Fraction(1, 2**frac_bits)
    relative = unit * abs(Fraction(factor)) if abs(factor) < 1 else unit / 2
    assert error <= max(relative, unit**2 / 2)
    if abs(factor) <= 1:
        assert abs(numerator) <= 2**frac_bits


@given(numerator=st.integers(-(2**10), 2**10), bits=st.integers(0, 32))
def test_short_fractions_are_exact(numerator, bits):
    n, b = dyadic(numerator * 2.0**-bits, 16)
    assert n == numerator * Fraction(2) ** (b - bits) and (n % 2 or not b)


def secure(function, x: torch.Tensor, settings=TWO) -> torch.Tensor:
    return run(securemodel.compile(Veiled(function).eval(), x, **settings), x)[0].double()


@SETTINGS
@pytest.mark.parametrize("factor", [1 / 384, -1 / 49, 0.7, 1 / 3000, 1e-4])
def test_a_small_factor_costs_no_relative_accuracy(factor, settings):
    x = torch.arange(-(2**14), 2**14, 64).double()
    made = secure(lambda x: x * factor, x.float(), settings)
    assert ((made - x * factor).abs() <= (x * factor).abs() * 2.0**-16 + UNIT * abs(factor)).all()


def test_products_of_large_values_stay_in_range():
    x = torch.tensor([2.0**29, -(2.0**29), 2.0**20])
    for factor in (1 / 384, 0.99, 1.0, 2.0**-9):
        made = secure(lambda x, factor=factor: x * factor, x)
        torch.testing.assert_close(made, x.double() * factor, rtol=2.0**-16, atol=0)


def test_a_sum_keeps_the_range_of_the_larger_summand():
    """0.001 x has 41 fractional bits. With as many, 2^24 would leave the ring."""
    x = torch.tensor([2.0**24, -(2.0**24), 1.0])
    made = secure(lambda x: x * 0.001 + x, x)
    torch.testing.assert_close(made, x.double() * 1.001, rtol=2.0**-16, atol=2 * UNIT)
    joined = secure(lambda x: torch.cat([x * 0.001, x]), x)
    torch.testing.assert_close(joined, torch.cat([x * 0.001, x]).double(), rtol=2.0**-16, atol=2 * UNIT)


def test_a_sum_with_a_number_keeps_the_range_of_the_number():
    x = torch.tensor([2.0**20, -3.0, 5.0])
    made = secure(lambda x: x * x.new_ones(1) * 2.0**-16 + 2.0**20, x)
    torch.testing.assert_close(made, x.double() * 2.0**-16 + 2.0**20, rtol=2.0**-16, atol=0)
    made = secure(lambda x: x * 2.0**-24 + 100.0, x / 2**8, {**TWO, "frac_bits": 24})
    torch.testing.assert_close(made, x.double() * 2.0**-32 + 100.0, rtol=2.0**-20, atol=0)


@SETTINGS
def test_mean_and_normalization_of_384_numbers(settings):
    x = torch.randn(4, 384, generator=torch.Generator().manual_seed(5)).mul(2**14).round().div(2**14)
    assert (secure(lambda x: x.mean(1), 100 * x, settings) - 100 * x.double().mean(1)).abs().max() < 4 * UNIT
    norm = lambda x: nn.functional.layer_norm(x, (384,))
    assert (secure(norm, x, settings) - norm(x.double())).abs().max() < 2.0**-13


def test_a_factor_after_a_layer_is_its_owners_unless_it_is_small():
    class Layer(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.layer, self.factor = nn.Linear(5, 3), factor

        def forward(self, x):
            return self.layer(x) * self.factor

    truncations = lambda factor: sum(
        node.op == "truncate" for node in securemodel.compile(Layer(factor), torch.ones(2, 5), **TWO).graph.nodes
    )
    assert [truncations(c) for c in (0.3, 0.5, 3.5, 0.01)] == [0, 0, 0, 1]


@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
def test_a_factor_that_is_no_number_is_refused(factor):
    with pytest.raises(securemodel.UnsupportedOperator, match="use a smaller number"):
        securemodel.compile(Veiled(lambda x: x * factor).eval(), torch.ones(2), **TWO)


@SETTINGS
@pytest.mark.parametrize("factor", [2**15, 2**28, 100_003])
def test_whole_numbers_times_a_large_one_stay_whole(settings, factor):
    """They have all of the ring: as real numbers, there would be no room beside their fractional bits."""
    x = torch.tensor([0, 1, -1, 2**20, -(2**20) + 1])

    class Large(nn.Module):
        def forward(self, x, y):
            large = (x + y) * factor
            return large >= factor, torch.maximum(large, -large) > 2**29

    program = securemodel.compile(Large(), (x, x), **{**settings, "inputs": ("a", "b")})
    with securemodel.local(program) as session:
        made = session.run(x, torch.ones_like(x))
    for mine, right in zip(made, Large()(x, torch.ones_like(x)), strict=True):
        assert torch.equal(mine, right)


def test_a_small_factor_and_a_large_one_are_multiplied_first():
    x = torch.randn(40, generator=torch.Generator().manual_seed(1))
    made = secure(lambda x: torch.stack([x * 1e-5 * 1e5, x * 1e-6 / 1e-4, x / 3e5 * -2e6, x * 1e-5]), x)
    right = torch.stack([x, x * 0.01, x / 3e5 * -2e6, x * 1e-5])
    assert (made - right).abs().max() <= 8 * UNIT
