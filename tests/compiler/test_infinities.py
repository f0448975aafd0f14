"""Infinite and huge numbers: no bound in a clamp or a comparison, minus infinity in a mask; refused with a line elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from running import difference, run, tensors
from torch import nn

import securemodel
from securemodel.errors import InputError, UnsupportedOperator

INF, LEAST, HALF = float("inf"), torch.finfo(torch.float32).min, torch.finfo(torch.float16).min
KEPT = torch.tensor([True, False, True, True, False])
X = torch.randn(3, 5, generator=torch.Generator().manual_seed(3)) * 2
BOUNDS = torch.tensor([0.0, -INF, -INF, 1.0, LEAST]), torch.tensor([INF, 1.0, INF, 2.0, -LEAST])
TO_ADD = torch.tensor([0.0, -INF, 0.0, LEAST, -1e9])
CAUSAL = torch.full((3, 3), -INF).triu(1)


class Scored(nn.Module):
    """What `code` makes of the scores of a layer, which are secret, and of what the bank or the hospital has beside it."""

    def __init__(self, code: Callable, *of_the_bank: torch.Tensor) -> None:
        super().__init__()
        self.layer, self.code, self.count = nn.Linear(5, 5, bias=False), code, len(of_the_bank)
        nn.init.eye_(self.layer.weight)
        for at, tensor in enumerate(of_the_bank):
            self.register_buffer(f"own{at}", tensor)

    def forward(self, x, *inputs):
        return self.code(self.layer(x), *[getattr(self, f"own{at}") for at in range(self.count)], *inputs)


def check(code: Callable, *inputs: torch.Tensor, bank: tuple[torch.Tensor, ...] = (), x: torch.Tensor = X) -> None:
    model = Scored(code, *bank).eval()
    expected = [t.detach() for t in tensors(model(x, *inputs))]
    program = securemodel.compile(model, (x, *inputs), weights="bank", inputs="hospital", outputs="hospital")
    for made, right in zip(run(program, x, *inputs), expected, strict=True):
        assert made.dtype == right.dtype and difference(made, right) <= 2**-9, (made, right)


def written(y, places, number):
    y = y.clone()
    y[:, places] = number
    return y


def running_maximum(y):
    """As RWKV has it: the largest score so far begins at -1e38."""
    numerator, denominator, largest, out = torch.zeros(3), torch.zeros(3), torch.zeros(3) - 1e38, []
    for t in range(3):
        new = torch.maximum(largest, y[:, t])
        before, now = (largest - new).exp(), (y[:, t] - new).exp()
        numerator, denominator, largest = before * numerator + now * y[:, t], before * denominator + now, new
        out.append(numerator / denominator)
    return torch.stack(out)


def segments(y):
    """As Mamba2 has it: exp of sums that are minus infinity above the diagonal."""
    sums = (0.1 * y[..., None].expand(3, 5, 5)).masked_fill(~torch.ones(5, 5).tril(-1).bool(), 0).cumsum(-2)
    return sums.masked_fill(~torch.ones(5, 5).tril().bool(), -INF).exp()


NO_BOUND = {
    "clamp": lambda y: (
        y.clamp(0, INF),
        y.clamp(-INF, INF),
        y.clamp(LEAST, 1),
        y.clamp(min=-1e30),
        y.clamp(HALF, -HALF),
    ),
    "hardtanh": lambda y: (F.hardtanh(y, 0, INF), F.hardtanh(y, LEAST, 1.0), y.clamp_min(-INF), y.clamp_max(INF)),
    "tensors": lambda y: (y.clamp(torch.tensor(0.0), torch.tensor(INF)), y.clamp(*BOUNDS)),
    "extremes": lambda y: (
        torch.maximum(y, torch.tensor(-INF)),
        torch.minimum(torch.full_like(y, 1e38), y),
        y.fmax(torch.tensor(LEAST)),
        torch.max(torch.full((3, 5), -1e38), y),
    ),
    "comparisons": lambda y: (y < INF, y > -1e20, y == -INF, y != INF, y >= INF, y <= LEAST, y < torch.tensor(INF)),
    "comparisons with tensors": lambda y: (y == torch.tensor(-INF), y > BOUNDS[0], y < BOUNDS[1], y == BOUNDS[0]),
    "a recurrence": running_maximum,
}
FORBIDDEN = {
    "where": lambda y: [torch.where(KEPT, y, n).softmax(1) for n in (-INF, LEAST, HALF, -1e9, torch.tensor(-INF))],
    "where of others": lambda y: (torch.where(KEPT, y, INF).amin(1), torch.where(KEPT, -INF, y).amax(1)),
    "where of secrets": lambda y: torch.where(y > -1, y, -INF).softmax(1),
    "full": lambda y: (y + torch.triu(torch.full((5, 5), -1e38), 1)[:3]).softmax(1),
    "a factor": lambda y: ((y - 1e30 * (1 - KEPT.float())).softmax(1), (y + (y < -1).float() * LEAST).softmax(1)),
    "a secret factor": lambda y: ((y + (1 - (y > -1).float()) * LEAST).softmax(1), (y + (y < -1) * -1e38).amax(1)),
    "written": lambda y: (written(y, KEPT, -INF).softmax(1), written(y, slice(3, 5), LEAST).softmax(1)),
    "padded": lambda y: (F.pad(y, (1, 1), value=-INF).amax(1), torch.cat([y, torch.full((3, 1), -INF)], 1).amax(1)),
    "scattered": lambda y: (
        y.scatter(1, torch.tensor([[1], [0], [2]]), -INF).softmax(1),
        y.index_fill(1, torch.tensor([1, 2]), -INF).softmax(1),
    ),
    "logaddexp": lambda y: (torch.logaddexp(y, torch.tensor(-INF)), torch.logaddexp(torch.full((5,), LEAST), y)),
    "exp": segments,
    "a row without any": lambda y: (
        torch.where(torch.tensor([[True], [False], [True]]), y, LEAST).softmax(1),
        torch.where(torch.tensor([[True], [False], [True]]), y, -INF).softmax(1).nan_to_num(),
        torch.ops.aten._safe_softmax(torch.where(torch.tensor([[True], [False], [True]]), y, -INF), 1),
    ),
}
LOGARITHMS = {
    "xlogy": lambda y: (
        torch.xlogy(y.relu() * KEPT, torch.where(KEPT, 2.0, 0.0)),
        torch.xlogy(torch.where(KEPT, 2.0, 0.0), y.abs() + 1),
        torch.xlogy(y.relu(), y.relu()),
        torch.xlogy(y, 2.0),
        torch.xlogy(2.0, y.abs() + 1),
    ),
    "kl_div": lambda y: [F.kl_div(y.log_softmax(1), torch.eye(5)[:3], reduction=r) for r in ("none", "sum")],
    "nanmean": lambda y: (y.nanmean(), y.nanmean(1), y.nansum(1)),
}


@pytest.mark.parametrize("table", [NO_BOUND, FORBIDDEN, LOGARITHMS], ids=["no bound", "forbidden", "logarithms"])
def test_infinite_constants_mean_what_they_mean_in_torch(table) -> None:
    for code in table.values():
        check(code)


def test_an_owner_may_have_infinite_bounds_and_masks() -> None:
    check(lambda y, low, high: (y.clamp(low, high), torch.maximum(y, low)), bank=BOUNDS)
    add = lambda y, mask: (y + mask).softmax(1)
    for mask in (TO_ADD, TO_ADD.clamp(min=-1e4)):
        check(add, mask)
        check(add, bank=(mask,))
    check(lambda y, mask: (y @ y.T + mask).log_softmax(1).exp(), bank=(CAUSAL,))
    check(lambda y, mask: (y * mask - 1e30 * (1 - mask)).softmax(1), KEPT.float())
    check(lambda y, mask: (y + mask.log()).softmax(1), KEPT.float())
    check(lambda y, mask: (y - 1e30 * torch.einsum("ij->ji", mask)).softmax(1), 1.0 - torch.eye(5, 3))
    check(
        lambda y, mask: torch.cat([y, y + (1 - mask) * LEAST, torch.where(mask > 0, 0, -INF)[None]]).amax(1),
        KEPT.float(),
    )


REFUSED = {
    "a product": (lambda y: y * torch.tensor([1.0, INF, 1.0, 1.0, 1.0]), "infinite or huge constant"),
    "a factor": (lambda y: y * 1e30, "the factor 1e"),
    "a mean of NaN": (lambda y: torch.where(KEPT, y, float("nan")).nanmean(1), "NaN"),
    "all beyond": (lambda y: y.clamp(max=-INF), "the bound -inf"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_infinity_cannot_mean_is_refused_with_its_line(name) -> None:
    code, reason = REFUSED[name]
    report = securemodel.check(Scored(code), X)
    assert not report and reason in report.problems[0].reason and report.problems[0].remedy
    assert "test_infinities.py:" in report.problems[0].source
    with pytest.raises(UnsupportedOperator, match="test_infinities.py:"):
        securemodel.compile(Scored(code).eval(), X, weights="bank", inputs="hospital", outputs="hospital")


@pytest.mark.parametrize("bad", [INF, -INF, 1e30], ids=str)
def test_infinite_data_is_still_a_mistake_of_its_owner(bad) -> None:
    model = Scored(lambda y, more: y + more)
    program = securemodel.compile(model, (X, X), weights="bank", inputs="hospital", outputs="hospital")
    with securemodel.local(program) as session, pytest.raises(InputError, match="'hospital': input 1 has"):
        session.run(X, X.clone().fill_(bad))


# ---- what masks leave of large numbers
LARGE = 5000 + 10 * X
OF_LARGE = {
    "extremes": lambda y: (
        y.masked_fill(~KEPT, INF).amin(-1), (-y).masked_fill(~KEPT, -INF).amax(-1), torch.where(KEPT, y, INF).argmin(-1),
        F.pad(-y, (1, 1), value=-INF).amax(-1), (-y).masked_fill(~KEPT, -INF).topk(2)[0],
        (-y).masked_fill(~KEPT, -INF).cummax(-1)[0][:, :1],
    ),
    "softmax": lambda y: (
        (-y).masked_fill(~KEPT, -INF).softmax(-1), ((y - 5000) * 300 + torch.where(KEPT, 0.0, -INF)).softmax(-1),
        (-y).masked_fill(y > 5000, -INF).softmax(-1), (-y).masked_fill(~KEPT, -INF).logsumexp(-1) / 4096,
    ),
    "asked for": lambda y: (
        torch.isinf(y.masked_fill(y > 5000, INF)), torch.isfinite(torch.where(y > 5000, y, -INF)),
        y.masked_fill(y > 5000, INF) == INF, y.masked_fill(y > 5000, INF) != INF, torch.where(y > 5000, y, -INF) > -INF,
        torch.where(y > 5000, y, -INF) <= torch.tensor(-INF), torch.where(y > 5000, -y, INF) < INF,
        torch.isinf(y), y == INF, torch.where(y > 5000, y, -INF).nan_to_num(neginf=7.0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OF_LARGE)
def test_masks_forbid_beside_large_numbers(name):
    check(OF_LARGE[name], x=LARGE)


def test_a_lower_bound_above_the_upper_one_gives_the_upper_one():
    check(lambda y: (y.clamp(1.0, -1.0), F.hardtanh(y, 0.0, 2.0), y.clamp(torch.tensor(1.0), torch.tensor(-1.0))))
