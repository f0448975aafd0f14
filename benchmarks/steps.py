"""Training steps as cases: the step in ordinary PyTorch, whose batch it is, and its secure program.

What they need of this project is imported when a case is used: a build that lacks it can be measured on other cases.
Rows are shared once, before the steps that are measured: ten batches of the one that there is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import models

if TYPE_CHECKING:
    from securemodel.compiler.ir import Rounding
    from securemodel.training.compiling import TrainingProgram
    from securemodel.training.datasets import Batches

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Training:
    """A model, its optimizer and a batch, seeded; alice owns the samples, bob the labels. Nothing is revealed."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[..., torch.Tensor]
    batch: Batch

    def step(self, samples: torch.Tensor, labels: torch.Tensor) -> None:
        """Forward, backward and update."""
        loss = self.loss(self.model(samples), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


@dataclass(frozen=True)
class StepCase:
    """One measurement of a step."""

    name: str
    build: Callable[[], Training]
    inputs: tuple[str, ...] = ("alice", "bob")
    peer: str | None = None
    items: int = 1

    @property
    def peer_name(self) -> str:
        """The case of the same work in benchmarks.peers."""
        return self.peer or self.name


def step_program(
    case: StepCase, parties: tuple[str, ...], rounding: Rounding, resident: bool = True
) -> tuple[TrainingProgram, list[torch.Tensor]]:
    """The program of a case's step, and the inputs of a run: the batch, then public numbers and random ones.

    resident: rows are shared once; else each step takes its batch as input.
    """
    from securemodel.training import capture_step, draws
    from securemodel.training.compiling import compile_step, reading_tables

    training = case.build()
    captured = capture_step(training.step, training.model, training.optimizer, training.batch)
    receivers = [None] * len(captured.returned.names)
    program = compile_step(captured, case.name, parties, case.inputs, "public", receivers, rounding=rounding)
    if resident:
        program = reading_tables(program, batches_of(case, training))
    numbers, random = captured.public_inputs().next(), draws(captured, torch.Generator().manual_seed(1))
    public = [*(numbers[name] for name in captured.numbers), *(random[r.name] for r in captured.random)]
    return program, [*training.batch, *public]


def batches_of(case: StepCase, training: Training) -> Batches:
    """Ten times the rows of the batch, so that it is what each step reads."""
    from securemodel.training import dataset, owned

    columns = zip(case.inputs, training.batch, strict=True)
    data = dataset(**{f"column{at}": owned(party, torch.cat([x] * 10)) for at, (party, x) in enumerate(columns)})
    return data.batches(len(training.batch[0]), shuffle=False)


def _case(name: str, make: Callable[[], nn.Module], batch: Callable[[], Batch], loss=F.cross_entropy, adam=False):
    def build() -> Training:
        torch.manual_seed(0)  # benchmark data, not protocol randomness
        model = make()
        parameters = list(model.parameters())
        optimizer = torch.optim.Adam(parameters, lr=1e-3) if adam else torch.optim.SGD(parameters, lr=0.05)
        return Training(model, optimizer, loss, batch())

    return StepCase(name, build)


def _of_classes(count: int, *shape: int) -> Callable[[], Batch]:
    return lambda: (torch.rand(shape), torch.randint(count, shape[:1]))


def _yes_or_no() -> Batch:
    return torch.randn(128, 100), torch.rand(128, 1).round()


ALL: tuple[StepCase, ...] = (
    _case("logreg_train_b128", lambda: nn.Linear(100, 1), _yes_or_no, F.binary_cross_entropy_with_logits),
    _case("mlp_train_b128", models.mlp, _of_classes(10, 128, 784)),
    _case("lenet5_train_b128", models.lenet5, _of_classes(10, 128, 1, 28, 28)),
    _case("lstm_train_b16", models.RecurrentClassifier, _of_classes(4, 16, 20, 40)),
    _case("encoder_train_b8", models.EncoderClassifier, lambda: (torch.randint(64, (8, 32)), torch.randint(4, (8,)))),
    _case("adam_mlp_train_b128", models.mlp, _of_classes(10, 128, 784), adam=True),
)
