"""Runs a model securely and in the clear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

import securemodel
from securemodel.compiler.capture import call, tensors_in

TWO = {"weights": "a", "inputs": "b", "outputs": "b"}
THREE = {**TWO, "parties": ("b", "c", "a")}


class Model(nn.Module):
    """A module and how it is called."""

    def __init__(self, module: nn.Module, function=None) -> None:
        super().__init__()
        self.module = module
        self.function = function or (lambda module, *inputs: module(*inputs))

    def forward(self, *inputs: torch.Tensor):
        return self.function(self.module, *inputs)


def difference(
    model: nn.Module, given: Sequence[torch.Tensor] | Mapping[str, torch.Tensor], settings: dict = TWO, where=None
) -> float:
    """Largest absolute difference between what the parties get and torch's own; `where` chooses what counts."""
    model.eval()
    program = securemodel.compile(model, given, **settings)
    inputs = tuple(given.values()) if isinstance(given, Mapping) else given
    with torch.no_grad(), securemodel.local(program) as session:
        made, right = tensors_in(session.run(*inputs)), tensors_in(call(model, given, inputs))
    assert [m.shape for m in made] == [r.shape for r in right]
    assert min(float(r.std()) for r in right) > 0.01, "results that hardly differ would hide errors"
    chosen = where or (lambda tensor: tensor)
    return max(float((chosen(m) - chosen(r)).abs().max()) for m, r in zip(made, right, strict=True))
