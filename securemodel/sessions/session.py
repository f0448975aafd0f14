"""Sessions: what a script holds to load weights once and run many times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, cast

import torch

from protocols.channel import Channel, ChannelStats, Label, local_channels
from protocols.channel.buffers import Buffer
from protocols.devices import same_order
from protocols.errors import ProtocolError, explain, public_reason
from protocols.prg import EPOCHS
from securemodel.compiler.builder import PUBLIC
from securemodel.compiler.capture import ModelState
from securemodel.engines.walk import Inputs, Rows, Steps, Walk
from securemodel.errors import InputError, OutOfRange, SecureModelError
from securemodel.ledger import Record
from securemodel.program import Program
from securemodel.sessions.rows import Batch, announced, batches, joined, others, split_rows
from securemodel.sessions.turns import Turn, Turns


@dataclass
class Epochs:
    """Numbers the loads and runs of a session, all in one row, so that none of its masks is ever used twice."""

    load: int = 0
    begun: bool = False

    def next_load(self, runs: int) -> int:
        """The epoch of a load after so many runs of the one before, of which one more may have been prepared ahead."""
        self.load += runs + 2 if self.begun else 0
        self.begun = True
        return self.run(0)

    def run(self, number: int) -> int:
        """The epoch of a run of the last load, from 1."""
        epoch = self.load + number
        if epoch >= EPOCHS:
            raise SecureModelError("this session used up its epochs; open a new one with connect() or local()")
        return epoch


@dataclass(frozen=True)
class SessionStats:
    """Counts of one phase: the last call of `run` (all its batches) or of `load`.

    `sent_bytes` and `rounds` are per party of this process, headers included; `preprocessing_bytes` is what
    the dealer sent to the last party (only that party and local sessions see it).
    """

    seconds: float = 0.0
    rounds: int = 0
    sent_bytes: Mapping[str, int] = field(default_factory=dict)
    preprocessing_bytes: int = 0


class Rounds(Protocol):
    """What a session needs of a party's channel: rounds, their counts and an end. Of `protocols.channel.Channel`, or alike."""

    @property
    def closed(self) -> bool: ...

    @property
    def stats(self) -> ChannelStats: ...

    def begin(self, label: Label, sends: Mapping[str, Sequence[Buffer]], receives: Mapping[str, int]) -> None: ...

    def finish(self) -> dict[str, torch.Tensor]: ...

    def abort(self, reason: str) -> None: ...

    def close(self) -> None: ...


class Session:
    """Load the weights once, run many times. A context manager; closing it ends the parties' connection.

    It steps the walks of all parties in this process, or that of one party over its channel; made by `local` and `connect`.
    """

    def __init__(
        self,
        program: Program,
        walks: Mapping[str, Walk],
        channels: Mapping[str, Rounds] | None = None,
        epochs: Epochs | None = None,
    ) -> None:
        self.program = program
        self.walks = dict(walks)
        self.channels: dict[str, Rounds] = dict(channels or local_channels(program.parties))
        self._awaited = set(self.walks) != set(program.parties)
        self.stats = SessionStats()
        self.load_stats = SessionStats()
        self._loads = self._runs = 0
        self._epochs = epochs or Epochs()
        self._loaded = self._weights_stay = False
        self._closed = ""
        self._turns = Turns()
        self._in_order = same_order()
        self._caller: ThreadPoolExecutor | None = None
        self.record: Record | None = None

    @property
    def me(self) -> str:
        """The party of this process; of a local session the first one."""
        return next(iter(self.walks))

    @property
    def walk(self) -> Walk:
        """That party's walk."""
        return self.walks[self.me]

    @property
    def channel(self) -> Channel:
        """That party's channel, for messages of its own besides those of the walk."""
        return cast(Channel, self.channels[self.me])

    @property
    def shared_times(self) -> tuple[float, float]:
        """When, on the host's monotonic clock, the last run's inputs and its result were shared, where the engine tells."""
        return self.walk.shared_times

    def __reduce__(self):
        raise InputError(
            explain(
                "a session cannot be copied or given to another process",
                why="it holds shares, keys and the links to its peers",
                fix="give the program, and open a session there with connect() or local()",
            )
        )

    def load(self, program: Program, model: ModelState | None) -> None:
        """Shares the weights of `model` for all later runs; parties that do not own them may pass None.

        Raises InputError when `program` is not this session's or a weight is missing or of another shape.
        """
        if program.digest != self.program.digest:
            raise InputError(
                f"this session runs program {self.program.digest[:12]}, not {program.digest[:12]}: "
                "open a session with the program you want to load"
            )
        if self._weights_stay:
            raise InputError(
                explain(
                    "this session has the weights of a training",
                    why="load() would put those back that the training began with",
                    fix="call run() without load()",
                )
            )
        with self._in_turn(self._turns.ask()):
            self._load_now(lambda walk, epoch: walk.load(epoch, model))

    def weights_stay(self) -> None:
        """From now on `load` is refused: the weights are no model's."""
        self._weights_stay = True

    def run(self, *inputs: torch.Tensor | None):
        """One secure evaluation. Returns the output, or a tuple of outputs; None where this party may not learn.

        Every party calls it with the same number of inputs and passes None for what it does not own. The
        number of rows is free when the model treats rows independently: it runs in batches of the compiled
        size. Threads may share a session: their calls go one at a time, in the order in which they came.
        Raises InputError (nothing is sent then) and PeerError.
        """
        return self._run_in_turn(self._turns.ask(), inputs)

    def prepare(self) -> None:
        """What the parties can exchange for the next run before its input is known; every party calls it at the same time.

        `run` does it where this was not called. Only deep models of the protocol "paillier" have such.
        """
        with self._in_turn(self._turns.ask()):
            self._check_ready()
            with self._guarded():
                epoch = self._epochs.run(self._runs + 1)
                self._step({name: walk.prepare(epoch) for name, walk in self.walks.items()})

    async def run_async(self, *inputs: torch.Tensor | None):
        """`run` for asyncio: other tasks go on meanwhile. Calls go in the order in which they were made.

        A call that was made is run, also where its task is cancelled before: the peers count it.
        """
        outcome: Future = Future()
        outcome.set_running_or_notify_cancel()  # cannot be cancelled any more

        def call(turn: Turn) -> None:
            try:
                outcome.set_result(self._run_in_turn(turn, inputs))
            except BaseException as error:
                outcome.set_exception(error)

        caller = self._caller = self._caller or ThreadPoolExecutor(1, "session")
        self._turns.arrange(lambda turn: caller.submit(call, turn))
        return await asyncio.wrap_future(outcome)

    def _run_in_turn(self, turn: Turn, inputs: Inputs):
        with self._in_turn(turn):
            self._check_ready()
            outputs = self._timed("stats", lambda: self._run(inputs))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def run_batches(self, batches: Iterable[Inputs] | None = None, rows: int = 0) -> Generator[Batch, None, None]:
        """Runs rows that come in batches, and yields what each batch gave as soon as it is known.

        `batches` yields the arguments of `run`, with as many rows as the program was compiled for (in the last
        batch, what is left), and `rows` says how many rows these are in all. Every party calls it; one that
        owns no inputs leaves both out. Whoever stops before the last batch ends the session. `stats` counts
        the last batch. Other calls of this session wait until then. Raises InputError and PeerError.
        """
        turn, mine = self._turns.ask(), self._mine()
        with self._in_turn(turn):
            self._check_ready()
            if any(mine) and (batches is None or rows < 1):
                raise InputError("run_batches() needs the batches, and how many rows (at least 1) they have in all")
            last = yield from self._each_batch(batches, rows, mine, turn)
        yield last

    def _each_batch(self, batches: Any, rows: int, mine: Sequence[bool], turn: Turn) -> Generator[Batch, None, Batch]:
        """Yields all batches but the last one, which it returns."""
        header = self.program.header
        with self._guarded():
            given = announced(batches, rows, self.program, mine) if any(mine) else others(len(mine))
            while True:
                batch = next(given)
                self._check_open()
                outputs, agreed = self._timed("stats", partial(self._run_batch, *batch))
                count, left = agreed.now or header.rows, agreed.left
                real = tuple(v if v is None or v.ndim == 0 else v[:count] for v in outputs)
                made = Batch(real, count, left)
                if not left:
                    return made
                with self._turns.pausing(turn):
                    yield made

    @contextmanager
    def _in_turn(self, turn: Turn) -> Iterator[None]:
        """Around every call: one at a time. Raises ProtocolError where chance decides whose rows meet."""
        with self._turns.taken(turn):
            self._check_open()
            owners = set(self.program.header.inputs) - {PUBLIC, *self.program.contributors}
            mine = {owner for owner in owners if self._is_mine(owner)}
            if turn.raced and mine and mine != owners:
                others = ", ".join(sorted(owners - mine))
                with self._guarded():
                    raise ProtocolError(
                        explain(
                            f"two threads of party {', '.join(mine)!r} called the session at once",
                            where="a session between processes",
                            why=f"their order decides which of their rows meet which rows of {others}, and chance decided it",
                            fix="make the calls of a program with inputs of several parties in one thread, or in an order "
                            "that your script agrees on",
                        )
                    )
            yield

    def _check_ready(self) -> None:
        self._check_open()
        if not self._loaded:
            if self._loads:
                raise InputError("the last load() of this session failed: load() a model before run()")
            self._load_now(lambda walk, epoch: walk.load(epoch, self.program.model))

    def _load_now(self, begin: Callable[[Any, int], Steps]) -> None:
        """Loads what `begin` begins to load with each walk and the epoch."""
        self._loaded = False
        self._timed("load_stats", lambda: self._load(begin))
        self._loaded = True

    def _check_open(self) -> None:
        self._turns.check_here()
        if self._closed:
            raise ProtocolError(
                explain("this session is closed", why=self._closed, fix="open a new one with connect() or local()")
            )

    def _timed(self, name: str, action: Callable[[], Any]) -> Any:
        before, start = self._counts(), time.perf_counter()
        try:
            return action()
        finally:
            seconds, (rounds, sent, dealt) = time.perf_counter() - start, self._counts()
            sent_bytes = {party: count - before[1].get(party, 0) for party, count in sent.items()}
            setattr(self, name, SessionStats(seconds, rounds - before[0], sent_bytes, dealt - before[2]))

    # ---- stepping the walks
    def _load(self, begin: Callable[[Any, int], Steps]) -> None:
        with self._guarded():
            epoch = self._epochs.next_load(self._runs)
            self._loads, self._runs = self._loads + 1, 0
            self._step({name: begin(walk, epoch) for name, walk in self.walks.items()})

    def _run(self, inputs: Inputs) -> list:
        results: list[list[torch.Tensor | None]] = []
        counted: list[Rows] = []
        with self._guarded():
            mine = self._mine()
            total = split_rows(inputs, self.program, mine)
            owned = [x if own else None for x, own in zip(inputs, mine, strict=True)]
            for part, rows in batches(owned, self.program, total) if any(mine) else others(len(mine)):
                outputs, agreed = self._run_batch(part, rows)
                results.append(outputs)
                counted.append(agreed)
                if not agreed.left:
                    break
            return joined(results, counted, self.program)

    def _run_batch(self, inputs: Inputs, rows: Rows) -> tuple[list[torch.Tensor | None], Rows]:
        """One run of the compiled number of rows; (outputs, the rows that all parties agree on)."""
        self._runs += 1
        epoch, owners, runs = self._epochs.run(self._runs), self.program.header.inputs, {}
        told = bool(rows.now) or not self._awaited
        if told:
            self._note(epoch, rows)
        for name, walk in self.walks.items():
            mine = [owner in (name, PUBLIC) for owner in owners]
            owned = [x if own else None for x, own in zip(inputs, mine, strict=True)]
            walk.agreed = (lambda agreed: None) if told else (lambda agreed: self._note(epoch, agreed))
            runs[name] = walk.run(epoch, owned, rows if any(mine) else Rows())
        finished = self._step(runs).values()
        outputs = [
            next((x for x in values if x is not None), None) for values in zip(*(o for o, _ in finished), strict=True)
        ]
        return self._in_range(outputs), rows if rows.now else next(agreed for _, agreed in finished)

    def _in_range(self, outputs: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
        """The results of a run, without what a guard says. Raises OutOfRange, at all parties alike."""
        if not self.program.header.guarded:
            return outputs
        *results, outside = outputs
        if outside is not None and bool(outside.any()):
            raise OutOfRange(
                explain(
                    f"run {self._runs} of this load has no result: a value left the range that the program was tuned for",
                    where="the guard of a tuned program",
                    why="beyond it comparisons are wrong; nobody is told which value it was, of which layer or row",
                    fix="run these rows with a program compiled without tuned=, or tune on such rows, too",
                )
            )
        return results

    def _step(self, coroutines: Mapping[str, Steps]) -> dict[str, Any]:
        """Steps the parties' coroutines through their rounds together; returns what each returned. Whichever thread calls,
        GPUs do its work in the order of the thread that opened the session, as they do that of the workers who prepare."""
        with self._in_order():
            return self._step_in_order(coroutines)

    def _step_in_order(self, coroutines: Mapping[str, Steps]) -> dict[str, Any]:
        results: dict[str, Any] = {}
        received: dict[str, Any] = dict.fromkeys(coroutines)
        while True:
            talks = {}
            for name, data in received.items():
                try:
                    talks[name] = coroutines[name].send(data)
                except StopIteration as end:
                    results[name] = end.value
            if not talks:
                return results
            for name, talk in talks.items():
                self.channels[name].begin(talk.label, talk.sends, talk.receives)
            received = {name: self.channels[name].finish() for name in talks}

    def _mine(self) -> list[bool]:
        """Which of the inputs this process gives."""
        return [self._is_mine(owner) for owner in self.program.header.inputs]

    def _is_mine(self, owner: str) -> bool:
        return owner in self.walks or owner == PUBLIC

    def _note(self, epoch: int, rows: Rows) -> None:
        """Writes a run into the ledger, before anything of it is sent that depends on a secret. Raises LedgerError."""
        if self.record:
            self.record.run(epoch, rows.now or self.program.header.rows)

    def note_weights(self, receivers: Sequence[str], names: Sequence[str]) -> None:
        """Writes into the ledger that these receivers get the weights of models with these names. Raises LedgerError."""
        if self.record:
            self.record.weights(self._epochs.run(self._runs), receivers, names)

    def _counts(self) -> tuple[int, dict[str, int], int]:
        """(rounds, sent bytes by party, preprocessing bytes) up to now."""
        stats = {name: channel.stats for name, channel in self.channels.items()}
        sent = {name: counted.sent_bytes for name, counted in stats.items()}
        dealt = sum(walk.dealt_bytes for walk in self.walks.values())
        return max(counted.rounds for counted in stats.values()), sent, dealt

    # ---- the end
    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Around whatever talks: an error inside ends the session where peers wait for it, or a channel has ended."""
        try:
            yield
        except OutOfRange:  # all parties have been told the same, and go on
            raise
        except BaseException as error:
            if self._awaited or any(channel.closed for channel in self.channels.values()):
                self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        """Ends the session, and tells the peers so with a public reason."""
        reason = public_reason(error)
        self._end(f"it failed: {type(error).__name__}", lambda thing: thing.abort(reason))

    def close(self) -> None:
        """Ends the session once the call that runs has ended; calls that wait fail. Harmless when it has ended.

        In a fork of the process it does nothing: the session is not there.
        """
        if not self._turns.are_here():
            return
        with self._turns.halted():
            self._close()

    def leave(self) -> Channel | None:
        """Ends the session, but not this party's channel, over which the same parties go on with another program.

        None where the session has ended already, and its channel with it.
        """
        with self._turns.halted():
            if self._closed:
                return None
            self._closed = "its parties went on with another program"
            for walk in self.walks.values():
                walk.close()
        return self.channel

    def _close(self) -> None:
        self._end("close() was called", lambda thing: thing.close())

    def _end(self, why: str, end: Callable[[Rounds | Walk], None]) -> None:
        """Ends channels and walks, once; the peers are told nothing of this party's values."""
        if not self._closed:
            self._closed = why
            things: tuple[Rounds | Walk, ...] = (*self.channels.values(), *self.walks.values())
            for thing in things:
                end(thing)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close()
