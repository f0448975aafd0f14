"""From a user's step and the data of several parties to a job that parties run together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from protocols.errors import explain
from protocols.names import PUBLIC
from securemodel.compiler.ir import Rounding
from securemodel.compiler.lowering import lower_model
from securemodel.compiler.owners import Weights, given_weights
from securemodel.compiler.report import Report
from securemodel.errors import CompileError, InputError
from securemodel.planning.costs import Network
from securemodel.planning.plan import make_plan
from securemodel.planning.units import bytes_text, seconds_text
from securemodel.program import Program
from securemodel.shown import Shown
from securemodel.training.capture import capture_step
from securemodel.training.compiling import TrainingProgram, compile_step, kept_states, reading_tables
from securemodel.training.datasets import Batches, Dataset
from securemodel.training.naming import named, tensors
from securemodel.training.privacy import DP, Influence, Privacy, influence, privacy
from securemodel.training.steps import CapturedStep

EVERYBODY = "all"
_MOST_ROWS = 256  # that an evaluation takes at a time


@dataclass(frozen=True, repr=False)
class Evaluation:
    """A function of a data set and the models that is revealed: one program for full batches, one for the rows left over."""

    name: str
    pieces: tuple[tuple[Batches, TrainingProgram], ...]
    receivers: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class TrainingPlan(Shown):
    """What a step costs, and an epoch; `step` is the plan of one step (securemodel.planning).

    What is sent before the first step, of weights and of rows that are shared once, is `loading_bytes` and no part of these.
    """

    step: Any
    steps_per_epoch: int

    @property
    def seconds_per_epoch(self) -> float:
        """Predicted, where the dealer deals each step while the one before runs."""
        return self.steps_per_epoch * max(self.step.seconds, self.step.preparing_seconds)

    @property
    def loading_bytes(self) -> dict[str, int]:
        """Bytes that each party sends before the first step; exact."""
        return self.step.load.sent_bytes

    @property
    def bytes_per_epoch(self) -> dict[str, int]:
        """Bytes that each party sends in the steps of an epoch; exact."""
        return {name: self.steps_per_epoch * count for name, count in self.step.sent_bytes.items()}

    def __str__(self) -> str:
        sent = ", ".join(f"{name} {bytes_text(count)}" for name, count in self.bytes_per_epoch.items())
        took = seconds_text(self.seconds_per_epoch)
        return f"{self.step}\nan epoch: {self.steps_per_epoch} steps, about {took}, sends {sent}"


@dataclass(frozen=True, repr=False)
class Job:
    """A compiled training step with its data."""

    program: TrainingProgram
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
        return self.program.step

    @property
    def digest(self) -> str:
        """SHA-256 of the step's text, which all parties and the dealer compare."""
        return self.program.digest

    def text(self) -> str:
        """The secure graph of a step, one operation a line."""
        return self.program.text()

    def programs(self) -> dict[str, Program]:
        """All programs that a training runs, by what they do."""
        made: dict[str, Program] = {"step": self.program}
        for name, evaluation in self.evaluations.items():
            names = (f"evaluation {name}", f"evaluation {name}, rows left over")
            made.update(zip(names, (program for _, program in evaluation.pieces), strict=False))
        return {**made, **({"guard": self.guard} if self.guard else {})}

    def plan(self, network: str | Network = "lan") -> TrainingPlan:
        """Rounds, bytes and predicted time of a step, and of an epoch."""
        return TrainingPlan(make_plan(self.program, network), self.batches.steps_per_epoch)

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

    def check(self) -> Report:
        """Every operator of the step that has no secure version; nothing, as the step is compiled."""
        step, header = self.program.step, self.program.header
        owners = list(header.inputs)
        lowered = lower_model(
            kept_states(step, header.frac_bits), header.weights, owners, header.frac_bits, width=header.width,
            rounding=header.rounding,
        )  # fmt: skip
        return Report("step", lowered.problems, lowered.operators, lowered.approximated, lowered.unchecked)


def compile_job(
    step: Callable[..., Any],
    models: Any,
    optimizers: Any,
    *,
    batch: Batches,
    parties: Sequence[str],
    reveal: Mapping[str, str] | str | None = None,
    evaluate: Mapping[str, tuple[Callable[..., Any], Dataset, str]] | None = None,
    weights: str | Mapping[str, str] = PUBLIC,
    frac_bits: int = 16,
    width: int = 64,
    rounding: Rounding = "exact",
    guard_every: int = 0,
    dp: DP | None = None,
) -> Job:
    """What `securemodel.compile_training` does, without its ways to run."""
    if dp is not None and (frac_bits, width) != (16, 64):
        raise CompileError(
            explain("dp wants frac_bits=16 and width=64", why="the norm is bounded for these", fix="leave them out")
        )
    captured = capture_step(
        _flat(step, batch), models, optimizers, batch.examples(), scale=sum(batch.sizes), dp=dp, parties=parties
    )
    reach = influence(captured) if dp else None
    owners = batch.owners()
    _check_names(parties, owners)
    receivers = _receivers(captured, reveal, parties)
    given = given_weights(weights if isinstance(weights, str) else {"": PUBLIC, **weights})
    options = {"frac_bits": frac_bits, "width": width, "rounding": rounding}
    program = reading_tables(compile_step(captured, "step", parties, owners, given, receivers, **options), batch)
    kept = {node.attrs["name"] for node in program.graph.nodes if node.op == "keep"}
    evaluations = {
        name: _evaluation(name, function, data, to, models, kept, parties, given, options, batch)
        for name, (function, data, to) in (evaluate or {}).items()
    }
    guard = _guard(models, kept, guard_every, parties, given, options) if guard_every else None
    return Job(program, batch, named(models, "model"), evaluations, guard, guard_every, dp, reach)


NOW, BEFORE = "now ", "before "
"""How a guard's states are named: the weights, and those of the last time that all were in range."""
_MOST_UPDATE = 8.0  # an eighth of what a small number's product with a gradient may be


def _guard(models: Any, kept: set[str], every: int, parties: Sequence[str], given: Weights, options: dict[str, Any]):
    """Says of each trained parameter, to everybody, whether it is within an eighth of its range, and so are its changes."""
    room = 62 - 3 * options["frac_bits"]
    limit = 2.0 ** (min(room, options["width"] - 1 - options["frac_bits"]) - 3)
    both = {prefix + name: copy.deepcopy(m) for prefix in (NOW, BEFORE) for name, m in named(models, "model").items()}
    whole = {
        name: parameter for name, parameter in tensors(both) if name.removeprefix(NOW).removeprefix(BEFORE) in kept
    }
    trained = [name.removeprefix(NOW) for name in whole if name.startswith(NOW)]

    def guard() -> dict[str, torch.Tensor]:
        within = {}
        for name in trained:
            now, change = whole[NOW + name], whole[NOW + name] - whole[BEFORE + name]
            small = change.abs().amax() < _MOST_UPDATE * every
            within[name] = torch.logical_and(now.abs().amax() < limit, small)
        return within

    captured = capture_step(guard, both, None, ())
    return compile_step(captured, "guard", parties, [], given, [EVERYBODY] * len(trained), reads=set(whole), **options)


def _flat(step: Callable[..., Any], batch: Batches) -> Callable[..., Any]:
    """The step as a function of the parts of all columns."""
    (alone,) = {len(column) == 1 for column in batch.data.columns.values()}
    if alone:
        return step

    def joined(*parts: torch.Tensor) -> Any:
        return step(*batch.joined(parts).values())

    joined.__name__ = getattr(step, "__name__", "step")
    return joined


def _check_names(parties: Sequence[str], owners: Sequence[str]) -> None:
    unknown = [name for name in owners if name not in parties]
    if unknown:
        raise CompileError(
            explain(f"{unknown[0]!r} owns data and is no party", fix=f"name it among the parties: {', '.join(parties)}")
        )


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
                explain(f"reveal names {name!r}, which the step does not return", fix=f"it returns {', '.join(names)}")
            )
        if to is not None and to != EVERYBODY and to not in parties:
            raise CompileError(explain(f"{to!r} is to learn {name!r} and is no party", fix='name a party, or "all"'))
    return [wanted[name] for name in names]


def _in_order(data: Dataset, resident: bool | None) -> Iterator[Batches]:
    """All rows, in batches of one size, then those left over."""
    full = data.batches(min(len(data), _MOST_ROWS), shuffle=False, resident=resident)
    yield full
    rest = [at[full.steps_per_epoch * size :] for at, size in zip(data.positions, full.sizes, strict=True)]
    if any(map(len, rest)):
        yield Batches(replace(data, positions=tuple(rest)), tuple(map(len, rest)), 0, False, resident)


def _evaluation(
    name, function, data: Dataset, to: str, models, kept, parties, given, options, batch: Batches
) -> Evaluation:
    if list(data.columns) != list(batch.data.columns):
        raise CompileError(
            explain(f"the evaluation {name!r} has other columns than the batch", fix="give both the same, from split()")
        )
    modes = [(module, module.training) for model in named(models, "model").values() for module in model.modules()]
    pieces = []
    try:
        for module, _ in modes:
            module.training = False
        for batches in _in_order(data, batch.resident):
            captured = capture_step(_flat(function, batches), models, None, batches.examples())
            receivers = [to] * len(captured.returned.names)
            program = compile_step(captured, name, parties, batches.owners(), given, receivers, reads=kept, **options)
            pieces.append((batches, reading_tables(program, batches)))
    finally:
        for module, mode in modes:
            module.training = mode
    return Evaluation(name, tuple(pieces), tuple(receivers))
