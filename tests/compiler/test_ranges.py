"""Functions of positive numbers and norms are right wherever the format holds the answer, as people write them.

Each is computed in fixed point in the clear, which is what the parties get, bit for bit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from running import TWO
from test_functions import UNIT, on_grid
from torch import nn

import securemodel
from securemodel.errors import SmallWeightsWarning
from securemodel.inspect.fixed import fixed_point

RELATIVE = 2.0**-10
HALF = UNIT / 2


class AfterLayer(nn.Module):
    """A function of what a linear layer of one party makes of the other's numbers: of products, with all their digits."""

    def __init__(self, function: Callable, size: int) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Linear(size, size, bias=False)
        nn.init.eye_(self.layer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.layer(x))


class AfterSum(nn.Module):
    """The same behind a sum, which has the digits of its operands only."""

    def __init__(self, function: Callable, size: int) -> None:
        super().__init__()
        self.function, self.zero = function, nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x + self.zero)


def made_and_right(function: Callable, x: torch.Tensor, model=AfterLayer, **settings):
    """(the result in fixed point, the right one) for x on the grid of the ring."""
    x = on_grid(x)
    program = securemodel.compile(model(function, x.shape[-1]).eval(), x, **TWO, **settings)
    return fixed_point(program, x)[0].double(), function(x.double())


def check(function: Callable, x: torch.Tensor, model=AfterLayer, relative=RELATIVE, absolute=HALF, **settings) -> None:
    made, right = made_and_right(function, x, model, **settings)
    excess = (made - right).abs() - (relative * right.abs()).clamp(min=absolute)
    worst = int(excess.argmax())
    assert excess.max() <= 0, f"{made.flatten()[worst]} for {right.flatten()[worst]}"


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# ---- one argument, over all that the format has
def spread(low: int, high: int) -> torch.Tensor:
    """Numbers from 2^low to just below 2^high, and the powers of two with their neighbors."""
    powers = torch.exp2(torch.arange(low, high).double())
    near = torch.cat([powers, (powers - UNIT).clamp(min=2.0**low), powers + UNIT])
    return torch.cat([near, torch.exp2(torch.linspace(low, high - 2**-10, 1000).double())])[None]


@pytest.mark.parametrize("rounding", ["exact", "fast"])
@pytest.mark.parametrize("name", ["reciprocal", "rsqrt", "sqrt"])
def test_inverses_and_roots_of_all_positive_numbers(name, rounding):
    check(getattr(torch, name), spread(-16, 30), AfterSum, rounding=rounding)


@pytest.mark.parametrize("rounding", ["exact", "fast"])
def test_logarithms_of_all_positive_numbers(rounding):
    check(torch.log, spread(-16, 30), AfterSum, absolute=2.0**-12, rounding=rounding)


SMALLEST = torch.exp2(torch.arange(-15, 15, 0.25))[None]
"""Their squares go from the smallest product to the format's end."""


@pytest.mark.parametrize("name", ["reciprocal", "rsqrt", "sqrt", "log"])
def test_functions_of_products_down_to_the_smallest(name):
    check(lambda x: getattr(torch, name)(x.square()), SMALLEST, absolute=2.0**-12 if name == "log" else HALF)


@pytest.mark.parametrize("size", [1, 9])
def test_lengths_of_all_sizes_and_of_zero(size):
    x = torch.cat([SMALLEST[0, :, None].expand(-1, size) / math.sqrt(size), torch.zeros(1, size)])
    check(lambda x: x.norm(dim=-1), x)


def test_exponentials_up_to_the_end_of_the_format():
    x = torch.linspace(-20, 30 * math.log(2) - 2**-10, 2001)[None]
    check(torch.exp, x, AfterSum, absolute=2 * UNIT)
    check(torch.expm1, x, AfterSum, absolute=2.0**-12)
    check(torch.sinh, x, AfterSum, absolute=8 * UNIT)
    check(torch.cosh, -x.clamp(min=-10), AfterSum, absolute=8 * UNIT)


def test_quotients_of_numbers_of_all_sizes():
    exponents = torch.arange(-15, 30, 3).double()
    x, y = (v.flatten() for v in torch.meshgrid(torch.exp2(exponents) * 1.3, torch.exp2(exponents), indexing="ij"))
    y = on_grid(y * 1.7)
    keep = ((x / y).log2() < 29.5) & (y < 2.0**30) & (x < 2.0**29)
    pairs = torch.stack([x[keep], -y[keep]])
    check(lambda v: v[0] / v[1], pairs, AfterSum, absolute=UNIT)
    check(lambda v: v[0, ::7, None] / v[1, None, ::7].clamp(max=-8), pairs, AfterSum, absolute=UNIT)


# ---- norms as they are written
def rms(x, eps=1e-6):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def rms_by_power(x, eps=1e-6):
    return x * torch.pow(x.pow(2).mean(-1, keepdim=True) + eps, -0.5)


def rms_by_root(x, eps=1e-6):
    return x / torch.sqrt(torch.mean(x * x, -1, keepdim=True) + eps)


def layer_norm(x, eps=1e-12):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt((x - mean).pow(2).mean(-1, keepdim=True) + eps)


def layer_norm_by_variance(x, eps=1e-12):
    return (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + eps)


def by_deviation(x, eps=1e-6):
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + eps)


WRITTEN = {
    "rms_norm": lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-6),
    "rms": rms,
    "rms_by_power": rms_by_power,
    "rms_by_root": rms_by_root,
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "layer_norm_written": layer_norm,
    "layer_norm_by_variance": layer_norm_by_variance,
    "by_deviation": by_deviation,
    "normalize": lambda x: F.normalize(x, dim=-1),
    "cosine_similarity": lambda x: F.cosine_similarity(x[:, None], x[None].flip(2), dim=-1),
    "shares": lambda x: x.abs() / (x.abs().sum(-1, keepdim=True) + 1e-5),
    "cdist": lambda x: torch.cdist(x, x.flip(1)),
}


@pytest.mark.parametrize("size", [8, 12])
@pytest.mark.parametrize("scale", [0.02, 1.0, 300.0, 3000.0])
@pytest.mark.parametrize("name", WRITTEN)
def test_norms_of_small_and_large_numbers(name, scale, size):
    """A mean is rounded to a unit, of which 0.02 has 1300."""
    small = scale < 1 and ("layer" in name or "deviation" in name)
    check(WRITTEN[name], scale * numbers(6, size), absolute=2.0**-9 if small else 2.0**-12)


def plan(function: Callable, size: int):
    return securemodel.compile(AfterLayer(function, size).eval(), torch.zeros(4, size), **TWO).plan("wan")


@pytest.mark.parametrize("written, fused", [(rms, "rms_norm"), (rms_by_power, "rms_norm"), (rms_by_root, "rms_norm"),
                                            (layer_norm_by_variance, "layer_norm"), (layer_norm, "layer_norm")])  # fmt: skip
def test_a_written_norm_costs_what_the_fused_one_costs(written, fused):
    function = {"rms_norm": lambda x: F.rms_norm(x, (32,), eps=1e-5), "layer_norm": lambda x: F.layer_norm(x, (32,))}
    made, expected = plan(lambda x: written(x, 1e-5), 32), plan(function[fused], 32)
    assert made.rounds <= expected.rounds + 2
    assert max(made.sent_bytes.values()) <= 1.1 * max(expected.sent_bytes.values())


def test_what_is_left_out_raises_no_alarm():
    x = 5000 * numbers(3, 8)
    model = AfterLayer(lambda x: F.layer_norm(x, (8,), eps=1e-12), 8).eval()
    found = securemodel.compare(securemodel.compile(model, x, **TWO), x)
    assert found.first_out_of_range is None


# ---- small weights
def test_the_owner_of_small_weights_is_warned_when_they_are_loaded():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[2].weight.mul_(1e-4)
    program = securemodel.compile(model, torch.zeros(1, 4), **TWO)
    with securemodel.local(program) as session, pytest.warns(SmallWeightsWarning) as seen:
        session.load(program, model)
    (warning,) = [str(warning.message) for warning in seen]
    assert "'2.weight'" in warning and "2 Linear" in warning
    with torch.no_grad():
        model[2].weight.mul_(1e4)
    with securemodel.local(program) as session, warnings.catch_warnings():
        warnings.simplefilter("error")
        session.load(program, model)


# ---- what the width of the range costs
NARROW = {
    "reciprocal": (torch.reciprocal, 8, 19, 145.8),
    "rsqrt": (torch.rsqrt, 8, 14, 117.8),
    "sqrt": (torch.sqrt, 8, 16, 133.9),
    "log": (torch.log, 8, 13, 101.8),
    "quotient": (lambda x: x / (2 * x + 1), 8, 20, 169.8),
    "shares of rows": (lambda x: x / x.sum(-1, keepdim=True), 8, 20, 43.4),
    "shares of long rows": (lambda x: x / x.sum(-1, keepdim=True), 64, 20, 26.4),
}
"""Functions, the length of a row, and what they cost for [2^-10, 2^14) alone, with fast rounding: rounds, and the bytes
for an element that the party sends which sends most."""


@pytest.mark.parametrize("rounding", ["exact", "fast"])
@pytest.mark.parametrize("name", NARROW)
def test_the_whole_range_costs_at_most_half_as_much_again(name, rounding):
    function, size, rounds, sent = NARROW[name]
    x = torch.ones(64, size)
    program = securemodel.compile(AfterLayer(function, size).eval(), x, **TWO, rounding=rounding)
    made = program.plan("wan")
    assert max(made.sent_bytes.values()) / x.numel() <= (1.5 if rounding == "fast" else 1.52) * sent
    if rounding == "fast":
        assert made.rounds <= 1.5 * rounds
