"""Rows of scores that a mask forbids altogether: what torch gives there, by every kind of mask."""

import pytest
import torch
import torch.nn.functional as F
from test_positions import Owned

import securemodel

X = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))
ALLOWED = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
HUGE = torch.zeros(3, 3).masked_fill(~ALLOWED, -1e30)
INFINITE = HUGE * torch.inf
INFINITE[ALLOWED] = 0.0


def attention(x, mask):
    return F.scaled_dot_product_attention(x, x, x, attn_mask=mask)


def added(x, mask):
    return (x @ x.mT + mask).softmax(-1)


MASKS = {
    "attention with booleans": (attention, ALLOWED),
    "attention with infinities": (attention, INFINITE),
    "attention with huge numbers": (attention, HUGE),
    "attention with the least number": (attention, HUGE.clamp(min=torch.finfo(torch.float32).min) * 1e8),
    "huge numbers added": (added, HUGE),
    "huge numbers subtracted": (lambda x, m: (x @ x.mT - 1e30 * (1 - m)).softmax(-1), ALLOWED.float()),
    "numbers that leave something": (added, HUGE / 1e26),
    "infinities added": (lambda x, m: added(x, m).nan_to_num(0.0), INFINITE),
    "for all rows": (added, HUGE[:, None]),
    "booleans of one column": (attention, ALLOWED[:, :1]),
    "one column added": (added, 1e30 * (ALLOWED[:, :1].float() - 1)),
}


@pytest.mark.parametrize("owner", ["constant", "b", "h", "public"])
@pytest.mark.parametrize("name", MASKS)
def test_a_row_that_is_forbidden_is_that_of_torch(name, owner):
    function, mask = MASKS[name]
    x = X if mask.ndim == 2 else X.repeat(2, 1, 1)[:3]
    model, given, owners = Owned(function), (x, mask), ("h", owner)
    if owner == "constant":
        model, given, owners = Owned(lambda x: function(x, mask)), (x,), ("h",)
    expected = model(*given)
    program = securemodel.compile(model, given, weights="b", inputs=owners, outputs="h", parties=("b", "h"))
    with securemodel.local(program) as session:
        made = session.run(*given)
    assert expected.isfinite().all() and torch.allclose(made, expected, atol=2e-4)


@pytest.mark.parametrize("mask", [ALLOWED, ALLOWED[:, None], ALLOWED[:, :1]], ids=["each", "for all rows", "columns"])
def test_booleans_that_nobody_knows_forbid_as_others_do(mask):
    x = X.repeat(2, 1, 1)[:3]
    veiled = lambda x, mine, other: attention(x, mine ^ other)
    other = torch.rand(mask.shape, generator=torch.Generator().manual_seed(2)) > 0.5
    given = (x, mask ^ other, other)
    program = securemodel.compile(Owned(veiled), given, weights="b", inputs=("h", "h", "b"), outputs="h")
    with securemodel.local(program) as session:
        assert torch.allclose(session.run(*given), attention(x, mask), atol=1e-3)


def test_masks_without_such_rows_cost_nothing():
    causal = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1) == 1, -torch.inf)
    masked = securemodel.compile(Owned(lambda x: added(x, causal)), (X,), weights="b", inputs="h", outputs="h")
    plain = securemodel.compile(Owned(lambda x: added(x, 0.5)), (X,), weights="b", inputs="h", outputs="h")
    assert (masked.plan().rounds, masked.plan().sent_bytes) == (plain.plan().rounds, plain.plan().sent_bytes)
