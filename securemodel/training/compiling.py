"""From a captured training step to a secure program that keeps its weights in shares."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from protocols.names import PUBLIC
from securemodel.compiler.capture import Captured, Kept, outputs_of
from securemodel.compiler.ir import Header, Rounding
from securemodel.compiler.lowering import lower_model
from securemodel.compiler.owners import Weights
from securemodel.compiler.report import Report
from securemodel.engines.masked.compiling import run_passes
from securemodel.errors import UnsupportedOperator
from securemodel.program import StepProgram
from securemodel.training.datasets import Batches
from securemodel.training.optimizers import SQUARES
from securemodel.training.resident import Table, encoded_rows, reading, tables_of
from securemodel.training.steps import CapturedStep, State


@dataclass(frozen=True, repr=False)
class TrainingProgram(StepProgram):
    """A program of the masked engine whose runs are steps: its states are weights, buffers and moments, in shares."""

    maker: ClassVar[str] = "compile_training"

    model: Any = None
    """The tensors that its states start with, by name."""
    step: CapturedStep | None = field(default=None, compare=False)
    result_names: tuple[str, ...] = ()  # of what the step returns, what somebody learns
    batches: Batches | None = field(default=None, compare=False)  # of rows that are shared once, and what they are of
    tables: tuple[Table, ...] = field(default=(), compare=False)
    with_inputs: TrainingProgram | None = field(default=None, compare=False)
    """The same step where each takes its batch as input; None where this one does."""

    @property
    def model_graph(self) -> Captured | None:
        """The captured step; None where the program came from another process."""
        return self.step.captured if self.step else None

    @cached_property
    def row_independent(self) -> bool:
        """A step, or a function of a data set, is of all its rows."""
        return False

    @property
    def input_names(self) -> tuple[str, ...]:
        """What each of the inputs is: those of the batch, then what each step has beside them."""
        if self.step is None:
            return super().input_names
        numbers = [f"number {name} of each step" for name in self.step.numbers]
        random, noise = ["random numbers of each step"], ["noise of differential privacy"]
        beside = [*numbers, *random * len(self.step.random), *noise * len(self.step.noise)]
        return (*super().input_names[: len(self.step.batch)], *beside)

    def tables_of(self, me: str) -> Mapping[str, torch.Tensor]:
        if self.with_inputs is None or self.batches is None:
            return super().tables_of(me)
        return encoded_rows(self.with_inputs, self.batches, self.tables, me)

    def __reduce__(self):
        """Pickled and copied without the captured step, and without data."""
        return type(self), (self.header, self.graph, self.calls, self.model, self.examples, self.reveal)


def kept_states(step: CapturedStep, frac_bits: int) -> Captured:
    """The captured graph with its states: parameters have twice the fractional bits, so that no small change is lost."""
    places = {name: node for node, name in step.captured.states.items()}
    more = {
        name: frac_bits if state.kind == "parameter" or _is_square(state) else 0 for name, state in step.states.items()
    }
    kept = [
        Kept(places[name], name, state.output, None, more[name], large=_is_square(state))
        for name, state in step.states.items()
        if state.output is not None
    ]
    numbers = step.captured.inputs[len(step.batch) : len(step.batch) + len(step.numbers)]
    rates = {place for place, name in zip(numbers, step.numbers, strict=True) if _is_rate(name)}
    return replace(step.captured, kept=tuple(kept), small=frozenset(rates))


def _is_rate(name: str) -> bool:
    """Whether a public number makes an update of what it multiplies; those of moments multiply what may be large."""
    return name.rpartition(".")[2].partition("@")[0] in ("lr", "decay")


def _is_square(state: State) -> bool:
    return state.kind == "optimizer" and state.name.rpartition(".")[2] in SQUARES


def read_states(step: CapturedStep, kept: Collection[str], frac_bits: int) -> Captured:
    """The captured graph of what only reads states: of these names, in the form in which steps keep them."""
    read = [
        Kept(node, name, None, None, frac_bits if step.states[name].kind == "parameter" else 0)
        for node, name in step.captured.states.items()
        if name in kept
    ]
    return replace(step.captured, kept=tuple(read))


def compile_step(
    step: CapturedStep,
    name: str,
    parties: Sequence[str],
    batch: Sequence[str],
    weights: Weights,
    receivers: Sequence[str | None],
    *,
    frac_bits: int = 16,
    width: int = 64,
    rounding: Rounding = "exact",
    reads: Collection[str] | None = None,
) -> TrainingProgram:
    """The program of a step, with the owner of each tensor of the batch, of the starting weights, and who learns each
    of the tensors that the step returns (None: nobody). `reads`: the names of states that it reads as another program's
    steps keep them, and does not change. Raises UnsupportedOperator.
    """
    owners = [*batch, *[PUBLIC] * (len(step.numbers) + len(step.random)), *(drawn.party for drawn in step.noise)]
    captured = kept_states(step, frac_bits) if reads is None else read_states(step, reads, frac_bits)
    hidden = [place for place, to in zip(step.returned.outputs, receivers, strict=True) if to is None]
    captured = without_outputs(captured, hidden)
    lowered = lower_model(captured, weights, owners, frac_bits, width=width, rounding=rounding)
    if lowered.problems:
        raise UnsupportedOperator(
            Report(name, lowered.problems, lowered.operators, lowered.approximated, lowered.unchecked)
        )
    shapes = [part.shape for part in step.batch] + [()] * len(step.numbers) + [r.shape for r in step.random]
    shapes += [(drawn.count,) for drawn in step.noise]
    to = [name for name in receivers if name is not None]
    header = Header(
        tuple(parties), frac_bits, width, weights, tuple(owners), tuple(map(tuple, shapes)), tuple(to), rounding
    )
    shown = tuple(name for name, to in zip(step.returned.names, receivers, strict=True) if to is not None)
    starts = {name: state.start for name, state in step.states.items()}
    return TrainingProgram(
        header, *run_passes(header, lowered, truncate_outputs=False), starts, step=step, result_names=shown
    )


@dataclass(frozen=True, repr=False)
class Terms:
    """What all programs of a training have in common: who takes part, whose the starting weights are, the numbers."""

    parties: tuple[str, ...]
    weights: Weights = PUBLIC
    frac_bits: int = 16
    width: int = 64
    rounding: Rounding = "exact"

    def compile(
        self,
        step: CapturedStep,
        name: str,
        batch: Sequence[str],
        receivers: Sequence[str | None],
        reads: Collection[str] | None = None,
    ) -> TrainingProgram:
        """The program of a step; arguments as those of `compile_step`."""
        return compile_step(
            step, name, self.parties, batch, self.weights, receivers, frac_bits=self.frac_bits, width=self.width,
            rounding=self.rounding, reads=reads,
        )  # fmt: skip


def reading_tables(program: TrainingProgram, batches: Batches) -> TrainingProgram:
    """The same step on rows that their owners share once, as far as `batches.resident` has them shared once."""
    found = tables_of(program, batches)
    if not found:
        return program
    graph, calls = reading(program, batches, found)
    return replace(program, graph=graph, calls=calls, batches=batches, tables=found, with_inputs=program)


def without_outputs(captured: Captured, places: Sequence[int]) -> Captured:
    """The graph without some of its last outputs; what only they need is not computed."""
    if not places:
        return captured
    graph = captured.graph.__class__()
    copied: dict = {}
    graph.graph_copy(captured.graph, copied)
    left = [copied[node] for at, node in enumerate(outputs_of(captured.graph)) if at not in places]
    graph.output(left)
    graph.eliminate_dead_code()
    return replace(captured, graph=graph, outputs=left)
