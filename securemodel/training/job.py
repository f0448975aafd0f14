"""From a user's step and the data of several parties to a job that parties run together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from protocols.errors import explain
from securemodel.errors import CompileError, InputError
from securemodel.program import Program, StepProgram
from securemodel.training.arguments import check_changes, check_receiver, check_terms, check_weights
from securemodel.training.capture import capture_step
from securemodel.training.compiling import Terms, TrainingProgram, reading_tables
from securemodel.training.datasets import Batches, Dataset
from securemodel.training.evaluating import Evaluation, compile_evaluation, compile_guard
from securemodel.training.naming import named
from securemodel.training.own_rows import check_rows, encoder
from securemodel.training.privacy import DP, Influence, Privacy, influence, privacy
from securemodel.training.steps import CapturedStep


@dataclass(frozen=True, repr=False)
class Job:
    """A compiled training step with its data."""

    program: StepProgram
    batches: Batches
    models: Mapping[str, torch.nn.Module]
    evaluations: Mapping[str, Evaluation]
    guard: TrainingProgram | None = None
    guard_every: int = 0
    dp: DP | None = None
    influence: Influence | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.program.graph.nodes)} nodes, parties={list(self.program.parties)})"

    @property
    def captured(self) -> CapturedStep:
        """The step as it was captured. Raises InputError in another process, which is not given it."""
        if self.program.step is None:
            fix = "call compile_training() in the process that trains"
            raise InputError(explain("this job comes from another process, without its captured step", fix=fix))
        return self.program.step

    @property
    def digest(self) -> str:
        """SHA-256 of the step's text, which all parties and the dealer compare."""
        return self.program.digest

    def check_rows(self, me: str) -> None:
        """Raises InputError, which says where, for rows of this party that the training cannot use; sends nothing."""
        pieces = [piece for evaluation in self.evaluations.values() for piece in evaluation.pieces]
        for batches, program in [(self.batches, self.program), *pieces]:
            check_rows(batches, me, encoder(program, me))

    def text(self) -> str:
        """The secure graph of a step, one operation a line."""
        return self.program.text()

    def programs(self) -> dict[str, Program]:
        """All programs that a training runs, by what they do."""
        programs: dict[str, Program] = {"step": self.program}
        for name, evaluation in self.evaluations.items():
            names = (f"evaluation {name}", f"evaluation {name}, rows left over")
            programs.update(zip(names, (program for _, program in evaluation.pieces), strict=False))
        return {**programs, **({"guard": self.guard} if self.guard else {})}

    def privacy(self, epochs: int, delta: float) -> Privacy:
        """The epsilon of the weights after so many epochs, and what it does not cover. Raises InputError."""
        return self.privacy_of(epochs, delta)

    def privacy_of(self, steps: int, delta: float) -> Privacy:
        """The same where one row is in so many steps."""
        if self.dp is None or self.influence is None:
            what = "this training has no differential privacy"
            raise InputError(explain(what, fix="compile it with dp=securemodel.DP(noise_multiplier=, max_grad_norm=)"))
        return privacy(self.dp, steps * self.influence.gradients, delta, self._uncovered(self.influence))

    def _uncovered(self, influence: Influence) -> list[str]:
        """What is revealed, or may be exported, and is made of rows without noise."""
        learns = dict(zip(self.program.result_names, self.program.header.outputs, strict=True))
        revealed = [name for name in influence.returned if name in learns]
        found = [f"{name!r} of each step, which {learns[name]} learns" for name in revealed]
        found += [
            f"evaluation {name!r}, each time, which {evaluation.receivers[0]} learns"
            for name, evaluation in self.evaluations.items()
            if evaluation.receivers
        ]
        kinds = {"parameter": "a parameter", "buffer": "a buffer"}
        kept = [name for name in influence.states if self.captured.states[name].kind in kinds]
        found += [
            f"{name}, {kinds[self.captured.states[name].kind]} that steps make of rows: export gives it, publish uses it"
            for name in kept
        ]
        if self.guard_every and kept:
            found.append(f"the guard's bits for {', '.join(kept)}")
        return found


def compile_job(
    step: Callable[..., Any],
    models: Any,
    optimizers: Any,
    batch: Batches,
    terms: Terms,
    *,
    reveal: Mapping[str, str] | str | None = None,
    evaluate: Mapping[str, tuple[Callable[..., Any], Dataset, str]] | None = None,
    guard_every: int = 0,
    dp: DP | None = None,
    secret_dropout: bool = False,
    contributors: Sequence[str] = (),
) -> Job:
    """What `securemodel.compile_training` does, without its ways to run."""
    if dp is not None and (terms.frac_bits, terms.width) != (16, 64):
        raise CompileError(
            explain("dp wants frac_bits=16 and width=64", why="the norm is bounded for these", fix="leave them out")
        )
    check_terms(terms.parties, terms.weights, batch, terms.frac_bits, terms.width, terms.rounding, contributors)
    captured = capture_step(
        batch.flat(step), models, optimizers, batch.examples(), scale=sum(batch.sizes), dp=dp, parties=terms.parties,
        secret_dropout=secret_dropout,
    )  # fmt: skip
    check_changes(captured, optimizers)
    check_weights(terms.weights, named(models, "model"), captured)
    reach = influence(captured) if dp else None
    owners = batch.owners()
    receivers = _receivers(captured, reveal, terms.parties)
    program = reading_tables(terms.compile(captured, "step", owners, receivers), batch)
    kept = set(program.graph.keeps())
    evaluations = {
        name: compile_evaluation(name, function, data, to, models, kept, terms, batch)
        for name, (function, data, to) in (evaluate or {}).items()
    }
    guard = compile_guard(models, kept, guard_every, terms) if guard_every else None
    return Job(program, batch, named(models, "model"), evaluations, guard, guard_every, dp, reach)


def _receivers(
    captured: CapturedStep, reveal: Mapping[str, str] | str | None, parties: Sequence[str]
) -> list[str | None]:
    """Who learns each tensor that the step returns. Raises CompileError."""
    names = captured.returned.names
    if reveal is None or isinstance(reveal, str):
        wanted = dict.fromkeys(names, reveal)
    else:
        wanted = {**dict.fromkeys(names), **reveal}
    for name, to in wanted.items():
        if name not in names:
            raise CompileError(
                explain(
                    f"reveal names {name!r}, which the step does not return",
                    fix=f"it returns {', '.join(names) or 'nothing'}",
                )
            )
        if to is not None:
            check_receiver(to, repr(name), parties)
    return [wanted[name] for name in names]
