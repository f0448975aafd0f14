"""A model whose code computes something else while PyTorch captures it is refused; one that does not is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import securemodel
from securemodel.compiler.capture import capture, model_state
from securemodel.compiler.faithful import unlike
from securemodel.errors import UnsupportedOperator

X = torch.zeros(2, 4)
TWO = {"weights": "bank", "inputs": "hospital", "outputs": "hospital"}


class Other(nn.Module):
    """Computes another thing while it is captured, where `other` says so."""

    def __init__(self, other: bool = True, factor: float = 2.0) -> None:
        super().__init__()
        self.l, self.other, self.factor = nn.Linear(4, 3), other, factor

    def forward(self, x):
        y = self.l(x)
        return y * self.factor if self.other and torch.compiler.is_compiling() else y


@pytest.mark.parametrize("reveal", ["all", "probabilities"])
def test_a_model_that_computes_something_else_while_it_is_captured(reveal):
    report = securemodel.check(Other(), X)
    assert not report and "captured, it gives other results than it does itself" in str(report)
    with pytest.raises(UnsupportedOperator, match=r"is_compiling\(\)"):
        securemodel.compile(Other(), X, reveal=reveal, **TWO)
    securemodel.compile(Other(other=False), X, reveal=reveal, **TWO)


def test_rounding_is_no_other_result():
    assert securemodel.check(Other(factor=1.0001), X)
    assert not securemodel.check(Other(factor=1.05), X)


class Drawing(nn.Module):
    """Adds what nobody can foresee to one of its results."""

    def __init__(self) -> None:
        super().__init__()
        self.l, self.calls = nn.Linear(4, 3), 0

    def forward(self, x):
        self.calls += 1
        return self.l(x) + self.calls


class Refusing(nn.Module):
    """Takes no numbers but zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 3)

    def forward(self, x):
        if not torch.compiler.is_compiling() and bool(x.any()):
            raise ValueError("zeros alone")
        return self.l(x)


class Unset(nn.Module):
    """Has memory in it that nobody wrote, or numbers that stand for it."""

    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(4, 3)

    def forward(self, x):
        made = torch.empty(2, 3)
        return self.l(x) + (made.fill_(7) if torch.compiler.is_compiling() else made.fill_(5))


@pytest.mark.parametrize("model", [Drawing(), Refusing(), Unset()], ids=lambda model: type(model).__name__)
def test_what_cannot_be_tried_is_not_judged(model):
    captured = capture(model, (X,))
    assert unlike(model, captured, (X,), model_state(model)) is None


def test_weights_without_values_are_not_judged():
    with torch.device("meta"):
        model = Other()
    assert unlike(model, capture(model, (X,)), (X,), model_state(model)) is None


def test_inputs_by_name_whole_numbers_and_complex_results():
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e = nn.Embedding(5, 4)

        def forward(self, ids, x):
            made = torch.fft.fft(self.e(ids) * x)
            return made * 3 if torch.compiler.is_compiling() else made

    examples = {"ids": torch.tensor([0, 4]), "x": X}
    model = Named()
    captured = capture(model, examples)
    assert unlike(model, captured, examples, model_state(model)) is not None
