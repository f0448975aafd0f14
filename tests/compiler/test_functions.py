"""Smooth functions, functions of positive numbers and normalization against torch, within their stated errors.

The arguments cover the stated domains, edges included, on the grid of the ring, so that encoding rounds nothing.
A parameter of the other party is added to each, so that nobody computes anything in the clear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from running import IDLE_THIRD, TWO, run, splined
from torch import nn

import securemodel
from securemodel.compiler.approximations import SMOOTH, pieces

UNIT = 2.0**-16
NOISE = 2 * UNIT  # of fixed point: a truncation of the result and a rounding of float32
LOWEST, HIGHEST = UNIT, 2.0**30
SETTINGS = pytest.mark.parametrize("settings", [TWO, IDLE_THIRD], ids=["two", "three"])


class Veiled(nn.Module):
    """A function of an input plus a zero that belongs to the other party."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x + self.zero)


def on_grid(x: torch.Tensor) -> torch.Tensor:
    return ((x.double() / UNIT).round() * UNIT).float()


def both(function: Callable, x: torch.Tensor, settings) -> tuple[torch.Tensor, torch.Tensor]:
    """What the parties get, and what is right."""
    program = securemodel.compile(Veiled(function).eval(), x, **settings)
    made, right = run(program, x)[0].double(), function(x.double())
    assert made.shape == right.shape
    return made, right


def check(function: Callable, x: torch.Tensor, settings, absolute: float, relative: float = 0.0) -> None:
    """AssertionError unless |error| <= max(absolute, relative |right|) everywhere."""
    made, right = both(function, x, settings)
    excess = (made - right).abs() - (right.abs() * relative).clamp(min=absolute)
    worst = int(excess.argmax())
    at = (x.flatten()[worst], made.flatten()[worst], right.flatten()[worst]) if x.shape == made.shape else worst
    assert excess.max() <= 0, f"beyond the bound by {excess.max():.2e} at {at}"


def line(low: float, high: float, settings, *edges: float) -> torch.Tensor:
    """Arguments on an interval: its ends, numbers in between, and the units around each of `edges`."""
    near = [e + k * UNIT for e in edges for k in (-2, -1, 0, 1, 2)]
    between = torch.linspace(low, high, 3001 if settings is TWO else 401)
    return on_grid(torch.cat([between, torch.tensor([v for v in near if low <= v <= high])]))


# --- splines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "fast"])
@pytest.mark.parametrize("name", sorted(SMOOTH))
def test_the_stated_error_holds_and_is_tight(name, exact):
    smooth = SMOOTH[name]
    low = smooth.low if name.endswith("1_16") or name == "root_of_exp" else -40.0
    end = smooth.high + (0.0 if exact else smooth.beyond)
    high = end if smooth.high in (0.0, 16.0) or name == "root_of_exp" else 40.0
    x = torch.linspace(low, high, 200_001, dtype=torch.float64)
    right = smooth.function(x)
    scale = right.clamp(min=2.0**-5) if name == "root_of_exp" else torch.ones_like(x)
    line = smooth.slope * (x - smooth.high).clamp(min=0)
    made = splined(smooth, x.clamp(smooth.low, end), exact)
    worst = max(float(((value + line - right).abs() / scale).max()) for value in made)
    assert smooth.max_error / 2.1 < worst <= smooth.max_error


@pytest.mark.parametrize("name", sorted(name for name, smooth in SMOOTH.items() if smooth.wide))
def test_what_holds_outside_of_a_wide_domain_holds_a_little_inside(name):
    smooth = SMOOTH[name]
    inside = torch.linspace(0, 2.0**-smooth.grid_bits, 1001, dtype=torch.float64)
    sides = [(smooth.low + inside, lambda x: smooth.below)]
    if smooth.above is not None:
        sides.append((smooth.high - inside, lambda x: smooth.above + smooth.slope * x))
    assert inside[-1] == 8 * 2.0**-smooth.step_bits
    for x, outside in sides:
        assert (smooth.function(x) - outside(x)).abs().max() <= smooth.max_error / 2


FUNCTIONS = {
    "sigmoid": (torch.sigmoid, SMOOTH["sigmoid"].max_error + NOISE),
    "tanh": (torch.tanh, SMOOTH["tanh"].max_error + NOISE),
    "erf": (torch.erf, SMOOTH["erf"].max_error + NOISE),
    "gelu": (F.gelu, SMOOTH["gelu"].max_error + NOISE),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), SMOOTH["gelu_tanh"].max_error + NOISE),
    "silu": (F.silu, SMOOTH["silu"].max_error + NOISE),
    "mish": (F.mish, SMOOTH["mish"].max_error + NOISE),
    "softplus": (F.softplus, SMOOTH["softplus"].max_error + NOISE),
    "softplus_beta": (lambda x: F.softplus(x, beta=2), SMOOTH["softplus"].max_error + NOISE),
    "elu": (F.elu, SMOOTH["expm1_below_zero"].max_error + NOISE),
    "celu": (lambda x: F.celu(x, 0.5), SMOOTH["expm1_below_zero"].max_error + NOISE),
    "selu": (F.selu, 40 * UNIT / 2 + 4 * UNIT),  # the factor 1.0507 is rounded to 16 bits
    "hardsigmoid": (F.hardsigmoid, 6 * UNIT / 2 + NOISE),  # as is the factor 1/6
    "hardswish": (F.hardswish, 2.0**-12),
}


@SETTINGS
@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation(name, settings):
    function, error = FUNCTIONS[name]
    assert error < 2.0**-10
    x = line(-40, 40, settings, -40, -15.75, -7.875, -3, -1 / 16, 0, 1 / 16, 3, 7.875, 15.75, 40)
    check(function, x, settings, error)


def test_a_wrong_table_is_noticed(monkeypatch):
    made = pieces(SMOOTH["tanh"], 16, True)
    moved = replace(made, rows=tuple(tuple(v + (1 << made.frac - 12) for v in row) for row in made.rows))
    monkeypatch.setattr("securemodel.compiler.lower.smooth.pieces", lambda *arguments: moved)
    with pytest.raises(AssertionError, match="beyond the bound"):
        test_activation("tanh", TWO)


@SETTINGS
def test_exponentials(settings):
    x = line(-30, 8, settings, -30, -16, 0, 8)
    check(torch.exp, x, settings, 2.0**-15, 2.0**-10)
    made, right = both(torch.expm1, x, settings)
    assert ((made - right).abs() <= (right + 1).mul(2.0**-10).clamp(min=2.0**-15)).all()


# --- positive numbers -------------------------------------------------------------------------------------------


def positive(settings) -> torch.Tensor:
    """From a unit to just below 2^30, evenly in the logarithm, and around all powers of two."""
    powers = torch.exp2(torch.arange(-16, 31).double())
    near = torch.cat([powers, powers - UNIT, powers + UNIT, (powers - UNIT).clamp(max=HIGHEST / 2)])
    smooth = torch.exp2(torch.linspace(-16, 29.999, 3001 if settings is TWO else 301).double())
    x = on_grid(torch.cat([smooth, near]))
    return x[(x >= LOWEST) & (x < HIGHEST)]


@SETTINGS
@pytest.mark.parametrize("name", ["reciprocal", "rsqrt", "sqrt"])
def test_inverses_and_roots(name, settings):
    check(getattr(torch, name), positive(settings), settings, 2.0**-15, 2.0**-10)


def test_reciprocals_of_negative_numbers():
    check(torch.reciprocal, -positive(TWO), TWO, 2.0**-15, 2.0**-10)


def test_root_of_zero():
    made, _ = both(torch.sqrt, torch.zeros(64), TWO)
    assert made.abs().max() <= 64 * UNIT


@SETTINGS
def test_logarithms(settings):
    x = positive(settings)
    check(torch.log, x, settings, 2.0**-11)
    check(torch.log1p, x[x < HIGHEST - 1], settings, 2.0**-11)
    check(torch.log2, x, settings, 2.0**-10)


@SETTINGS
def test_signs_and_extremes_are_exact(settings):
    x = line(-100, 100, settings, 0)
    check(torch.sign, x, settings, 0.0)
    check(torch.abs, x, settings, UNIT / 2)
    check(lambda x: torch.maximum(x, -x), x, settings, UNIT / 2)
    check(lambda x: torch.minimum(x, x.flip(0)), x, settings, UNIT / 2)


# --- softmax and normalization ----------------------------------------------------------------------------------


def rows(*shape: int, scale: float = 3.0) -> torch.Tensor:
    return on_grid(torch.from_numpy(np.random.default_rng(7).standard_normal(shape)) * scale)


@SETTINGS
@pytest.mark.parametrize("scale", [0.0, 2.0, 12.0])
def test_softmax_of_many_classes(scale, settings):
    x = rows(2, 1024, scale=scale)
    made, right = both(lambda x: torch.softmax(x, -1), x, settings)
    assert (made - right).abs().max() <= 2.0**-9
    assert (made.sum(-1) - 1).abs().max() <= 2.0**-9
    assert made.min() >= -UNIT


ALONG = {
    "softmax": (lambda x: torch.softmax(x, 0), 2.0**-10),
    "log_softmax": (lambda x: torch.log_softmax(x, -1), 2.0**-10),
    "logsumexp": (lambda x: torch.logsumexp(x, 1), 2.0**-10),
    "logsumexp_keepdim": (lambda x: torch.logsumexp(x, 0, keepdim=True), 2.0**-10),
    "layer_norm": (lambda x: F.layer_norm(x, x.shape[1:]), 2.0**-10),
    "var": (lambda x: x.var(1), 2.0**-9),  # of about 9: relative 2^-12
    "var_without_correction": (lambda x: torch.var(x, 0, correction=0, keepdim=True), 2.0**-9),
    "amax": (lambda x: x.amax(1), UNIT / 2),
    "amax_of_all": (lambda x: x.amax((0, 1), keepdim=True), UNIT / 2),
}


@SETTINGS
@pytest.mark.parametrize("name", ALONG)
def test_along_axes(name, settings):
    function, error = ALONG[name]
    check(function, rows(12, 65), settings, error)


@SETTINGS
@pytest.mark.parametrize("deviation", [0.0, 2.0**-10, 2.0**-6, 1.0, 2.0**5, 2.0**6.9])
def test_layer_norm_of_any_deviation(deviation, settings):
    x = on_grid(rows(12, 65) * deviation / 3)
    largest = 2.0**-10 + 4 * UNIT * (deviation + 1 / max(deviation, 1e-5**0.5))
    check(lambda x: F.layer_norm(x, (65,)), x, settings, largest)


@pytest.mark.parametrize("count", [8, 66])
@pytest.mark.parametrize("rounding", ["exact", "fast"])
def test_layer_norm_of_rows_of_few_units(rounding, count):
    """Numbers of one magnitude, whose sum is zero, with an eps that hides nothing: sums of squares far below 2^-16, too."""
    sizes = 2.0 ** -torch.arange(15)
    x = sizes[:, None] * torch.tensor([1.0, -1.0]).repeat(count // 2)
    norm = Veiled(lambda x: F.layer_norm(x, (count,), eps=1e-12))
    made = run(securemodel.compile(norm, x, rounding=rounding, **TWO), x)[0]
    assert ((made - x.sign()).abs() <= (2.0**-10 + 3 * UNIT / sizes)[:, None]).all()


def test_layer_norm_with_weights():
    generator = torch.Generator().manual_seed(3)
    norm = nn.LayerNorm(65)
    with torch.no_grad():
        norm.weight.copy_(on_grid(torch.randn(65, generator=generator)))
        norm.bias.copy_(on_grid(torch.randn(65, generator=generator)))
    x = rows(12, 65)
    made = run(securemodel.compile(nn.Sequential(Veiled(lambda x: x), norm).eval(), x, **TWO), x)[0]
    assert (made - norm(x)).abs().max() <= 2.0**-10 * norm.weight.abs().max()  # the weights scale the error
