"""A training under way: steps, evaluations, checkpoints, export; locally, or one party's end of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import safetensors.torch
import torch
from torch.utils._pytree import tree_leaves

from protocols.channel import Label
from protocols.errors import BadFrame, InputError, Mismatch, PreprocessingUsedUp, explain
from protocols.files import file_errors, read_secret
from protocols.identity import PartiesConfig
from securemodel.compiler.capture import Examples, tensors_in
from securemodel.compiler.positions import table_nodes
from securemodel.compiler.postprocess import Reveal
from securemodel.engines.labels import EXPORT, STEPS, TOSS, TOSSED
from securemodel.engines.masked.party import OnlineParty
from securemodel.engines.masked.tables import Tables
from securemodel.engines.masked.walk import MaskedWalk
from securemodel.errors import TrainingDiverged
from securemodel.invocation import Progress as Report
from securemodel.invocation import current
from securemodel.ledger import book_of, record_for
from securemodel.program import Program
from securemodel.sessions.masked import open_connection, open_local
from securemodel.sessions.remote import place
from securemodel.sessions.session import Session
from securemodel.training import checkpoints
from securemodel.training.agreeing import SETTINGS_BYTES, check_settings, settings_of
from securemodel.training.checkpoints import Progress
from securemodel.training.compiling import TrainingProgram
from securemodel.training.exporting import Exported
from securemodel.training.job import BEFORE, NOW, Evaluation, Job
from securemodel.training.noise import NoiseSource
from securemodel.training.privacy import Privacy, TakenPart
from securemodel.training.publishing import publish
from securemodel.training.stores import store_of

_SEED_BYTES, _STEPS_BYTES = 32, 256
_SCHEDULED = ("lr", "initial_lr", "momentum", "betas", "weight_decay", "eps")


class _Place(Protocol):
    """Where the parties of this process are, and how they reach the others."""

    session: Session
    parties: Mapping[str, OnlineParty]

    def swap(
        self, label: Label, sends: Mapping[str, bytes], to: Sequence[str] = (), sizes: Mapping[str, int] | None = None
    ) -> dict[str, dict[str, bytes]]:
        """Each party here sends the same bytes to all others (or those in `to`); what each party here got, by sender.

        `sizes`: how many bytes each party sends; without it, all send as many.
        """

    def key(self, me: str, folder: Path) -> bytes: ...

    def fail(self, error: BaseException) -> None: ...

    def opened(self, program: Program, tables: Mapping[str, Tables]) -> _Place: ...


@dataclass(frozen=True, repr=False)
class Local:
    """All parties in this process."""

    session: Any

    @property
    def parties(self) -> Mapping[str, OnlineParty]:
        return {name: walk.party for name, walk in self.session.walks.items()}

    def swap(
        self, label: Label, sends: Mapping[str, bytes], to: Sequence[str] = (), sizes: Mapping[str, int] | None = None
    ) -> dict[str, dict[str, bytes]]:
        return {me: {peer: data for peer, data in sends.items() if peer != me} for me in sends if not to or me in to}

    def key(self, me: str, folder: Path) -> bytes:
        return checkpoints.key_in(folder)

    def fail(self, error: BaseException) -> None:
        """Nobody waits for the parties of this process."""

    def opened(self, program: Program, tables: Mapping[str, Tables]) -> Local:
        self.session.close()
        return Local(open_local(program, tables))


@dataclass(frozen=True, repr=False)
class Remote:
    """One party, linked with the others. `open` connects for another program: one is open at a time."""

    session: Any
    secret: bytes
    open: Callable[[Program, Tables], Any]

    @property
    def parties(self) -> Mapping[str, OnlineParty]:
        return {name: walk.party for name, walk in self.session.walks.items()}

    def swap(
        self, label: Label, sends: Mapping[str, bytes], to: Sequence[str] = (), sizes: Mapping[str, int] | None = None
    ) -> dict[str, dict[str, bytes]]:
        me, channel = self.session.me, self.session.channel
        ((_, data),) = sends.items()
        peers = [name for name in self.session.program.parties if name != me]
        out = {peer: [torch.frombuffer(bytearray(data), dtype=torch.uint8)] for peer in peers if not to or peer in to}
        expected = {peer: sizes[peer] if sizes else len(data) for peer in peers if not to or me in to}
        with self.session._guarded():
            got = channel.exchange(label, out, expected)
        return {me: {peer: part.numpy().tobytes() for peer, part in got.items()}}

    def key(self, me: str, folder: Path) -> bytes:
        return checkpoints.key_for(self.secret, me)

    def fail(self, error: BaseException) -> None:
        """Tells the peers why this party stops."""
        self.session._fail(error)

    def opened(self, program: Program, tables: Mapping[str, Tables]) -> Remote:
        self.session.close()
        return Remote(self.open(program, tables[self.session.me]), self.secret, self.open)


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

    def __init__(self, job: Job, where: _Place) -> None:
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
        self._tables: dict[int, dict[str, Tables]] = {}
        """By program, what each party here has of the rows that were shared for it, in this session or an earlier one. Its
        id, as two evaluations may be alike but for their data."""

    # ---- steps
    def _start(self) -> None:
        if self._published:
            raise InputError(explain("this training has ended: its weights were published",
                                     fix="write a checkpoint before publish(), and resume another run there"))  # fmt: skip
        if self._started:
            return
        tossed = self._toss()
        self._name, self._seed = tossed.hex()[:32], int.from_bytes(tossed[16:24], "little") >> 1
        self._load()

    def _load(self) -> None:
        self._load_session(self.job.program, self.step_number)
        self._started = True
        self._kept = {me: dict(party.kept) for me, party in self._where.parties.items()}
        self._safe = self._snapshot()

    def _load_session(self, program: Program, first: int = 0, starts: Any = None) -> None:
        """Shares weights (those of the program, or these) and rows; the next run reads the rows of the step `first`."""
        walks = self._where.session.walks if table_nodes(program.graph) else {}
        for walk in walks.values():
            cast(MaskedWalk, walk).begin_at(first)
        self._where.session.load(program, program.model if starts is None else starts)
        if walks:
            self._tables[id(program)] = {me: party.tables for me, party in self._where.parties.items()}
        self._first, self._runs = first, 0

    def _greet(self, label: Label, sends: Mapping[str, bytes]) -> dict[str, dict[str, bytes]]:
        """A message to all others, before which parties compare what a program does not say. Raises Mismatch."""
        settings = settings_of(self.job)
        got = self._where.swap(label, {me: settings + data for me, data in sends.items()})
        for parts in got.values():
            for peer, data in parts.items():
                check_settings(self.job, peer, data[:SETTINGS_BYTES])
        return {me: {peer: data[SETTINGS_BYTES:] for peer, data in parts.items()} for me, parts in got.items()}

    def _toss(self) -> bytes:
        """A public seed that no party can choose: each commits to its part before it sees the others' (Blum, 1983)."""
        mine = {me: os.urandom(_SEED_BYTES) for me in self._where.parties}
        hidden = self._greet(TOSS, {me: _commitment(me, part) for me, part in mine.items()})
        opened = self._where.swap(TOSSED, mine)
        for me, parts in opened.items():
            for peer, part in parts.items():
                if _commitment(peer, part) != hidden[me][peer]:
                    raise BadFrame(
                        peer, explain(f"party {peer!r} changed its part of the seed after the others' were open")
                    )
        me = next(iter(mine))
        whole = {**opened[me], **mine}
        return hashlib.sha256(b"".join(whole[name] for name in sorted(whole))).digest()

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
            self._kept = {me: dict(party.kept) for me, party in self._where.parties.items()}
            self._go_on_with(job.program)
        self._runs += 1
        self._taken.note(self.step_number, bool(batch))
        with self._explaining():
            returned = self._where.session.run(*given)
        self.step_number += 1
        result = self._restored(job.program, returned)
        if job.guard_every and self.step_number % job.guard_every == 0:
            self._guard()
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

    def _guard(self) -> None:
        """Raises TrainingDiverged, after going back to the last step at which all parameters were in range."""
        self._kept = {me: dict(party.kept) for me, party in self._where.parties.items()}
        before = {
            me: {f"{BEFORE}{name}": share for name, share in kept.items()} for me, kept in self._safe.kept.items()
        }
        for me, kept in self._kept.items():
            before[me].update({f"{NOW}{name}": share for name, share in kept.items()})
        self._go_on_with(self.job.guard, before)
        within = self._restored(self.job.guard, self._where.session.run())
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
            self._noise[drawn.party].draw(drawn.count) if mine(drawn.party) else None for drawn in job.captured.noise
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

    def _restored(self, program: TrainingProgram, returned: Any) -> Any:
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
        size, returned = self.job.batches.steps_per_epoch, []
        while not returned or self.step_number % size:
            returned.append(self.step())
            progress(self.step_number, returned[-1])
        return returned

    def epochs(self, count: int, scheduler: Any = None) -> Iterator[int]:
        """The numbers of the epochs up to `count` that are still to be made, after each of which the scheduler steps."""
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
        self._kept = {me: dict(party.kept) for me, party in self._where.parties.items()}
        made = {name: self._evaluated(evaluation) for name, evaluation in self.job.evaluations.items()}
        self._go_on_with(self.job.program)
        return made

    def _evaluated(self, evaluation: Evaluation) -> Any:
        results = []
        for batches, program in evaluation.pieces:
            self._go_on_with(program, again_after=batches.steps_per_epoch)
            for step in range(batches.steps_per_epoch):
                given = batches.inputs(step, lambda name: name in self._where.parties)
                results.append(self._restored(program, self._where.session.run(*given)))
        return _together(results)

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
                safetensors.torch.save_file(state, path)
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
        made = publish(self.job, model, example_inputs, inputs, outputs, reveal)
        self._kept = {me: dict(party.kept) for me, party in self._where.parties.items()}
        self._go_on_with(made.program, starts=made.starts)
        self._published = True
        self._where.session.weights_stay()
        return self._where.session

    # ---- checkpoints
    def _fresh(self) -> dict[str, dict[str, torch.Tensor]]:
        if self._where.session.program is not self.job.program:
            raise InputError(explain("the weights of this run are gone", why="an evaluation or a guard failed",
                                     fix="start again, and resume() from the last checkpoint"))  # fmt: skip
        self._times += 1
        return {me: party.fresh(self._times) for me, party in self._where.parties.items()}

    def checkpoint(self, folder: str | Path) -> None:
        """Writes what each party here needs to go on: its own folder inside, encrypted under its own key. Raises FileError."""
        self._start()
        progress = Progress(
            self._name, self.job.digest, self.step_number, self._seed, self._public.memory, _groups(self.job),
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
        mine = {me: checkpoints.steps_of(Path(folder) / me) for me in self._where.parties}
        told = self._greet(STEPS, {me: _packed(steps) for me, steps in mine.items()})
        common = set.intersection(*(set(steps) for steps in mine.values()))
        for parts in told.values():
            for data in parts.values():
                common &= set(_unpacked(data))
        if not common:
            self._start()
            return 0
        self._restore(Path(folder), max(common))
        return self.step_number

    def _restore(self, folder: Path, step: int) -> None:
        found = {}
        for me in self._where.parties:
            path = folder / me
            found[me] = checkpoints.read(path, me, self._where.key(me, path), step)
            checkpoints.check_same(found[me][1], self.job.digest)
        names = {progress.run for _, progress in found.values()}
        told = self._where.swap(STEPS, {me: progress.run.encode().ljust(64) for me, (_, progress) in found.items()})
        for parts in told.values():
            for peer, data in parts.items():
                if data.decode("ascii", "replace").strip() not in names or len(names) > 1:
                    raise Mismatch(peer, explain(f"party {peer!r} has checkpoints of another training", where="resume()",
                                                 fix="give each party the folder of the same training"))  # fmt: skip
        progress = next(iter(found.values()))[1]
        self._name, self._seed, self.step_number = progress.run, progress.seed, progress.step
        self._load()
        for me, (shares, _) in found.items():
            self._where.parties[me].kept = dict(shares)
        self._public.memory = {name: dict(numbers) for name, numbers in progress.memory.items()}
        self._taken = TakenPart.restored(progress.taken)
        _put_groups(self.job, progress.groups)
        self._kept = {me: dict(shares) for me, (shares, _) in found.items()}
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


def _commitment(party: str, part: bytes) -> bytes:
    return hashlib.sha256(b"securemodel toss " + party.encode() + b" " + part).digest()


def _packed(steps: Sequence[int]) -> bytes:
    return ",".join(map(str, steps[-8:])).encode().ljust(_STEPS_BYTES)


def _unpacked(data: bytes) -> list[int]:
    words = data.decode("ascii", "replace").strip().split(",")
    return [int(word) for word in words if word.isdigit()]


def _together(results: Sequence[Any]) -> Any:
    """Batches as one: numbers are added, rows are put one below the other."""
    if isinstance(results[0], Mapping):
        return {name: _together([result[name] for result in results]) for name in results[0]}
    if isinstance(results[0], (list, tuple)):
        return type(results[0])(_together(parts) for parts in zip(*results, strict=True))
    if results[0] is None or not isinstance(results[0], torch.Tensor):
        return results[0]
    return torch.cat(list(results)) if results[0].ndim else torch.stack(list(results)).sum(0)


def _groups(job: Job) -> list[dict[str, Any]]:
    """The scheduled entries of all groups, as JSON has them."""
    return [
        {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in update.group.items()
            if key in _SCHEDULED
        }
        for update in job.captured.updates
    ]


def _put_groups(job: Job, groups: Sequence[Mapping[str, Any]]) -> None:
    for update, entries in zip(job.captured.updates, groups, strict=True):
        update.group.update({key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()})


def local_run(job: Job) -> Run:
    """A run with all parties in this process."""
    return Run(job, Local(open_local(job.program)))


def remote_run(
    job: Job,
    me: str | None = None,
    config: str | Path | PartiesConfig | None = None,
    *,
    store: str | Path | None = None,
    ledger: str | Path | bool = True,
    **options: Any,
) -> Run:
    """This party's end of a run between processes."""
    me, config, own = place(job.program, me, config, options.get("insecure_plain", False))
    book, store = book_of(ledger), store or current().store

    def opened(program: Program, tables: Tables) -> Any:
        prepared = store_of(Path(store), program) if store else None
        session = open_connection(program, me, config, store=prepared, tables=tables, **options)
        if book:
            session.record = record_for(book, program, session.me, session.channel.session)
        return session

    secret = b"insecure" if own is None else read_secret(own.key_path, "a private key")
    return Run(job, Remote(opened(job.program, Tables()), secret, opened))
