"""What is known of a captured step: its states, its inputs, what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.utils._pytree import TreeSpec, tree_unflatten

from securemodel.compiler.capture import Captured
from securemodel.training.noise import Noise
from securemodel.training.optimizers import Numbers, Roots
from securemodel.training.publics import PublicInputs, Update
from securemodel.training.randoms import Random

Kind = Literal["parameter", "buffer", "optimizer", "gradient"]


@dataclass(frozen=True, repr=False)
class State:
    """A tensor that is kept between steps.

    `start` is its value when the step was captured. `output` is the place of its new value among the outputs, None if
    no step changes it. `public`: a count of steps, which depends on no data; all others are secret.
    """

    name: str
    kind: Kind
    start: torch.Tensor
    output: int | None
    public: bool


@dataclass(frozen=True)
class Input:
    """A tensor of the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Returned:
    """What the step returns: names of its tensors, their places among the outputs, and the nest they are in."""

    names: tuple[str, ...]
    outputs: tuple[int, ...]
    leaves: tuple[Any, ...]
    nest: TreeSpec

    def restore(self, tensors: Sequence[Any]) -> Any:
        """The nest with these in place of the tensors."""
        left = iter(tensors)
        return tree_unflatten([next(left) if leaf is TENSOR else leaf for leaf in self.leaves], self.nest)


TENSOR = object()
"""Stands for a tensor among the leaves of what a step returns; the others are constants."""


@dataclass(frozen=True, repr=False)
class CapturedStep:
    """A captured step. `captured` is what securemodel.compiler.lowering lowers.

    Its `inputs` are the placeholders of `batch`, then `numbers` (public), then `random` (public), then `noise` (each of one
    party); its `states` map
    placeholders to names of `states`. Its outputs are the new values of the states that change, then those of
    `returned`. `updates`, `memory` and `constants` (numbers that stay) are for PublicInputs. `roots` says how the optimizers keep second moments.
    """

    captured: Captured
    states: dict[str, State]
    batch: tuple[Input, ...]
    numbers: tuple[str, ...]
    random: tuple[Random, ...]
    returned: Returned
    updates: tuple[Update, ...]
    memory: dict[str, Numbers]
    roots: Roots
    noise: tuple[Noise, ...] = ()
    constants: dict[str, float] = field(default_factory=dict)

    def public_inputs(self) -> PublicInputs:
        """The public numbers of the first step after the capture, then of the next ones."""
        return PublicInputs(self.updates, self.memory, self.constants)
