"""Training with Paillier alone: two parties, nobody deals. `compile_training(protocol="paillier")`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import safetensors.torch
import torch

from protocols.channel import HEADER_BYTES
from protocols.errors import ConfigError, InputError, SecureModelError, explain
from protocols.files import file_errors, write_atomically
from protocols.identity import PartiesConfig
from protocols.names import PUBLIC
from protocols.paillier.fixed import integers
from securemodel.compiler.report import Report
from securemodel.engines.labels import EXPORT
from securemodel.engines.paillier.compiling import KEY_BITS
from securemodel.engines.paillier.linear_program import LinearProgram, linear_program
from securemodel.engines.paillier.linear_step import (
    DEGREES,
    DIGEST_BYTES,
    INPUT_BITS,
    SCORE_BITS,
    WEIGHT_BITS,
    LinearStep,
    sigmoid_coefficients,
)
from securemodel.engines.paillier.trainer import from_limbs
from securemodel.errors import CompileError
from securemodel.invocation import current
from securemodel.planning.costs import NETWORKS, Network, find_network
from securemodel.planning.plan import Plan, make_plan
from securemodel.planning.units import seconds_text
from securemodel.program import Program
from securemodel.sessions.paillier_training import TrainingSession, open_connection, open_local
from securemodel.shown import Shown
from securemodel.training.capture import capture_step
from securemodel.training.compiling import Terms
from securemodel.training.datasets import Batches
from securemodel.training.job import Job, compile_job
from securemodel.training.linear import MASKED, Linear, recognized
from securemodel.training.naming import named
from securemodel.training.own_rows import check_rows
from securemodel.training.places import Local, remote
from securemodel.training.reference import run_in_float, start_states
from securemodel.training.run import Run

EACH = "each"
"""Of `export(to=)`: each party learns the weights of its own columns."""
SECONDS = {"encryptions": 46e-6, "decryptions": 320e-6, "refreshed": 200e-6, "products": 0.8e-6}
"""Predicted seconds on one core with AVX-512 at 2048 bits (docs/paillier.md); without it about ten times as much. Products
grow with the square of the bits, the others with the cube."""


@dataclass(frozen=True, repr=False)
class LinearPlan(Shown):
    """What a step costs on a network, exact but for seconds; `dealer` is the plan of the same step with the masked engine."""

    network: Network
    rounds: int
    sent_bytes: Mapping[str, int]
    first_epoch_bytes: Mapping[str, int]
    work: Mapping[str, Mapping[str, int]]
    compute_seconds: float
    steps_per_epoch: int
    dealer: Callable[[Network], Plan] | None

    def seconds_on(self, network: Network) -> float:
        """Predicted time of a step, after the first epoch."""
        return (
            self.rounds * network.latency + 8 * max(self.sent_bytes.values()) / network.bandwidth + self.compute_seconds
        )

    @property
    def seconds(self) -> float:
        return self.seconds_on(self.network)

    @property
    def seconds_per_epoch(self) -> float:
        return self.steps_per_epoch * self.seconds

    def __str__(self) -> str:
        lines = [f"a step with Paillier, on {self.network.name}: {self.rounds} rounds, {seconds_text(self.seconds)}"]
        for name, sent in self.sent_bytes.items():
            work = ", ".join(f"{count:,} {what}" for what, count in self.work[name].items())
            lines.append(f"  {name} sends {sent:,} bytes ({self.first_epoch_bytes[name]:,} in the first epoch): {work}")
        lines.append(f"an epoch: {self.steps_per_epoch} steps, about {seconds_text(self.seconds_per_epoch)}")
        if self.dealer is not None:
            lines.append("a step beside the engine with a dealer, whom both parties trust not to work with the other:")
            for name, network in NETWORKS.items():
                ours, theirs = self.seconds_on(network), self.dealer(network).seconds
                cheaper = "Paillier" if ours < theirs else "the dealer's engine"
                lines.append(
                    f"  {name:<6} Paillier {seconds_text(ours):>9}   dealer {seconds_text(theirs):>9}   cheaper: {cheaper}"
                )
        return "\n".join(lines)


@dataclass(frozen=True)
class LinearSimulation(Shown):
    """Steps in float: with the polynomial and with the true sigmoid. `largest` is the largest score by step."""

    largest: tuple[float, ...]
    difference: float
    limit: float

    @property
    def diverges(self) -> bool:
        """Whether a score left the range that the step was compiled for."""
        return not all(largest <= self.limit for largest in self.largest)

    def __str__(self) -> str:
        lines = ["step   largest score"]
        lines += [f"{step:>4} {largest:>15.3f}" for step, largest in enumerate(self.largest, 1)]
        lines.append(f"weights differ from those with the true function by at most {self.difference:.4f}")
        lines.append(f"scores {'left' if self.diverges else 'stayed in'} the range of {self.limit:g}")
        return "\n".join(lines)


@dataclass(frozen=True, repr=False)
class LinearTraining(Job):
    """A linear model's training by two parties, with its data. Made by `compile_training(protocol="paillier")`."""

    program: LinearProgram
    linear: Linear = field(kw_only=True)
    masked: Callable[[], Program] = field(kw_only=True)
    """Compiles the same step for the engine with a dealer."""

    def check_rows(self, me: str) -> None:
        """Raises InputError, which says where, for rows of this party that the training cannot use; sends nothing."""
        shape, labels = self.program.shape, self.program.attrs["labels"]
        limits = {labels: shape.score_limit if shape.kind == "linear" else 1.0}

        def encode(given: Sequence[torch.Tensor | None]) -> None:
            for index, x in enumerate(given):
                if x is not None:
                    limit = limits.get(index, shape.input_limit)
                    integers(x.detach().double().numpy(), INPUT_BITS, limit, f"party {me!r}: input {index}")

        check_rows(self.batches, me, encode)

    def plan(self, network: str | Network = "lan") -> LinearPlan:
        """Rounds, bytes and predicted time of a step beside those of the engine with a dealer."""
        shape, parties = self.program.shape, self.program.parties
        network, cell = find_network(network), shape.key_bits // 4
        dealer: Callable[[Network], Plan] | None = None
        with suppress(SecureModelError):
            dealer = partial(make_plan, self.masked())
        sent, first = (
            {
                name: sum(cell * count + HEADER_BYTES for count in shape.ciphertexts(at, new)) + DIGEST_BYTES
                for at, name in enumerate(parties)
            }
            for new in (0, shape.rows)
        )
        work = {name: shape.work(at, 0) for at, name in enumerate(parties)}
        scale = shape.key_bits / 2048
        seconds = {what: s * scale ** (2 if what == "products" else 3) for what, s in SECONDS.items()}
        spent = max(sum(seconds[what] * count for what, count in each.items()) for each in work.values())
        steps = self.batches.steps_per_epoch
        return LinearPlan(network, shape.rounds, sent, first, work, spent, steps, dealer)

    def check(self) -> Report:
        """Nothing: what cannot be trained is refused when the step is compiled."""
        return Report("step", (), ("linear_step",))

    def simulate(self, steps: int = 10, batches: Callable[[int], Sequence[torch.Tensor]] | None = None):
        """Some steps in float with the polynomial beside the true function: whether scores stay in range.

        `batches(step)` gives made-up data; by default the data of this process are read, which must be all of them.
        """
        states, public = start_states(self.captured), self.captured.public_inputs()
        mine = self.program.start()
        largest = []
        for step in range(steps):
            batch = list(batches(step)) if batches else self.batches.whole(step)
            numbers = public.next()
            states, _ = run_in_float(self.captured, states, batch, numbers, {})
            mine, scores = float_step(self.program, mine, batch, float(numbers[self.linear.rate]))
            largest.append(float(np.abs(scores).max()))
        right = replace(self.program, starts=_of_model(states, self.linear)).start()
        return LinearSimulation(tuple(largest), float(np.abs(mine - right).max()), self.program.shape.score_limit)

    def local(self) -> LinearRun:
        """A run with both parties in this process: for notebooks and tests."""
        return LinearRun(self, Local.of(open_local(self.program)))

    def connect(
        self, me: str | None = None, config: str | Path | PartiesConfig | None = None, *,
        ledger: str | Path | bool = True, insecure_plain: bool = False,
    ) -> LinearRun:  # fmt: skip
        """This party's end of a run between processes; arguments as those of securemodel.connect. No dealer is asked."""
        if current().store:
            raise ConfigError(
                explain("protocol 'paillier' uses no store", why="nothing is dealt", fix="leave out --store")
            )

        def connect(program: Program, me: str, parties: PartiesConfig, tables: Any, channel: Any) -> TrainingSession:
            return open_connection(self.program, me, parties, insecure_plain=insecure_plain)

        where = remote(self.program, me, config, connect, ledger=ledger, insecure_plain=insecure_plain)
        return LinearRun(self, where)


def float_step(
    program: LinearProgram, weights: np.ndarray, batch: Sequence[torch.Tensor], lr: float
) -> tuple[np.ndarray, np.ndarray]:
    """The step in float with the same polynomial: weights float64[columns, outputs] after it, and the scores before."""
    shape, attrs = program.shape, program.attrs
    x = torch.cat([program.columns_of(name, batch) for name in program.parties], 1).numpy()
    y = program.labels(batch).numpy()
    scores = x @ weights
    with np.errstate(over="ignore", invalid="ignore"):  # where a training diverges
        predicted = scores if shape.kind == "linear" else 0.5 + _polynomial(shape, scores)
    gradients = x.T @ (predicted - y)
    return weights - lr * (attrs["factor"] * gradients + attrs["decay"] * weights), scores


def _polynomial(shape: LinearStep, scores: np.ndarray) -> np.ndarray:
    powers, t = range(1, shape.degree + 1, 2), scores / shape.interval
    terms = [c * t**k for k, c in zip(powers, sigmoid_coefficients(shape.degree, shape.interval), strict=True)]
    return sum(terms, start=np.zeros_like(t))


class LinearRun(Run):
    """A training with Paillier under way, as `Run`. `guards` has the sum of t^2 by step, where it was asked for."""

    job: LinearTraining

    def __init__(self, job: LinearTraining, where: Any) -> None:
        super().__init__(job, where)
        self.guards: dict[int, float] = {}

    def _given(self, batch: Sequence[torch.Tensor | None]) -> list[Any]:
        job, numbers = self.job, self._public.next()
        mine = lambda name: name in self._where.parties
        given = list(batch) if batch else job.batches.inputs(self.step_number, mine)
        rows = None if batch else torch.from_numpy(job.batches.positions(self.step_number)[0])
        return [*given, float(numbers[job.linear.rate]), rows, self.step_number]

    def _restored(self, program: Any, returned: Any) -> Any:
        if returned is not None:
            self.guards[self.step_number] = returned
        return program.step.returned.restore([None] * len(program.step.returned.names))

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Errors of these steps say themselves what differs."""
        yield

    def evaluate(self) -> dict[str, Any]:
        """Nothing: `compile_training` refuses evaluate= with this protocol."""
        return {}

    def publish(self, *args: Any, **options: Any) -> NoReturn:
        """Refused: nothing else runs on these shares. Raises InputError."""
        raise InputError(
            explain(
                "protocol 'paillier' has no publish()",
                why="its shares are not those of a compiled program",
                fix='export the weights, and compile their model with weights="NAME"; or train with the masked engine',
            )
        )

    def export(self, path: str | Path | None = None, *, to: str, only: str | None = None) -> dict[str, Any] | None:
        """The model's weights at party `to`, which alone learns them; None at the other.

        With `to="each"` each party learns the weights of its own columns, and the labels' owner the bias; where both
        parties are in this process, a dict of both. `only` can but name the model. With `path`, whoever learns writes
        them as safetensors. Raises InputError, FileError.
        """
        self._start()
        parties, each = self.job.program.parties, to == EACH
        if not each and to not in parties:
            raise InputError(
                explain(f"{to!r} is no party", fix=f"export to one of {', '.join(parties)}, or to {EACH!r}")
            )
        if only is not None and only not in self.job.models:
            raise InputError(explain(f"there is no model {only!r}", fix="leave only= out: a linear model is one"))
        self._where.session.note_weights(parties if each else [to], list(self.job.models))
        first = self.job.program.shape.columns[0]
        mine = dict(zip(parties, (slice(0, first), slice(first, None)) if each else (slice(None),) * 2, strict=True))
        kept = {me: trainer.kept["weights"] for me, trainer in self._where.parties.items()}
        theirs = dict(zip(parties, reversed(mine.values()), strict=True))  # what each sends the other, who may learn it
        sends = {me: kept[me][:, theirs[me]].contiguous().numpy().tobytes() for me in kept}
        whole = next(iter(kept.values()))
        sizes = {name: 8 * whole[:, theirs[name]].numel() for name in parties}
        learnt = {}
        for me, got in self._where.swap(EXPORT, sends, () if each else (to,), sizes).items():
            if each or to == me:
                own = kept[me][:, mine[me]]
                ((_, data),) = got.items()
                other = torch.frombuffer(bytearray(data), dtype=torch.int64).reshape(own.shape)
                learnt[me] = self._state(from_limbs(own) + from_limbs(other), me if each else None)
        if path is not None:
            for me, state in learnt.items():
                target = Path(path) if len(learnt) == 1 else Path(path) / f"{me}.safetensors"
                with file_errors(target):
                    write_atomically(target, safetensors.torch.save(state))
        return learnt if len(learnt) == 2 else next(iter(learnt.values()), None)

    def _state(self, numbers: np.ndarray, me: str | None) -> dict[str, torch.Tensor]:
        """The tensors of the model, or of one party's columns."""
        program = self.job.program
        values = torch.from_numpy(numbers.astype(np.float64) / 2.0**WEIGHT_BITS)
        places, bias = program.places(), program.attrs["bias"]
        names = [program.parties.index(me)] if me else [0, 1]
        state, at, columns, weights = {}, 0, [], []
        for party in names:
            count = len(places[party])
            columns += places[party]
            weights.append(values[at : at + count])
            at += count
            if bias and program.parties[party] == program.labels_owner:
                state[_short(cast(str, self.job.linear.bias))] = values[at].float().contiguous()
                at += 1
        joined = torch.cat(weights).T
        if me is None:
            joined = joined[:, torch.tensor(columns).argsort()]
        state[_short(self.job.linear.weight)] = joined.float().contiguous()
        return state


def _short(name: str) -> str:
    return name.partition(".")[2]


def _of_model(states: Mapping[str, torch.Tensor], linear: Linear) -> dict[str, torch.Tensor]:
    tensors = {"weight": states[linear.weight]}
    return {**tensors, "bias": states[linear.bias]} if linear.bias else tensors


def compile_linear(
    step: Callable[..., Any],
    models: Any,
    optimizers: Any,
    *,
    batch: Batches,
    parties: Sequence[str],
    reveal: Any = None,
    evaluate: Any = None,
    weights: Any = PUBLIC,
    degree: int = 5,
    interval: int = 16,
    input_limit: float = 16.0,
    score_limit: float = 128.0,
    guard_every: int = 0,
    key_bits: int = 3072,
    insecure_key_bits: int | None = None,
) -> LinearTraining:
    """What `compile_training(protocol="paillier")` does.

    `degree` (1, 5 or 9) and `interval` (a power of two) are those of the polynomial in the sigmoid's place; inputs are
    at most `input_limit`, scores `score_limit`; both are public. `guard_every`: after so many steps the sum of (score /
    interval)^2 over the batch is revealed to both parties, 0 for never. `key_bits`: 2048 or 3072; `insecure_key_bits`:
    any size, for tests. Raises CompileError, InputError.
    """
    _check_asked(reveal, evaluate, weights, batch, parties)
    _check_numbers(degree, interval, input_limit, score_limit, key_bits)
    captured = capture_step(step, models, optimizers, batch.examples())
    linear, owners = recognized(captured, batch), tuple(batch.owners())
    columns: list[list[int]] = [[], []]
    places: list[list[int]] = [[], []]
    at = 0
    for index in linear.columns:
        rank, width = list(parties).index(owners[index]), captured.batch[index].shape[1]
        columns[rank].append(index)
        places[rank] += range(at, at + width)
        at += width
    if not all(columns):
        missing = parties[0] if not columns[0] else parties[1]
        what = f"protocol 'paillier' wants columns of both parties, and {missing!r} has none"
        raise CompileError(explain(what, fix=MASKED))
    has_bias = [bool(linear.bias) and parties[rank] == owners[linear.labels] for rank in (0, 1)]
    shape = LinearStep(
        linear.kind, batch.sizes[0], (len(places[0]) + has_bias[0], len(places[1]) + has_bias[1]), linear.outputs,
        degree, interval.bit_length() - 1, float(input_limit), float(score_limit), insecure_key_bits or key_bits,
    )  # fmt: skip
    if guard_every and linear.kind == "linear":
        raise InputError(
            explain("guard_every= is for logistic regression: a linear one has no interval", fix="leave it out")
        )
    shape.check()
    program = linear_program(
        shape, tuple(parties), owners, tuple(part.shape for part in captured.batch),
        _of_model(start_states(captured), linear), captured, columns=columns, places=places, labels=linear.labels,
        bias=bool(linear.bias), factor=linear.factor, decay=linear.decay, guard=guard_every,
        insecure=insecure_key_bits is not None,
    )  # fmt: skip
    masked = lambda: compile_job(step, models, optimizers, batch, Terms(tuple(parties))).program
    return LinearTraining(program, batch, named(models, "model"), {}, linear=linear, masked=masked)


def _check_asked(reveal: Any, evaluate: Any, weights: Any, batch: Batches, parties: Sequence[str]) -> None:
    asked = reveal if isinstance(reveal, Mapping) else {"": reveal}
    wrong = None
    if any(to is not None for to in asked.values()):
        wrong = "reveal= of what the step returns: the loss is not computed"
    elif evaluate:
        wrong = "evaluate=: export the weights, and evaluate in the clear or with securemodel.compile"
    elif weights != PUBLIC:
        wrong = "starting weights of one party: they are public"
    elif len(parties) != 2:
        wrong = f"{len(parties)} parties: it is for two"
    elif any(name not in parties for name in batch.owners()):
        wrong = "data of somebody who is no party"
    elif any(len(column) != 1 for column in batch.data.columns.values()):
        wrong = "rows of several parties: each party has columns of all rows"
    if wrong:
        raise CompileError(explain(f"protocol 'paillier' cannot do this: {wrong}", fix=MASKED))


def _check_numbers(degree: int, interval: int, input_limit: float, score_limit: float, key_bits: int):
    if degree not in DEGREES:
        raise InputError(
            explain(
                f"degree = {degree!r}", why="with other degrees the leading coefficient is negative, and a score outside "
                "of the interval is driven further out: training diverges", fix=f"use one of {DEGREES}",
            )
        )  # fmt: skip
    if not isinstance(interval, int) or interval < 1 or interval & (interval - 1) or interval > 1 << SCORE_BITS:
        raise InputError(explain(f"interval = {interval!r}", fix="use a power of two, such as 16"))
    if not 0 < input_limit <= 1 << 20 or not interval <= score_limit <= 1 << 20:
        raise InputError(
            explain(f"input_limit = {input_limit!r}, score_limit = {score_limit!r}",
                    fix="use numbers above 0 and up to 2^20; score_limit at least the interval")
        )  # fmt: skip
    if key_bits not in KEY_BITS:
        raise InputError(explain(f"key_bits = {key_bits!r}", fix="use 3072, or 2048"))
