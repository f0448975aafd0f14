"""Results have the type that torch gives them, and functions along an axis of a number without axes are as torch has them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from running import TWO, run, tensors
from torch import nn

import securemodel

MASK = torch.tensor([True, False, True, False])

CASES = {
    "comparisons": lambda x, y: (x > y, ~(x > y), x == y, torch.isclose(x, y), torch.isfinite(x), x.isnan()),
    "logic": lambda x, y: (torch.logical_and(x > y, x), torch.logical_or(x, y > 0), torch.logical_xor(x > y, x)),
    "bits of booleans": lambda x, y: ((x > y) & (x > 0), (x > y) | MASK, (x > y) ^ (x > 0), torch.logical_not(x)),
    "any and all": lambda x, y: ((x > y).any(1), (x > y).all(0, keepdim=True), (x > y).any(), x.any(), x.all(1)),
    "sums of booleans": lambda x, y: ((x > y).sum(), (x > y).sum(1), (x > y).cumsum(1), torch.count_nonzero(x > 0)),
    "reductions of booleans": lambda x, y: ((x > y).prod(1), (x > y).amax(1), (x > y).sum(dtype=torch.float32)),
    "arithmetic of booleans": lambda x, y: ((x > y) * x, (x > y) * (x > 0), (x > y) + (x > 0), (x > y) / 2),
    "extremes of booleans": lambda x, y: (torch.maximum(x > y, x > 0), torch.minimum(x > y, x > 0), (x > y) < (x > 0)),
    "choices": lambda x, y: (torch.where(x > y, x > 0, y > 0), torch.where(x > y, 1, 0), torch.cat([x > y, x > 0])),
    "conversions": lambda x, y: (x.int(), x.bool(), x.long(), x.double() * y, x.half() * 2, x.round().int()),
    "whole numbers": lambda x, y: (x.long().sum() + 1, x.long() / 2, x.long() // 2, x.long() % 2, x.long().abs()),
    "of whole numbers": lambda x, y: (x.long().sign(), x.long().clamp(-1, 1), x.long().max(), x.long() @ y.long()),
    "positions": lambda x, y: (x.argmax(1), x.argsort(1), F.one_hot(x.argmax(1), 4), x.topk(2)[1]),
    "signs": lambda x, y: (torch.signbit(x), x.sign(), x.copysign(y), x.long().bitwise_not()),
    "no axes": lambda x, y: (
        *x.sum().max(0), *x.sum().min(-1), x.sum().softmax(0), x.sum().log_softmax(0), x.sum().logsumexp(0),
        x.sum().sum(0), x.sum().argmax(0), x.sum().cumsum(0), *x.sum().sort(0), x.sum().amax(0), x.sum().any(0),
    ),
}  # fmt: skip


class OfSecrets(nn.Module):
    """A function of an input and of it in another order, both with a zero of the other party."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.zero = function, nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.function(x + self.zero, x.flip(0) + self.zero)


@pytest.mark.parametrize("name", CASES)
def test_types_of_results(name):
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)) * 2
    x[0, 0], x[1] = 0, x[2]
    model = OfSecrets(CASES[name])
    for made, right in zip(run(securemodel.compile(model, x, **TWO), x), tensors(model(x)), strict=True):
        assert made.dtype == right.dtype and made.shape == right.shape
        assert (made.double() - right.double()).abs().max() <= 2.0**-9
