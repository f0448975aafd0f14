"""Random numbers in a model's forward: each party would draw its own, and nobody would see that they differ."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import securemodel
from securemodel.errors import UnsupportedOperator

X = torch.zeros(2, 4)


class Apply(nn.Module):
    """A weight times a function of the input."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x) * self.weight


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(1, 1, 2, 4)


def attention(x: torch.Tensor, dropout_p: float) -> torch.Tensor:
    return F.scaled_dot_product_attention(heads(x), heads(x), heads(x), dropout_p=dropout_p)


def lstm(x: torch.Tensor, train: bool) -> torch.Tensor:
    state = torch.zeros(2, 2, 3)
    weights = [torch.ones(12, n) if n else torch.ones(12) for n in (4, 3, 0, 0, 3, 3, 0, 0)]
    return torch.lstm(x.reshape(1, 2, 4), [state, state], weights, True, 2, 0.5, train, False, False)[0]


def partly_written(x: torch.Tensor) -> torch.Tensor:
    y = torch.empty(2, 4)
    y[:, :2] = x[:, :2]
    return y


RANDOM: dict[str, Callable] = {
    "rand": lambda x: x + torch.rand(4),
    "randn": lambda x: x + torch.randn(2, 4),
    "rand_like": lambda x: x + torch.rand_like(x),
    "randn_like": lambda x: x + torch.randn_like(x),
    "randint": lambda x: x + torch.randint(0, 5, (4,)),
    "randperm": lambda x: x[:, torch.randperm(4)],
    "seeded": lambda x: (torch.manual_seed(0), x + torch.rand(4))[1],
    "generator": lambda x: x + torch.rand(4, generator=torch.Generator()),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full((4,), 0.5)),
    "bernoulli of a secret": torch.bernoulli,
    "multinomial": lambda x: x[:, torch.multinomial(torch.ones(4), 4)],
    "normal": lambda x: x + torch.normal(torch.zeros(4), torch.ones(4)),
    "normal_": lambda x: x + torch.empty(4).normal_(),
    "uniform_": lambda x: x + torch.empty(4).uniform_(),
    "exponential_": lambda x: x + torch.empty(4).exponential_(),
    "geometric_": lambda x: x + torch.empty(4).geometric_(0.5),
    "random_": lambda x: x + torch.empty(4).random_(5),
    "poisson": lambda x: x + torch.poisson(torch.ones(4)),
    "gumbel_softmax": F.gumbel_softmax,
    "dropout": lambda x: F.dropout(x, 0.5, training=True),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "dropout1d": lambda x: F.dropout1d(x.reshape(1, 2, 4), 0.5, training=True),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "attention": functools.partial(attention, dropout_p=0.5),
    "lstm": functools.partial(lstm, train=True),
}

FIXED: dict[str, Callable] = {
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "dropout of nothing": lambda x: F.dropout(x, 0.0, training=True),
    "rrelu": lambda x: F.rrelu(x, training=False),
    "attention": functools.partial(attention, dropout_p=0.0),
    "lstm": functools.partial(lstm, train=False),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_are_refused(name: str) -> None:
    model = Apply(RANDOM[name])
    report = securemodel.check(model, X)
    assert not report
    (problem,) = (problem for problem in report.problems if "random" in problem.reason)
    assert "test_random_numbers.py:" in problem.source
    assert ".eval()" in problem.remedy and "input" in problem.remedy
    with pytest.raises(UnsupportedOperator, match="random"):
        securemodel.compile(model, X, weights="bank", inputs="hospital", outputs="hospital")


@pytest.mark.parametrize("protocol", ["crypten", "paillier"])
def test_every_protocol_refuses_them(protocol: str) -> None:
    assert not securemodel.check(Apply(RANDOM["rand"]), X, protocol=protocol)


@pytest.mark.parametrize("inputs", ["hospital", "public"])
def test_they_are_refused_where_they_touch_no_secret(inputs: str) -> None:
    """One owner's, and everybody's, are computed in the clear; the second differs from party to party."""
    for name in ("rand_like", "bernoulli of a secret", "dropout", "attention", "rrelu"):
        with pytest.raises(UnsupportedOperator, match="random"):
            securemodel.compile(Apply(RANDOM[name]), X, weights="hospital", inputs=inputs, outputs="all", parties=("hospital", "bank"))  # fmt: skip


@pytest.mark.parametrize("name", FIXED)
def test_what_draws_nothing_is_not_refused(name: str) -> None:
    assert securemodel.check(Apply(FIXED[name]), X)


@pytest.mark.parametrize("make", [torch.empty_like, lambda x: x.new_empty(2, 4), lambda x: torch.empty(2, 4)])
def test_memory_that_was_never_written_is_zero_at_every_party(make: Callable) -> None:
    model = Apply(lambda x: x + make(x))
    program = securemodel.compile(model, X, weights="bank", inputs="hospital", outputs="hospital")
    assert "empty" not in program.text()
    with securemodel.local(program) as session:
        torch.testing.assert_close(session.run(X + 3), X + 3, atol=1e-3, rtol=0)


def test_memory_that_was_partly_written() -> None:
    program = securemodel.compile(Apply(partly_written), X, weights="bank", inputs="hospital", outputs="hospital")
    with securemodel.local(program) as session:
        y = session.run(X + 3)
    torch.testing.assert_close(y, torch.tensor([3.0, 3.0, 0.0, 0.0]).expand(2, 4), atol=1e-3, rtol=0)
