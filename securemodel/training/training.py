"""`compile_training`, and the job it makes: what a script holds to try, plan and run a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from protocols.devices import Device
from protocols.errors import explain
from protocols.identity import PartiesConfig
from protocols.names import PUBLIC
from securemodel.compiler.ir import Rounding
from securemodel.compiler.lowering import lower_model
from securemodel.compiler.owners import given_weights
from securemodel.compiler.report import Report
from securemodel.errors import CompileError
from securemodel.planning.costs import Network
from securemodel.planning.plan import make_plan
from securemodel.planning.units import bytes_text, seconds_text
from securemodel.shown import Shown
from securemodel.training.arguments import check_arguments
from securemodel.training.compiling import Terms, TrainingProgram, kept_states
from securemodel.training.datasets import Batches, Dataset
from securemodel.training.job import Job, compile_job
from securemodel.training.paillier import LinearTraining, compile_linear
from securemodel.training.privacy import DP
from securemodel.training.run import Run, local_run, remote_run, share_rows
from securemodel.training.simulation import Simulation, simulate


@dataclass(frozen=True, repr=False)
class TrainingPlan(Shown):
    """What a step costs, and an epoch; `step` is the plan of one step (securemodel.planning).

    What is sent before the first step, of weights and of rows that are shared once, is `loading_bytes` and no part of these.
    """

    step: Any
    steps_per_epoch: int
    left_out: int = 0

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
        left = f"; {self.left_out} rows are left out of it" if self.left_out else ""
        return f"{self.step}\nan epoch: {self.steps_per_epoch} steps, about {took}, sends {sent}{left}"


@dataclass(frozen=True, repr=False)
class Training(Job):
    """A compiled training step with its data. Made by `compile_training`."""

    program: TrainingProgram

    def plan(self, network: str | Network = "lan") -> TrainingPlan:
        """Rounds, bytes and predicted time of a step, and of an epoch."""
        return TrainingPlan(make_plan(self.program, network), self.batches.steps_per_epoch, self.batches.left_out)

    def check(self) -> Report:
        """Every operator of the step that has no secure version; nothing, as the step is compiled."""
        step, header = self.captured, self.program.header
        owners = list(header.inputs)
        lowered = lower_model(
            kept_states(step, header.frac_bits), header.weights, owners, header.frac_bits, width=header.width,
            rounding=header.rounding,
        )  # fmt: skip
        return Report("step", lowered.problems, lowered.operators, lowered.approximated, lowered.unchecked)

    def simulate(self, steps: int = 10, batches: Callable[[int], Sequence[torch.Tensor]] | None = None) -> Simulation:
        """Some steps in fixed point in the clear beside float: losses, and how near each value came to the end of its range.

        `batches(step)` gives made-up data; by default the data of this process are read, which must be all of them.
        """
        if batches is None:
            for me in (*self.program.parties, *self.program.contributors):
                self.check_rows(me)
        return simulate(self.program, self.captured, self.batches, steps, batches)

    def local(self, *, device: Device = None) -> Run:
        """A run with all parties in this process: for notebooks and tests. `device` as of securemodel.local."""
        return local_run(self, device)

    def share_rows(
        self,
        folder: str | Path,
        me: str | None = None,
        config: str | Path | PartiesConfig | None = None,
        *,
        ledger: str | Path | bool = True,
    ) -> dict[str, Path]:
        """Writes the rows of a contributor for the parties, and is all that it does: a file for each, by its name.

        Only the party that a file is for can read it, and it learns nothing of the rows. Each call draws new keys, so all
        parties need the files of one call. `config` is a parties file with [contributors.NAME], and the identity of
        `me` in [me]. Raises InputError for rows that the training cannot use, ConfigError, FileError.
        """
        return share_rows(self, Path(folder), me, config, ledger)

    def connect(self, me: str | None = None, config: str | Path | PartiesConfig | None = None, **options: Any) -> Run:
        """This party's end of a run between processes; arguments as those of securemodel.connect."""
        return remote_run(self, me, config, **options)


def compile_training(
    step: Callable[..., Any],
    models: Any,
    optimizers: Any,
    *,
    batch: Batches,
    parties: Sequence[str],
    contributors: Sequence[str] = (),
    reveal: Mapping[str, str] | str | None = None,
    evaluate: Mapping[str, tuple[Callable[..., Any], Dataset, str]] | None = None,
    weights: str | Mapping[str, str] = PUBLIC,
    frac_bits: int = 16,
    width: int = 64,
    rounding: Rounding = "exact",
    guard_every: int = 0,
    dp: DP | None = None,
    dropout: Literal["public", "secret"] = "public",
    protocol: str = "masked",
    **options: Any,
) -> Training | LinearTraining:
    """Compiles a training step into a program that parties run together, on data that nobody shows.

    `step` is a plain function of the batch's columns that also runs in the clear: it computes a loss of `models`, calls
    `backward()`, and steps the `optimizers` (one of each, a sequence, or a mapping by name). `batch` says whose the
    columns are, and in which order rows come (`dataset(...).batches(...)`). `contributors` are owners of data who are no
    parties: each shares its rows beforehand (`Training.share_rows`) and may leave then. `reveal` maps what the step returns, by name,
    to who learns it (a party, "all"), or names one for everything; what it does not name is not revealed. `evaluate` maps
    names to (function of the columns, data set, receiver): what it returns is summed over batches, or put one below the
    other where it has rows. `weights` owns the starting values: "public" where everybody has them (from a seed), one
    party, or a mapping by prefix of names such as "model.head". `guard_every`: after so many steps everybody learns of
    each parameter whether its magnitude is within an eighth of its range; if not, the run goes back to the last time that
    all were, and raises TrainingDiverged. `dp`: gradients are clipped and noisy, so that weights say little of
    any row; `privacy` says how little. `dropout`: masks of dropout follow from a public seed, or are known to nobody, at the
    price of comparisons. Other arguments as of `securemodel.compile`.

    `protocol="paillier"`: linear models by two parties and no dealer; `options` are those of
    `securemodel.training.paillier.compile_linear`. Raises UnsupportedOperator, CompileError.
    """
    check_arguments(step, batch, parties, reveal, evaluate, guard_every, contributors)
    if protocol == "paillier":
        if (frac_bits, width, rounding) != (16, 64, "exact"):
            raise CompileError("frac_bits, width and rounding are not for protocol 'paillier': leave them out")
        if dp is not None:
            what = "dp is not for protocol 'paillier': its gradients are neither clipped nor given noise"
            raise CompileError(explain(what, fix="leave protocol out; a dealer is needed then"))
        if contributors:
            what = "contributors is not for protocol 'paillier', whose two parties both take part"
            raise CompileError(explain(what, fix="leave it out, or leave protocol out; a dealer is needed then"))
        if dropout != "public":
            raise CompileError("dropout is not for protocol 'paillier', whose models have none: leave it out")
        return compile_linear(
            step, models, optimizers, batch=batch, parties=parties, reveal=reveal, evaluate=evaluate, weights=weights,
            guard_every=guard_every, **options,
        )  # fmt: skip
    if protocol != "masked" or options:
        what = f"protocol {protocol!r}" if protocol != "masked" else f"{', '.join(options)} with protocol 'masked'"
        raise CompileError(explain(f"there is no {what}", fix="training knows 'masked' and 'paillier'"))
    if dropout not in ("public", "secret"):
        raise CompileError(
            explain(f"dropout={dropout!r} is neither 'public' nor 'secret'", fix="choose one of the two")
        )
    given = given_weights(weights if isinstance(weights, str) else {"": PUBLIC, **weights})
    terms = Terms(tuple(parties), given, frac_bits, width, rounding)
    job = compile_job(
        step, models, optimizers, batch, terms, reveal=reveal, evaluate=evaluate, guard_every=guard_every, dp=dp,
        secret_dropout=dropout == "secret", contributors=contributors,
    )  # fmt: skip
    return Training(**vars(job))
