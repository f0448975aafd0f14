"""A training under way: steps, evaluations, checkpoints, export; locally, or one party's end of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch.utils._pytree import tree_leaves

from protocols.channel import Channel
from protocols.devices import Device
from protocols.errors import ConfigError, InputError, Mismatch, PreprocessingUsedUp, explain
from protocols.files import file_errors, write_atomically
from protocols.identity import PartiesConfig
from securemodel.compiler.capture import Examples, tensors_in
from securemodel.compiler.positions import table_nodes
from securemodel.compiler.postprocess import Reveal
from securemodel.engines.labels import EXPORT
from securemodel.engines.masked.tables import Tables
from securemodel.engines.masked.walk import MaskedWalk
from securemodel.errors import TrainingDiverged
from securemodel.invocation import Progress as Report
from securemodel.invocation import current
from securemodel.ledger import book_of, record_for
from securemodel.program import Program, StepProgram
from securemodel.sessions.masked import open_connection, open_local
from securemodel.sessions.remote import contributor, place
from securemodel.sessions.session import Session
from securemodel.training import checkpoints, contributing
from securemodel.training.agreeing import toss
from securemodel.training.checkpoints import Progress
from securemodel.training.compiling import TrainingProgram
from securemodel.training.contributing import contributed_here, tables_with
from securemodel.training.evaluating import BEFORE, NOW, Evaluation, together
from securemodel.training.exporting import Exported
from securemodel.training.job import Job
from securemodel.training.noise import NoiseSource
from securemodel.training.places import Local, Place, remote
from securemodel.training.privacy import Privacy, TakenPart
from securemodel.training.publishing import publish
from securemodel.training.resuming import groups_of, last_common_step, put_groups, read_all
from securemodel.training.stores import check_no_contributors, store_of

_MOST_FRESH = (1 << 16) - 1  # indices of one stream


@dataclass(frozen=True, repr=False)
class _Snapshot:
    """Where a run can go back to, in memory."""

    kept: dict[str, dict[str, torch.Tensor | None]]
    step: int
    memory: dict[str, dict[str, float]]


class Run:
    """A training under way: a context manager. Every party makes the same calls in the same order.

    `step_number` counts the steps made; `resume` goes on where checkpoints end.
    """

    def __init__(self, job: Job, where: Place, tables: Mapping[int, dict[str, Tables]] | None = None) -> None:
        self.job, self._where = job, where
        self.step_number, self._times = 0, 0
        self._public = job.captured.public_inputs()
        self._scheduler: Any = None
        self._started = False
        self._seed = 0
        self._steps: int | None = None
        self._scheduler_state: Any = None
        self._kept: dict[str, dict[str, torch.Tensor | None]] = {}
        self._name = ""
        self._published = False
        self._first = self._runs = 0  # of the session: the step of its first run, and how many were begun
        self._resident = bool(table_nodes(job.program.graph))
        self._noise = {me: NoiseSource() for me in where.parties} if job.captured.noise else {}
        self._taken = TakenPart()
        self._tables = dict(tables or {})
        """By program, what each party here has of the rows that were shared for it, in this session or an earlier one. Its
        id, as two evaluations may be alike but for their data."""

    # ---- steps
    def _start(self) -> None:
        if self._published:
            raise InputError(explain("this training has ended: its weights were published",
                                     fix="write a checkpoint before publish(), and resume another run there"))  # fmt: skip
        if self._started:
            return
        self._toss()
        self._load()

    def _load(self) -> None:
        with self._telling():
            for me in self._where.parties:
                self.job.check_rows(me)
        self._load_session(self.job.program, self.step_number)
        self._started = True
        self._keep()
        self._safe = self._snapshot()

    def _keep(self) -> None:
        """Holds on to what each party here has kept, for the next session."""
        self._kept = {me: dict(party.kept) for me, party in self._where.parties.items()}

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """An error inside ends the session, and the peers hear why."""
        try:
            yield
        except BaseException as error:
            self._where.fail(error)
            raise

    def _load_session(self, program: Program, first: int = 0, starts: Any = None) -> None:
        """Shares weights (those of the program, or these) and rows; the next run reads the rows of the step `first`."""
        tables = bool(table_nodes(program.graph))
        walks = {me: cast(MaskedWalk, walk) for me, walk in self._where.session.walks.items() if tables}
        for walk in walks.values():
            walk.begin_at(first)
        self._where.session.load(program, program.model if starts is None else starts)
        if walks:
            self._tables[id(program)] = {me: walk.party.tables for me, walk in walks.items()}
        self._first, self._runs = first, 0

    def _toss(self) -> None:
        """The name of this training and the seed of its public random numbers."""
        tossed = toss(self.job, self._where, self._shared())
        self._name, self._seed = tossed.hex()[:32], int.from_bytes(tossed[16:24], "little") >> 1

    def _shared(self) -> str:
        """Which rows owners who left have given: the same at every party."""
        for own in self._tables.get(id(self.job.program), {}).values():
            return " ".join(f"{owner}:{given.sharing}" for owner, given in sorted(own.contributed.items()))
        return ""

    def step(self, *batch: torch.Tensor | None) -> Any:
        """One step on the next batch (or this one: tensors of the parts of all columns); what the step returns.

        None stands for what this process may not learn.
        """
        self._start()
        job = self.job
        with self._explaining():
            self._where.session.walk.check_prepared()
        given = self._given(batch)
        if self._resident and self.step_number != self._first + self._runs:  # a run failed: its rows come again
            self._keep()
            self._go_on_with(job.program)
        self._runs += 1
        self._taken.note(self.step_number, bool(batch))
        with self._explaining():
            returned = self._where.session.run(*given)
        self.step_number += 1
        result = self._restored(job.program, returned)
        if job.guard and self.step_number % job.guard_every == 0:
            self._guard(job.guard)
        if report := current().progress:
            report(self._progress(result))
        return result

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Says what an error of the engine means in a training.

        Another digest is of other public numbers: that the program is the same, parties saw when they met.
        """
        try:
            yield
        except PreprocessingUsedUp as error:
            raise PreprocessingUsedUp(
                explain(
                    f"the prepared steps are used up: step {self.step_number + 1} has none",
                    why=str(error).splitlines()[0],
                    fix="run.checkpoint() still keeps the steps made; start again with resume() and another store, or a dealer",
                )
            ) from error
        except Mismatch as error:
            raise Mismatch(
                error.party,
                explain(
                    f"party {error.party!r} has other public numbers in step {self.step_number + 1}",
                    why="a learning rate, momentum, weight decay or dp differs, or a schedule is another or stepped elsewhere",
                    fix="make the same calls of the same optimizers and schedules at every party",
                ),
            ) from error

    def _guard(self, guard: TrainingProgram) -> None:
        """Raises TrainingDiverged, after going back to the last step at which all parameters were in range."""
        self._keep()
        before = {
            me: {f"{BEFORE}{name}": share for name, share in kept.items()} for me, kept in self._safe.kept.items()
        }
        for me, kept in self._kept.items():
            before[me].update({f"{NOW}{name}": share for name, share in kept.items()})
        self._go_on_with(guard, before)
        within = self._restored(guard, self._where.session.run())
        outside = [name for name, inside in within.items() if not bool(inside)]
        failed, now = self.step_number, self._snapshot()
        if outside:
            self._put_back(self._safe)
        else:
            self._safe = now
        self._go_on_with(self.job.program)
        if outside:
            raise TrainingDiverged(
                explain(
                    f"after step {failed}, {', '.join(outside)} is no longer within its range",
                    why="numbers that large leave the ring, and what follows from them is meaningless",
                    fix=f"this run is back at step {self.step_number}: go on with a smaller learning rate or clipped gradients; "
                    "simulate() shows the ranges",
                )
            )

    def _snapshot(self) -> _Snapshot:
        memory = {name: dict(numbers) for name, numbers in self._public.memory.items()}
        return _Snapshot({me: dict(kept) for me, kept in self._kept.items()}, self.step_number, memory)

    def _put_back(self, safe: _Snapshot) -> None:
        self._kept = {me: dict(kept) for me, kept in safe.kept.items()}
        self.step_number = safe.step
        self._public.memory = {name: dict(numbers) for name, numbers in safe.memory.items()}

    def _given(self, batch: Sequence[torch.Tensor | None]) -> list[Any]:
        """The inputs of the next step: this batch or the next one, and the public numbers."""
        job, mine = self.job, lambda name: name in self._where.parties
        if batch and self._resident:
            raise InputError(
                explain(
                    "this training takes no batches of your own",
                    why="its rows are shared once, and each step reads those whose turn it is",
                    fix="compile it with batches(..., resident=False)",
                )
            )
        given = list(batch) if batch else job.batches.inputs(self.step_number, mine)
        numbers = self._public.next()
        public = [numbers[name] for name in job.captured.numbers]
        public += [self._draw(index, self.step_number) for index in range(len(job.captured.random))]
        noise = [
            self._noise[drawn.party].draw_for(drawn) if mine(drawn.party) else None for drawn in job.captured.noise
        ]
        return [*given, *public, *noise]

    def _progress(self, result: Any) -> Report:
        names = self.job.captured.returned.names
        values = dict(zip(names, tensors_in(result), strict=False)) if None not in tree_leaves(result) else {}
        numbers = {name: value.item() for name, value in values.items() if value.numel() == 1}
        return Report(
            self.step_number, self._steps, (self.step_number - 1) // self.job.batches.steps_per_epoch + 1, numbers
        )

    def _draw(self, index: int, step: int) -> torch.Tensor:
        """Public random numbers, the same at all parties: they follow from the tossed seed and hide nothing."""
        digest = hashlib.sha256(f"{self._seed} {step} {index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return self.job.captured.random[index].draw(generator)

    def _restored(self, program: StepProgram, returned: Any) -> Any:
        outputs = program.header.outputs
        parts = list(returned) if isinstance(returned, tuple) else [returned]
        if not outputs:
            parts = []
        shown = iter(parts)
        step = program.step
        values = [next(shown) if name in program.result_names else None for name in step.returned.names]
        return step.returned.restore(values)

    def steps(self, count: int | None = None) -> Iterator[Any]:
        """What the next `count` steps return (those of an epoch)."""
        for _ in range(self.job.batches.steps_per_epoch if count is None else count):
            yield self.step()

    def train_epoch(self, progress: Callable[[int, Any], None] = lambda step, returned: None) -> list[Any]:
        """The steps up to the end of the epoch; what they return. `progress` is told the step number and its result."""
        size = self.job.batches.steps_per_epoch
        returned: list[Any] = []
        while not returned or self.step_number % size:
            returned.append(self.step())
            progress(self.step_number, returned[-1])
        return returned

    def epochs(self, count: int, scheduler: Any = None) -> Iterator[int]:
        """The numbers of the epochs up to `count` that are still to be made, after each of which the scheduler steps."""
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            what = "epochs() cannot step ReduceLROnPlateau, which needs a loss"
            fix = (
                "leave it out, and call schedule.step(loss) at the end of each epoch with a loss that all parties learn"
            )
            raise InputError(explain(what, fix=f"{fix}; run.scheduled_by(schedule) keeps it in checkpoints"))
        self._start()
        self._steps = count * self.job.batches.steps_per_epoch
        if scheduler is not None:
            self.scheduled_by(scheduler)
        for epoch in range(self.step_number // self.job.batches.steps_per_epoch, count):
            yield epoch
            if scheduler is not None:
                scheduler.step()

    def scheduled_by(self, scheduler: Any) -> None:
        """Names the scheduler whose state checkpoints keep; a resumed run puts it back."""
        self._scheduler = scheduler
        if self._scheduler_state is not None:
            scheduler.load_state_dict(self._scheduler_state)
            self._scheduler_state = None

    def privacy(self, delta: float) -> Privacy:
        """The epsilon of the weights after the steps made so far, and what it does not cover. Raises InputError."""
        return self.job.privacy_of(self._taken.most(self.job.batches.steps_per_epoch), delta)

    # ---- what may be learned
    def evaluate(self) -> dict[str, Any]:
        """What the functions of `compile_training(evaluate=)` give for the weights as they are now."""
        self._start()
        self._keep()
        found = {name: self._evaluated(evaluation) for name, evaluation in self.job.evaluations.items()}
        self._go_on_with(self.job.program)
        return found

    def _evaluated(self, evaluation: Evaluation) -> Any:
        results = []
        for batches, program in evaluation.pieces:
            self._go_on_with(program, again_after=batches.steps_per_epoch)
            for step in range(batches.steps_per_epoch):
                given = batches.inputs(step, lambda name: name in self._where.parties)
                results.append(self._restored(program, self._where.session.run(*given)))
        return together(results)

    def _go_on_with(
        self,
        program: Program,
        states: Mapping[str, Mapping[str, Any]] | None = None,
        starts: Any = None,
        again_after: int = 0,
    ) -> None:
        """Ends the session and opens one of another program, which finds the states as they are, or these.

        `again_after`: so many steps have all its rows, and are made whole.
        """
        states = self._kept if states is None else states
        tables = self._tables.get(id(program)) or {me: Tables() for me in self._where.parties}
        self._where = self._where.opened(program, tables)
        first = self.step_number if program is self.job.program else 0
        if again_after:
            first = self._where.session.walk.first_of(again_after)
        self._load_session(program, first, starts)
        for me, party in self._where.parties.items():
            party.kept = {name: states[me][name] for name in party.kept}

    def export(
        self, path: str | Path | None = None, *, to: str, only: str | None = None
    ) -> dict[str, torch.Tensor] | None:
        """The models' parameters and buffers at party `to`, which alone learns them; None at the others.

        `only`: of the model of this name, and nothing of the others. With `path`, `to` also writes them as safetensors
        that `model.load_state_dict` takes; names of several models begin with the model's. Raises InputError, FileError.
        """
        self._start()
        parties = self.job.program.parties
        if to not in parties:
            raise InputError(explain(f"{to!r} is no party", fix=f"export to one of {', '.join(parties)}"))
        exported = Exported(self.job, only)
        self._where.session.note_weights([to], [only] if only else list(self.job.models))
        sends = {me: exported.sent(me, shares) for me, shares in self._fresh().items()}
        got = self._where.swap(EXPORT, sends, (to,), exported.sizes)
        if to not in self._where.parties:
            return None
        state = exported.state({**got[to], to: sends[to]})
        if path is not None:
            with file_errors(Path(path)):
                write_atomically(Path(path), safetensors.torch.save(state))
        return state

    def publish(
        self,
        model: torch.nn.Module,
        example_inputs: torch.Tensor | Examples,
        *,
        inputs: str | Sequence[str],
        outputs: str | Sequence[str],
        reveal: Reveal = "all",
    ) -> Session:
        """A session that runs inputs through the trained weights, which stay in shares: nobody learns them. It ends the run.

        `model` is one of the job's models, or a module made of them, and runs in evaluation mode. The other arguments are
        those of `securemodel.compile`: `inputs` says who has each input, `outputs` who learns each result. The parties
        are those of the training. Raises UnsupportedOperator, CompileError, InputError.
        """
        self._start()
        published = publish(self.job, model, example_inputs, inputs, outputs, reveal)
        self._keep()
        self._go_on_with(published.program, starts=published.starts)
        self._published = True
        self._where.session.weights_stay()
        return self._where.session

    # ---- checkpoints
    def _fresh(self) -> dict[str, dict[str, torch.Tensor]]:
        if self._where.session.program is not self.job.program:
            raise InputError(explain("the weights of this run are gone", why="an evaluation or a guard failed",
                                     fix="start again, and resume() from the last checkpoint"))  # fmt: skip
        if self._times == _MOST_FRESH:
            raise InputError(explain(f"this run has made {_MOST_FRESH} checkpoints and exports, which is all it can",
                                     why="each hides its shares by a number of 16 bits",
                                     fix="resume() from the last checkpoint, and write fewer"))  # fmt: skip
        self._times += 1
        return {me: party.fresh(self._times) for me, party in self._where.parties.items()}

    def checkpoint(self, folder: str | Path) -> None:
        """Writes what each party here needs to go on: its own folder inside, encrypted under its own key. Raises FileError."""
        self._start()
        progress = Progress(
            self._name, self.job.digest, self.step_number, self._seed, self._public.memory,
            groups_of(self.job.captured.updates),
            json.loads(json.dumps(self._scheduler.state_dict())) if self._scheduler is not None else None,
            self._taken.saved(),
        )  # fmt: skip
        for me, shares in self._fresh().items():
            path = Path(folder) / me
            checkpoints.write(path, me, self._where.key(me, path), shares, progress)

    def resume(self, folder: str | Path) -> int:
        """Goes on after the last step of which all parties have a checkpoint, or starts; the number of that step.

        Call it before anything else. Raises Mismatch where the parties have checkpoints that do not belong together.
        """
        if self._started:
            raise InputError(explain("resume() comes too late", fix="call it before the first step"))
        step = last_common_step(self.job, self._where, Path(folder), self._shared())
        if step is None:
            self._start()
            return 0
        self._restore(*read_all(self.job, self._where, Path(folder), step))
        return self.step_number

    def _restore(self, shares: Mapping[str, Mapping[str, torch.Tensor]], progress: Progress) -> None:
        self._name, self._seed, self.step_number = progress.run, progress.seed, progress.step
        self._load()
        for me, party in self._where.parties.items():
            party.kept = dict(shares[me])
        self._public.memory = {name: dict(numbers) for name, numbers in progress.memory.items()}
        self._taken = TakenPart.restored(progress.taken)
        put_groups(self.job.captured.updates, progress.groups)
        self._kept = {me: dict(kept) for me, kept in shares.items()}
        self._safe = self._snapshot()
        self._scheduler_state = progress.scheduler

    # ---- ending
    def close(self) -> None:
        """Ends the session, unless it was handed over by `publish`. Harmless when it has ended."""
        if not self._published:
            self._where.session.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is not None:
            self._where.fail(error)
        self.close()


def local_run(job: Job, device: Device = None) -> Run:
    """A run with all parties in this process, which compute on this device."""
    tables = contributed_here(job) if job.program.contributors else {}
    session = open_local(job.program, device, tables=tables.get(id(job.program)))
    return Run(job, Local.of(session, device), tables)


def share_rows(
    job: Job, folder: Path, me: str | None, config: str | Path | PartiesConfig | None, ledger: str | Path | bool
) -> dict[str, Path]:
    """Writes what a contributor gives each party, and a line of its ledger."""
    parties, own = contributor(me, config)
    book = book_of(ledger)
    paths = contributing.write(job, folder, own, parties)
    if book:
        record_for(book, job.program, own.name, os.urandom(16)).shared(len(job.batches.data))
    return paths


def remote_run(
    job: Job,
    me: str | None = None,
    config: str | Path | PartiesConfig | None = None,
    *,
    store: str | Path | None = None,
    rows: str | Path | None = None,
    ledger: str | Path | bool = True,
    insecure_plain: bool = False,
    **options: Any,
) -> Run:
    """This party's end of a run between processes. `rows`: the folder of what owners gave who left."""
    store, rows = store or current().store, rows or current().rows
    tables = _tables_given(job, me, config, rows, store, insecure_plain) if job.program.contributors else {}

    def connect(program: Program, me: str, parties: PartiesConfig, tables: Tables, channel: Channel | None) -> Session:
        prepared = store_of(Path(store), program) if store else None
        return open_connection(
            program,
            me,
            parties,
            store=prepared,
            tables=tables,
            insecure_plain=insecure_plain,
            channel=channel,
            **options,
        )

    (first,) = tables[id(job.program)].values() if tables else (Tables(),)
    where = remote(job.program, me, config, connect, first, ledger=ledger, insecure_plain=insecure_plain)
    return Run(job, where, tables)


def _tables_given(
    job: Job,
    me: str | None,
    config: str | Path | PartiesConfig | None,
    rows: str | Path | None,
    store: str | Path | None,
    insecure_plain: bool,
) -> dict[int, dict[str, Tables]]:
    """What this party has of the rows of owners who left. Raises ConfigError, InputError."""
    if store:
        check_no_contributors(job)
    name, parties, own = place(job.program.parties, me, config, insecure_plain, "train")
    if own is None:
        what = "rows of an owner who left are sealed to identities, and insecure_plain has none"
        raise ConfigError(explain(what, fix="connect with a parties file that has certificates"))
    return tables_with(job, {name: contributing.read(job, Path(rows) if rows else None, own, parties)})
