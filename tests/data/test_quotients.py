"""Quotients of whole numbers: to eight digits for any divisor, in the clear and as a secure program."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import securemodel
from securemodel.data.quotients import MOST_BITS, at_least, mean, ratio

BOUND = 2.0**-24
DIVISORS = (0, 1, 2, 3, 7, 2**16 - 1, 2**16, 10**6 + 3)


def _true(num: Tensor, den: Tensor) -> Tensor:
    return torch.where(den > 0, num.double() / den.clamp(min=1), 0.0)


@given(st.lists(st.tuples(st.integers(0, 2**MOST_BITS - 1), st.floats(-1, 1)), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_a_quotient_below_one_is_near(pairs: list[tuple[int, float]]) -> None:
    den = torch.tensor([d for d, _ in pairs])
    num = torch.tensor([int(d * share) for d, share in pairs])
    assert (ratio(num, den, 2**MOST_BITS - 1) - _true(num, den)).abs().max() <= BOUND


@given(st.integers(1, 2**20), st.floats(1, 2**11))
@settings(max_examples=60, deadline=None)
def test_a_large_quotient_is_relatively_near(den: int, share: float) -> None:
    num = torch.tensor(int(den * share))
    true = int(num) / den
    assert abs(float(ratio(num, torch.tensor(den), 2**20)) - true) <= BOUND * true


def test_a_divisor_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="56"):
        ratio(torch.tensor(1), torch.tensor(1), 2**MOST_BITS)


def test_a_mean_keeps_the_digits_of_its_sum() -> None:
    assert abs(float(mean(torch.tensor(2.0**-16), torch.tensor(1), 5)) - 2.0**-16) < BOUND
    assert abs(float(mean(torch.tensor(-300.5), torch.tensor(7), 10)) + 300.5 / 7) < 43 * BOUND


class _Ratio(nn.Module):
    """Of numbers that two parties' parts make, so that nobody has either."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def forward(self, num: Tensor, den: Tensor, high: Tensor, low: Tensor) -> tuple[Tensor, ...]:
        num, den = (num + high[0]) * 2**25 + low[0], (den + high[1]) * 2**25 + low[1]
        return ratio(num, den, self.most), at_least(den, 1), at_least(den, 2**29)


@pytest.mark.parametrize("parties", [("a", "b"), ("a", "b", "c")])
def test_a_secret_quotient_is_as_near(parties: tuple[str, ...]) -> None:
    torch.manual_seed(1)
    den = torch.tensor([*DIVISORS, 2**40, 2**49 + 1, *(2.0 ** (50 * torch.rand(20))).long().tolist()])
    num = (den.double() * (2 * torch.rand(len(den)) - 1)).long()
    high = torch.randint(0, 2**20, (2, len(den)))
    inputs = (num // 2**25 - high[0], den // 2**25 - high[1], high, torch.stack([num % 2**25, den % 2**25]))
    program = securemodel.compile(
        _Ratio(2**50), inputs, weights="public", inputs=("a", "a", "b", parties[-1]), outputs="b", parties=parties
    )
    with securemodel.local(program) as session:
        made, positive, large = session.run(*inputs)
    assert (made.double() - _true(num, den)).abs().max() <= 2 * BOUND
    assert torch.equal(positive.long(), (den >= 1).long())
    assert torch.equal(large.long(), (den >= 2**29).long())
