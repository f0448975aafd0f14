"""Constants in a model's code: owners compute with all their digits."""

from __future__ import annotations

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
