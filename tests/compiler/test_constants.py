"""Constants in a model's code, and results: all their digits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import securemodel

FINE = torch.tensor([1677721.6, 0.1], dtype=torch.float64)


class Counted(nn.Module):
    def forward(self, x, weight):
        return (x * FINE).round().to(torch.int64) * weight


def test_constants_of_float64_keep_their_digits():
    x = torch.tensor([0.123456789, 98765432100.1], dtype=torch.float64)
    weight = torch.tensor([1, 3])
    program = securemodel.compile(
        Counted(), (x, weight), weights="public", inputs=("bank", "shop"), outputs="all", frac_bits=4
    )
    with securemodel.local(program) as session:
        assert torch.equal(session.run(x, weight), Counted()(x, weight))
    assert not torch.equal((x * FINE.float()).round(), (x * FINE).round())  # what it would be else


class Twice(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, dtype=dtype))

    def forward(self, x):
        return x + self.weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_results_of_float64_keep_their_digits(dtype):
    x = torch.tensor([256 + 2.0**-16, -(2.0**20) - 2.0**-15], dtype=dtype)
    program = securemodel.compile(Twice(dtype), x, weights="bank", inputs="shop", outputs="shop")
    with securemodel.local(program) as session:
        made = session.run(x)
    assert made.dtype == dtype and torch.equal(made, x + 1)


class Between(nn.Module):
    def forward(self, x, low):
        return x.clamp(low, low + 1)


def test_bounds_of_float64_keep_their_digits():
    x, low = torch.full((2,), 500.0, dtype=torch.float64), torch.tensor([256 + 2.0**-16, -3.0], dtype=torch.float64)
    program = securemodel.compile(Between(), (x, low), weights="bank", inputs=("shop", "bank"), outputs="shop")
    with securemodel.local(program) as session:
        assert torch.equal(session.run(x, low), Between()(x, low))


def test_decrypted_results_of_float64_keep_their_digits():
    x, model = torch.tensor([[256 + 2.0**-16]], dtype=torch.float64), nn.Linear(1, 1).double()
    with torch.no_grad():
        model.weight.fill_(1.0), model.bias.fill_(1.0)
    settings = {"protocol": "paillier", "insecure_key_bits": 512, "input_limit": 512.0}
    program = securemodel.compile(model, x, weights="bank", inputs="shop", outputs="shop", **settings)
    with securemodel.local(program) as session:
        assert torch.equal(session.run(x), x + 1)
