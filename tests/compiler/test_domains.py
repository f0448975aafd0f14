"""Rounding, powers, trigonometry and what else has a domain, against torch over the whole of it; and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from running import IDLE_THIRD, TWO, check_agrees, run, splined
from test_functions import HIGHEST, LOWEST, NOISE, SETTINGS, UNIT, check, line, on_grid, positive
from torch import nn

import securemodel
from securemodel.compiler.lower import trig
from securemodel.compiler.lower.powers import _fit
from securemodel.errors import UnsupportedOperator

# --- rounding: exact ---------------------------------------------------------------------------------------------


def whole_and_half(settings) -> torch.Tensor:
    """Numbers in between, and halves up to 40 with the units around them; large ones too."""
    halves = torch.arange(-80, 81).repeat_interleave(5) / 2 + torch.tensor([-2, -1, 0, 1, 2]).repeat(161) * UNIT
    large = torch.tensor([30000.5, -30000.5, 1e6 + 0.5, -1e6 - 0.5, 2.0**30, -(2.0**30)])
    return torch.cat([line(-200, 200, settings), on_grid(halves), large])


@SETTINGS
@pytest.mark.parametrize("name", ["floor", "ceil", "trunc", "frac", "round"])
def test_rounding_is_exact(name, settings):
    check(getattr(torch, name), whole_and_half(settings), settings, 0.0)


@pytest.mark.parametrize("frac_bits", [8, 12, 20])
def test_rounding_is_exact_at_other_precisions(frac_bits):
    x = torch.tensor([-2.0, -1.5, -0.5, 0.0, 0.5, 1.0, 1.5, 2.5, 3.0]).repeat(20)
    shifted = torch.cat([x, x + 2.0**-frac_bits, x - 2.0**-frac_bits])
    functions = (torch.floor, torch.ceil, torch.trunc, torch.round, lambda x: x % 3, lambda x: x // 3)
    check_agrees(lambda x: [f(x) for f in functions], [shifted], tolerance=0.0, frac_bits=frac_bits)


def multiples(divisor: float, settings) -> torch.Tensor:
    """Numbers below 2^15: evenly spaced, and around multiples of a divisor."""
    near = torch.arange(-30, 31) * divisor
    spread = [line(-200, 200, settings), line(-32767, 32767, settings)]
    return torch.cat([*spread, on_grid(torch.cat([near, near + UNIT, near - UNIT]).clamp(-32767, 32767))])


@SETTINGS
@pytest.mark.parametrize("divisor", [2 * UNIT, 2.0**-10, 0.5, 0.75, 1, 3, 7, 1000.25, 1024, 16383, 16384])
def test_division_with_remainder_is_exact(divisor, settings):
    x = multiples(divisor, settings)
    if divisor < 2**-10:
        x = x.clamp(-100, 100)  # quotients up to 2^24 are whole numbers of float32
    check(lambda x: x // divisor, x, settings, 0.0)
    check(lambda x: torch.div(x, -divisor, rounding_mode="trunc"), x, settings, 0.0)
    rounding = divisor * 2.0**-24  # of float32, to which results are converted
    check(lambda x: x % -divisor, x, settings, rounding)
    check(lambda x: torch.fmod(x, divisor), x, settings, rounding)


@SETTINGS
def test_equality_is_exact(settings):
    x = line(-3, 3, settings, 0, 1, -2)
    check(lambda x: (x == 1).to(x.dtype) + 2 * (x != -2).to(x.dtype), x, settings, 0.0)
    check(lambda x: (x == x.round()).to(x.dtype), x, settings, 0.0)


def test_any_and_all_count_every_element():
    x = torch.zeros(3, 257)
    x[1, 256], x[2] = 1.0, 1.0
    check_agrees(lambda x: ((x > 0.5).any(1), (x > 0.5).all(1), (x < 0.5).all(1)), [x], tolerance=0.0)


# --- splines of their own ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", [trig.SINE, trig.COSINE, trig.ARC_TANGENT], ids=lambda fit: fit.name)
def test_the_stated_error_holds_and_is_tight(fit):
    assert 0.4 * fit.max_error < spline_error(fit) <= fit.max_error


@pytest.mark.parametrize("exponent", [-0.999, -0.75, -0.5, -0.1])
def test_powers_between_reciprocal_and_root_fit(exponent):
    fit = _fit(exponent)
    assert spline_error(fit) <= fit.max_error


def spline_error(fit) -> float:
    """The largest error in exact arithmetic, whichever of its two pieces an argument gets."""
    x = torch.linspace(fit.low, fit.high, 100_001, dtype=torch.float64)
    made = [value for exact in (True, False) for value in splined(fit, x, exact)]
    return max(float((value - fit.function(x)).abs().max()) for value in made)


# --- functions ---------------------------------------------------------------------------------------------------

EXPONENTS = [0.05, 0.25, 1 / 3, 0.5, 0.55, 0.75, 0.95, 1.5, 2.5, 3, -0.25, -0.5, -0.75, -1, -1.3, -1.5, -2, -3]


@SETTINGS
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_power(exponent, settings):
    x = positive(settings)
    size = x.double() ** exponent
    x = x[(size < HIGHEST) & (size >= LOWEST if exponent < 0 else size > 0)]
    check(lambda x: x**exponent, x, settings, 2.0**-15, 2.0**-10)


def test_powers_of_zero_and_of_negative_numbers():
    check(lambda x: x**0.75 + x**1.5 + x**2 + x**0.25, torch.zeros(16), TWO, 2.0**-11)
    check(lambda x: x**-3, -line(0.0625, 8, TWO), TWO, 2.0**-15, 2.0**-10)
    check(lambda x: x**0, line(-3, 3, TWO, 0), TWO, 0.0)


@SETTINGS
def test_powers_of_numbers(settings):
    check(torch.exp2, line(-40, 11.5, settings, -23, 0, 11.5), settings, 2.0**-15, 2.0**-10)
    check(lambda x: 0.5**x, line(-11.5, 40, settings), settings, 2.0**-15, 2.0**-10)
    check(lambda x: 10.0**x, line(-15, 3.47, settings, 0), settings, 2.0**-15, 2.0**-10)


@SETTINGS
def test_hyperbolic_functions(settings):
    x = line(-8, 8, settings, -8, 0, 8)
    check(torch.sinh, x, settings, 2.0**-13, 2.0**-10)
    check(torch.cosh, x, settings, 2.0**-13, 2.0**-10)


@SETTINGS
def test_logarithmic_functions(settings):
    check(torch.log10, positive(settings), settings, 2.0**-11)
    check(torch.logit, line(2.0**-10, 1 - 2.0**-10, settings, 2.0**-10, 0.5, 1 - 2.0**-10), settings, 2.0**-11)


@SETTINGS
def test_what_follows_from_erf_and_softplus(settings):
    x = line(-40, 40, settings, -40, -15.75, -7.875, 0, 7.875, 15.75, 40)
    check(torch.erfc, x, settings, 2.0**-15 + NOISE)
    check(F.logsigmoid, x, settings, 2.0**-16 + NOISE)
    check(lambda x: torch.logaddexp(x, x.flip(0) / 2), x, settings, 2.0**-16 + 2 * NOISE)


def turns(settings, most: float) -> torch.Tensor:
    """Up to `most`, with the units around quarters of a turn."""
    return torch.cat([line(-20, 20, settings, *[k * math.pi / 2 for k in range(-8, 9)]), line(-most, most, settings)])


@SETTINGS
@pytest.mark.parametrize("name", ["sin", "cos"])
def test_sine_and_cosine(name, settings):
    check(getattr(torch, name), turns(settings, 2.0**14), settings, 2.0**-14)


@SETTINGS
def test_arc_tangent(settings):
    x = torch.cat([line(-5, 5, settings, -1, 0, 1), line(1 - HIGHEST, HIGHEST - 1, settings)])
    check(torch.atan, x, settings, 2.0**-12)


@SETTINGS
def test_norms(settings):
    x = on_grid(torch.randn(40, 16, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, 1, 40)[:, None])
    for p, scale in ((2, 1), (1, 1), (3, 0.5), (math.inf, 1)):
        check(lambda x, p=p: torch.linalg.vector_norm(x, p, dim=1), x[8:] * scale, settings, 2.0**-14, 2.0**-10)
    check(lambda x: F.rms_norm(x, (16,)), x[8:], settings, 2.0**-9)
    check(lambda x: F.cosine_similarity(x, x.flip(0)), x, settings, 2.0**-9)


@pytest.mark.parametrize("settings", [TWO, IDLE_THIRD], ids=["two", "three"])
def test_distances_of_equal_points_are_zero(settings):
    x = on_grid(torch.randn(12, 8, generator=torch.Generator().manual_seed(2)))
    check(lambda x: torch.cdist(x, x).diagonal(), x, settings, 2.0**-11)
    check(lambda x: torch.cdist(x, x), x, settings, 2.0**-11, 2.0**-10)


# --- what is refused ---------------------------------------------------------------------------------------------


class Buffered(nn.Module):
    """Reads at positions that its owner alone knows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.tensor([1, 0]))
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.weight)[:, self.places]


REFUSED = {
    "bitwise operations": lambda x, w: (x * w).argmax(1) & torch.tensor(1),
    "the power 65": lambda x, w: (x * w) ** 65,
    "powers of -2": lambda x, w: (-2.0) ** (x * w),
    "mask picks depends on values": lambda x, w: (x * w)[x * w > 0].sum(),
    "by 0.0": lambda x, w: (x * w) % 1e-9,
    "a norm of order -1": lambda x, w: torch.linalg.vector_norm(x * w, -1, dim=1),
}


class OfWeight(nn.Module):
    """A function of an input and a weight."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, self.weight)


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_is_refused(reason):
    with pytest.raises(UnsupportedOperator) as caught:
        securemodel.compile(OfWeight(REFUSED[reason]), torch.ones(2, 4), **TWO)
    assert reason in str(caught.value)


def test_positions_of_a_buffer_are_secret_ones():
    model, x = Buffered(), torch.randn(2, 4)
    made = run(securemodel.compile(model, x, **TWO), x)[0]
    assert (made - model(x)).abs().max() < 2.0**-12
