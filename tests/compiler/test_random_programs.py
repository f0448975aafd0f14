"""Random expressions of sums, products, factors, selections and moves against torch, within errors that are propagated.

What is tested is how values keep their fractional bits and their range, and which of them are masked: every value may
be read by anything, has any scale, and is returned as well.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running import IDLE_THIRD, PUBLIC_WEIGHTS, TWO, run
from torch import nn

import securemodel

UNIT = 2.0**-16
LARGEST = 2.0**28  # a quarter of what a product may reach
FACTORS = (-1, 3, 40, 0.5, 2.0**-9, 1 / 3, -0.7, 1 / 384, 1e-4, 37.5, 1000.25)
NUMBERS = (1, -0.375, 0.1, 1000.7, -30000)


class Checked:
    """A value in float64, with a bound on what fixed point may be off by."""

    def __init__(self, value: torch.Tensor, error: torch.Tensor | float = 0.0) -> None:
        self.value, self.error = value, torch.as_tensor(error).expand(value.shape)

    def rounded(self) -> Checked:
        return Checked(self.value, self.error + UNIT)


def product(x: Checked, y: Checked) -> Checked:
    x, y = x.rounded(), y.rounded()
    return Checked(x.value * y.value, x.value.abs() * y.error + y.value.abs() * x.error + x.error * y.error)


def scaled(x: Checked, factor: float) -> Checked:
    off = UNIT * min(1.0, abs(factor)) * x.value.abs()
    return Checked(x.value * factor, abs(factor) * (x.error + UNIT) + off)


def total(x: Checked, y: Checked, sign: int) -> Checked:
    return Checked(x.value + sign * y.value, x.error + y.error + 2 * UNIT)


STEPS = {  # (in torch, with its error): of two values and a number
    "add": (lambda x, y, n: x + y, lambda x, y, n: total(x, y, 1)),
    "sub": (lambda x, y, n: x - y, lambda x, y, n: total(x, y, -1)),
    "mul": (lambda x, y, n: x * y, lambda x, y, n: product(x, y)),
    "square": (lambda x, y, n: x * x, lambda x, y, n: product(x, x)),
    "scale": (lambda x, y, n: x * FACTORS[n], lambda x, y, n: scaled(x, FACTORS[n])),
    "offset": (
        lambda x, y, n: x + NUMBERS[n % 5],
        lambda x, y, n: Checked(x.value + NUMBERS[n % 5], x.error + 2 * UNIT),
    ),
    "relu": (lambda x, y, n: x.relu(), lambda x, y, n: Checked(x.value.relu(), x.error + UNIT)),
    "max": (
        lambda x, y, n: torch.maximum(x, y),
        lambda x, y, n: Checked(torch.maximum(x.value, y.value), largest(x, y)),
    ),
    "half": (lambda x, y, n: halves(x), lambda x, y, n: Checked(halves(x.value), halves(x.error))),
    "turn": (lambda x, y, n: x.flip(-1), lambda x, y, n: Checked(x.value.flip(-1), x.error.flip(-1))),
    "sum": (
        lambda x, y, n: x.sum(n % 2, keepdim=True),
        lambda x, y, n: Checked(x.value.sum(n % 2, keepdim=True), x.error.sum(n % 2, keepdim=True)),
    ),
    "amax": (
        lambda x, y, n: x.amax(n % 2, keepdim=True),
        lambda x, y, n: Checked(x.value.amax(n % 2, keepdim=True), x.error.amax(n % 2, keepdim=True) + 4 * UNIT),
    ),
}


def largest(x: Checked, y: Checked) -> torch.Tensor:
    return torch.maximum(x.error, y.error) + 3 * UNIT


def halves(x: torch.Tensor) -> torch.Tensor:
    """The rows at even places, as often as it takes to have as many again."""
    return torch.cat([x[::2], x[::2]])[: x.shape[0]]


class Expression(nn.Module):
    """The values of a list of steps, each of which names the values it reads."""

    def __init__(self, steps) -> None:
        super().__init__()
        self.steps = steps
        self.weight = nn.Parameter(torch.tensor([[0.5], [-1.25], [2.0]]), requires_grad=False)

    def forward(self, x, y):
        values = [x * y[:, :1], x + y, y, self.weight]
        for name, i, j, n in self.steps:
            values.append(STEPS[name][0](values[i], values[j], n))
        return tuple(values[4:])


def checked(steps, x: torch.Tensor, y: torch.Tensor) -> tuple[list, list[Checked]]:
    """The steps whose values keep the range, and what they give."""
    kept, values = [], [Checked(v.double()) for v in (x * y[:, :1], x + y, y, Expression([]).weight)]  # exact
    for name, i, j, n in steps:
        i, j = i % len(values), j % len(values)
        made = STEPS[name][1](values[i], values[j], n)
        if (made.value.abs() + made.error).max() < LARGEST and made.error.max() < 2.0**-2 * LARGEST:
            kept.append((name, i, j, n))
            values.append(made)
    return kept, values[4:]


programs = st.lists(
    st.tuples(st.sampled_from(list(STEPS)), st.integers(0, 20), st.integers(0, 20), st.integers(0, len(FACTORS) - 1)),
    min_size=4,
    max_size=12,
)


CASES = given(programs, st.sampled_from([TWO, IDLE_THIRD, PUBLIC_WEIGHTS]), st.sampled_from([1.0, 50.0, 2.0**14]))


def check(steps, owners: dict, size: float) -> None:
    x, y = (torch.arange(12.0).reshape(3, 4) - 5) * size / 8, torch.tensor([[1.5, -2, 0.25, 3]] * 3)
    steps, right = checked(steps, x, y)
    if not steps:
        return
    program = securemodel.compile(Expression(steps).eval(), (x, y), **{**owners, "inputs": ("b", "a")})
    for made, value in zip(run(program, x, y), right, strict=True):
        off = (made.double() - value.value).abs()
        assert (off <= value.error + value.value.abs() * 2.0**-23 + UNIT).all()  # results are float32


@settings(deadline=None, max_examples=10, suppress_health_check=list(HealthCheck))
@CASES
def test_random_expressions(steps, owners, size):
    check(steps, owners, size)


@pytest.mark.slow
@settings(deadline=None, max_examples=250, suppress_health_check=list(HealthCheck))
@CASES
def test_many_random_expressions(steps, owners, size):
    check(steps, owners, size)
