"""Remainders and rounded quotients by divisors that nobody, or one party, knows: exact, whole quotients among them."""

from __future__ import annotations

import pytest
import torch
from running import IDLE_THIRD, TWO, run
from torch import nn

import securemodel

UNIT = 2.0**-16
COUNT = 160


class Divided(nn.Module):
    """All ways of rounding x / z and x / y, for a second input z and a parameter y, and 7 / z."""

    def __init__(self, y: torch.Tensor) -> None:
        super().__init__()
        self.y, self.zero = nn.Parameter(y, False), nn.Parameter(torch.zeros((), dtype=y.dtype), False)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> list[torch.Tensor]:
        x, z, out = x + self.zero, z + self.zero, []
        for divisor in (z, self.y):
            out += [torch.div(x, divisor, rounding_mode=mode) for mode in ("floor", "trunc")]
            out += [x // divisor, x % divisor, torch.fmod(x, divisor)]
        return [*out, 7 // z, 7 % z]


def on_grid(x: torch.Tensor) -> torch.Tensor:
    return (x.double() / UNIT).round() * UNIT


def operands() -> tuple[torch.Tensor, torch.Tensor]:
    """Dividends and divisors of both signs: whole quotients up to 2^17, others, and small and large divisors."""
    generator = torch.Generator().manual_seed(0)
    random = lambda: torch.rand(COUNT // 4, generator=generator)
    sizes = torch.cat([random() * 9 + UNIT, torch.exp2(random() * 20 - 10), (random() * 50).ceil(), random() + 0.01])
    z = on_grid(sizes) * torch.where(torch.rand(COUNT, generator=generator) > 0.5, 1, -1)
    quotients = torch.exp2(torch.rand(COUNT, generator=generator) * 17).round()
    x = torch.where(torch.arange(COUNT) % 2 == 0, z * quotients, on_grid(torch.randn(COUNT, generator=generator) * 20))
    return x.clamp(-(2.0**20), 2.0**20), z


@pytest.mark.parametrize(
    "settings", [TWO, IDLE_THIRD, {**TWO, "rounding": "fast"}], ids=["two", "three", "fast rounding"]
)
def test_of_reals(settings):
    x, z = operands()
    model = Divided(z.float())
    made = run(securemodel.compile(model, (x.float(), z.float()), **settings), x.float(), z.float())
    with torch.no_grad():
        right = model.double()(x.float().double(), z)
    for m, r in zip(made, right, strict=True):
        assert torch.equal(m, r.float())


def test_of_whole_numbers():
    generator = torch.Generator().manual_seed(1)
    z = torch.randint(1, 60, (COUNT,), generator=generator) * torch.where(torch.arange(COUNT) % 3 == 0, -1, 1)
    x = torch.randint(-5000, 5000, (COUNT,), generator=generator)
    x[::2] = z[::2] * torch.randint(-9, 9, (COUNT // 2,), generator=generator)
    model = Divided(z)
    for m, r in zip(run(securemodel.compile(model, (x, z), **TWO), x, z), model(x, z), strict=True):
        assert m.dtype == r.dtype and torch.equal(m, r)
