"""Sessions: what a script holds to load weights once and run many times."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from protocols.channel import HEADER_BYTES, Channel, ChannelStats, local_channels
from protocols.errors import ProtocolError, explain
from protocols.gates import Dealt, Part
from protocols.prg import EPOCHS, Stream, new_key
from securemodel.compiler.ir import Phase, is_check
from securemodel.engines.masked.dealing import Dealing
from securemodel.engines.masked.party import OnlineParty, Rows
from securemodel.engines.masked.preparing import Prepared, Preparing, StreamSource
from securemodel.engines.masked.zero import local_pairs
from securemodel.errors import InputError, SecureModelError
from securemodel.ledger import Record
from securemodel.program import Program
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


def split_rows(inputs: Sequence[torch.Tensor | None], program: Program, mine: Sequence[bool]) -> int:
    """Number of rows given by this party (0: none of the inputs is its own). Raises InputError."""
    header, rows = program.header, set()
    if len(inputs) != len(header.inputs):
        raise InputError(
            f"run() takes {len(header.inputs)} inputs (owned by {', '.join(header.inputs)}), got {len(inputs)}. "
            "Pass None for what another party owns."
        )
    for index, (x, shape, own) in enumerate(zip(inputs, header.input_shapes, mine, strict=True)):
        if not own:
            continue
        where = f"input {index} of {header.inputs[index]!r}"
        if not isinstance(x, torch.Tensor):
            raise InputError(f"{where} must be a tensor of shape {list(shape)}, got {type(x).__name__}")
        if tuple(x.shape[1:]) != shape[1:] or x.ndim != len(shape) or (x.ndim and not x.shape[0]):
            raise InputError(
                f"{where} has shape {list(x.shape)}; the program was compiled for {list(shape)} "
                "(only the number of rows, the first axis, may differ, and not be 0)"
            )
        rows.add(x.shape[0] if x.ndim else 1)
        if tuple(x.shape) != shape and not program.row_independent:
            raise InputError(
                f"{where} has shape {list(x.shape)}; the program was compiled for {list(shape)} and its rows "
                "depend on each other, so another number of rows means another model. Compile for this shape."
            )
    if not rows:
        return 0
    owned = [(x, shape) for x, shape, own in zip(inputs, header.input_shapes, mine, strict=True) if own]
    if all(tuple(x.shape) == shape for x, shape in owned):
        return header.rows
    if len(rows) > 1:
        raise InputError(f"the inputs have different numbers of rows: {sorted(rows)}. Give as many rows in each.")
    return rows.pop()


def batches(
    inputs: Sequence[torch.Tensor | None], program: Program, total: int
) -> Iterator[tuple[list[torch.Tensor | None], Rows]]:
    """Slices of the compiled number of rows; the last one is filled up with rows whose results nobody gets."""
    size = program.header.rows
    if total in (0, size):
        yield list(inputs), Rows(total, 0)
        return
    for start in range(0, total, size):
        now = min(size, total - start)
        part = [None if x is None else filled(x[start : start + now], program) for x in inputs]
        yield part, Rows(now, total - start - now)


def filled(x: torch.Tensor, program: Program) -> torch.Tensor:
    """Rows [n, ...] followed by rows of zeros, as many as the program takes.

    Where the model asserts something of its inputs, which zeros might not be, by copies of the last row.
    """
    size = program.header.rows
    if x.shape[0] == size:
        return x
    row = x[-1:] if any(map(is_check, program.graph.nodes)) else torch.zeros_like(x[-1:])
    return torch.cat([x, row.expand(size - x.shape[0], *x.shape[1:])])


def joined(parts: list[list[torch.Tensor | None]], rows: list[Rows], program: Program) -> list:
    """Outputs of all batches together, without the rows that only filled up."""
    if len(parts) == 1 and rows[0] in (Rows(), Rows(program.header.rows, 0)):
        return parts[0]
    out: list[torch.Tensor | None] = []
    for values in zip(*parts, strict=True):
        if values[0] is None:
            out.append(None)
        else:
            out.append(torch.cat([v[: r.now] for v, r in zip(values, rows, strict=True)]))
    return out


@dataclass(frozen=True)
class Batch:
    """What one batch of `Session.run_batches` gave: this party's outputs, and how many rows come after it."""

    outputs: tuple[torch.Tensor | None, ...] = field(repr=False)
    rows: int
    rows_left: int


class Session(ABC):
    """Load the weights once, run many times. A context manager; closing it ends the parties' connection."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.stats = SessionStats()
        self.load_stats = SessionStats()
        self._loads = self._runs = 0
        self._epochs = Epochs()
        self._loaded = False
        self._closed = ""
        self._turns = Turns()
        self._caller: ThreadPoolExecutor | None = None
        self.record: Record | None = None

    def __reduce__(self):
        raise InputError(
            explain(
                "a session cannot be copied or given to another process",
                why="it holds shares, keys and the links to its peers",
                fix="give the program, and open a session there with connect() or local()",
            )
        )

    def load(self, program: Program, model: torch.nn.Module | None) -> None:
        """Shares the weights of `model` for all later runs; parties that do not own them may pass None.

        Raises InputError when `program` is not this session's or a weight is missing or of another shape.
        """
        if program.digest != self.program.digest:
            raise InputError(
                f"this session runs program {self.program.digest[:12]}, not {program.digest[:12]}: "
                "open a session with the program you want to load"
            )
        with self._in_turn(self._turns.ask()):
            self._load_now(model)

    def run(self, *inputs: torch.Tensor | None):
        """One secure evaluation. Returns the output, or a tuple of outputs; None where this party may not learn.

        Every party calls it with the same number of inputs and passes None for what it does not own. The
        number of rows is free when the model treats rows independently: it runs in batches of the compiled
        size. Threads may share a session: their calls go one at a time, in the order in which they came.
        Raises InputError (nothing is sent then) and PeerError.
        """
        return self._run_in_turn(self._turns.ask(), inputs)

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

        self._caller = self._caller or ThreadPoolExecutor(1, "session")
        self._turns.arrange(lambda turn: self._caller.submit(call, turn))
        return await asyncio.wrap_future(outcome)

    def _run_in_turn(self, turn: Turn, inputs: Sequence[torch.Tensor | None]):
        with self._in_turn(turn):
            self._check_ready()
            outputs = self._timed("stats", lambda: self._run(inputs))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def run_batches(
        self, batches: Iterable[Sequence[torch.Tensor | None]] | None = None, rows: int = 0
    ) -> Iterator[Batch]:
        """Runs rows that come in batches, and yields what each batch gave as soon as it is known.

        `batches` yields the arguments of `run`, with as many rows as the program was compiled for (in the last
        batch, what is left), and `rows` says how many rows these are in all. Every party calls it; one that
        owns no inputs leaves both out. Whoever stops before the last batch ends the session. `stats` counts
        the last batch. Other calls of this session wait until then. Raises InputError and PeerError.
        """
        turn, mine = self._turns.ask(), [self._is_mine(owner) for owner in self.program.header.inputs]
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
            given = _announced(batches, rows, self.program, mine) if any(mine) else _others(len(mine))
            while True:
                inputs, announced = next(given)
                self._check_open()
                outputs, agreed = self._timed("stats", lambda i=inputs, a=announced: self._run_batch(i, a))
                count, left = agreed.now or header.rows, agreed.left
                real = tuple(v if v is None or v.ndim == 0 else v[:count] for v in outputs)
                batch = Batch(real, count, left)
                if not left:
                    return batch
                with self._turns.pausing(turn):
                    yield batch

    @contextmanager
    def _in_turn(self, turn: Turn) -> Iterator[None]:
        """Around every call: one at a time. Raises ProtocolError where chance decides whose rows meet."""
        with self._turns.taken(turn):
            self._check_open()
            owners = set(self.program.header.inputs) - {"public"}
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
            self._load_now(self.program.model)

    def _load_now(self, model: torch.nn.Module | None) -> None:
        self._loaded = False
        self._timed("load_stats", lambda: self._load(model))
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

    @abstractmethod
    def _load(self, model: torch.nn.Module | None) -> None: ...

    @abstractmethod
    def _run(self, inputs: Sequence[torch.Tensor | None]) -> list: ...

    def _before_run(self, epoch: int) -> None:
        """What the parties have to exchange before a run's inputs are shared; nothing here."""

    @abstractmethod
    def _run_batch(self, inputs: Sequence[torch.Tensor | None], rows: Rows) -> tuple[list, Rows]:
        """One run of the compiled number of rows; (outputs, the rows that all parties agree on)."""

    @abstractmethod
    def _is_mine(self, owner: str) -> bool:
        """Whether this process gives what `owner` owns."""

    def _note(self, epoch: int, rows: int) -> None:
        """Writes a run into the ledger, before anything of it is sent that depends on a secret. Raises LedgerError."""
        if self.record:
            self.record.run(epoch, rows or self.program.header.rows)

    def _guarded(self) -> AbstractContextManager:
        """Around whatever talks: an error inside must not leave the peers waiting."""
        return nullcontext()

    @abstractmethod
    def _counts(self) -> tuple[int, dict[str, int], int]:
        """(rounds, sent bytes by party, preprocessing bytes) up to now."""

    def close(self) -> None:
        """Ends the session once the call that runs has ended; calls that wait fail. Harmless when it has ended.

        In a fork of the process it does nothing: the session is not there.
        """
        if not self._turns.are_here():
            return
        with self._turns.halted():
            self._close()

    @abstractmethod
    def _close(self) -> None: ...

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close()


def _announced(
    batches: Iterable[Sequence[torch.Tensor | None]], rows: int, program: Program, mine: Sequence[bool]
) -> Iterator[tuple[list[torch.Tensor | None], Rows]]:
    """Checked batches, filled up, and what is announced with each. Raises InputError."""
    size, left = program.header.rows, rows
    source = iter(batches)
    while left:
        inputs = next(source, None)
        if inputs is None:
            raise InputError(f"run_batches() was to get {rows} rows, but its batches ended {left} rows before")
        count, expected = split_rows(inputs, program, mine), min(size, left)
        if count != expected:
            raise InputError(
                f"a batch has {count} rows where {expected} are due: give {size} rows in each, "
                f"the rest in the last one, and {rows} in all"
            )
        left -= count
        owned = [x if own else None for x, own in zip(inputs, mine, strict=True)]
        yield [x if x is None or count == size else filled(x, program) for x in owned], Rows(count, left)


def _others(inputs: int) -> Iterator[tuple[list[None], Rows]]:
    """What a party gives that owns no inputs."""
    while True:
        yield [None] * inputs, Rows()


def in_order(prepared: Iterator[tuple[int, Prepared]]) -> Callable[[int], Prepared]:
    """A function that hands out what was prepared, node by node in the program's order."""

    def take(node: int) -> Prepared:
        made, value = next(prepared)
        if made != node:
            raise SecureModelError(f"prepared node {made}, but node {node} asks for it: the program is out of order")
        return value

    return take


@dataclass
class _DealtHere:
    """The last party's dealt shares in a local session, made when they are asked for."""

    dealing: Dealing
    sent_bytes: int = 0
    _pending: Iterator[tuple[int, list[torch.Tensor]]] | None = None

    def begin(self, epoch: int, phase: Phase) -> None:
        self._pending = self.dealing.deal(epoch, phase)

    def finish(self) -> None:
        """Lets the dealer walk to the end of the phase."""
        for node, _ in self._pending:
            raise SecureModelError(f"node {node} was dealt for but not run: the program is out of order")

    def dealt(self, epoch: int, node: int, parts: Sequence[Part]) -> Dealt:
        _, shares = next(self._pending)
        self.sent_bytes += frame_bytes(parts)
        return {part.name: share for part, share in zip(parts, shares, strict=True)}


def frame_bytes(parts: Sequence[Part]) -> int:
    """Bytes of the message that carries one gate's dealt shares."""
    return HEADER_BYTES + sum(part.nbytes for part in parts)


class LocalSession(Session):
    """All parties and the dealer in this process, stepped round by round: for tests, notebooks and plans.

    device: what the parties and the dealer compute on.
    """

    def __init__(
        self,
        program: Program,
        keys: Mapping[str, bytes] | None = None,
        make_party: Callable[..., OnlineParty] = OnlineParty,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(program)
        keys = keys or {name: new_key() for name in program.parties}
        streams = {name: Stream(key, device) for name, key in keys.items()}
        self._dealt = _DealtHere(Dealing(program.graph, program.parties, streams))
        self.channels: dict[str, Channel] = dict(local_channels(program.parties))
        self._parties = {n: make_party(program, n, streams[n], local_pairs(keys, n)) for n in program.parties}
        self._preparing = {}
        for name, party in self._parties.items():
            source = self._dealt if party.role.last else StreamSource(streams[name])
            self._preparing[name] = Preparing(program.graph, name, streams[name], source)

    def _counts(self) -> tuple[int, dict[str, int], int]:
        stats: dict[str, ChannelStats] = {name: channel.stats for name, channel in self.channels.items()}
        sent = {name: s.sent_bytes for name, s in stats.items()}
        return max(s.rounds for s in stats.values()), sent, self._dealt.sent_bytes

    def _takes(self, epoch: int, phase: Phase) -> dict[str, Callable[[int], Prepared]]:
        self._dealt.begin(epoch, phase)
        operands = {n: {} if phase == "load" else p.loaded_operands for n, p in self._parties.items()}
        return {n: in_order(p.run(epoch, phase, operands[n])) for n, p in self._preparing.items()}

    def _load(self, model: torch.nn.Module | None) -> None:
        epoch = self._epochs.next_load(self._runs)
        self._loads, self._runs = self._loads + 1, 0
        for party in self._parties.values():
            party.clear.set_model(model)
        takes = self._takes(epoch, "load")
        drive({n: p.load(epoch, takes[n]) for n, p in self._parties.items()}, self.channels)
        self._dealt.finish()

    def _run(self, inputs: Sequence[torch.Tensor | None]) -> list:
        header = self.program.header
        total = split_rows(inputs, self.program, [True] * len(header.inputs))
        results, counted = [], []
        for part, rows in batches(inputs, self.program, total):
            results.append(self._run_batch(part, rows)[0])
            counted.append(rows)
        return joined(results, counted, self.program)

    def _run_batch(self, inputs: Sequence[torch.Tensor | None], rows: Rows) -> tuple[list, Rows]:
        self._runs += 1
        epoch, owners = self._epochs.run(self._runs), self.program.header.inputs
        self._note(epoch, rows.now)
        self._before_run(epoch)
        runs, takes = {}, self._takes(epoch, "run")
        for name, party in self._parties.items():
            owned = [x if owner in (name, "public") else None for x, owner in zip(inputs, owners, strict=True)]
            party.clear.set_inputs(owned)
            runs[name] = party.run(epoch, takes[name], rows if name in owners else Rows())
        done = drive(runs, self.channels)
        self._dealt.finish()
        return _first_known([outputs for outputs, _ in done.values()]), rows

    def _is_mine(self, owner: str) -> bool:
        return True

    def _close(self) -> None:
        self._closed = self._closed or "close() was called"
        for channel in self.channels.values():
            channel.close()


def _first_known(outputs: list[list[torch.Tensor | None]]) -> list[torch.Tensor | None]:
    return [next((v for v in values if v is not None), None) for values in zip(*outputs, strict=True)]


def drive(parties: Mapping[str, Any], channels: Mapping[str, Channel]) -> dict[str, Any]:
    """Steps coroutines of parties through their rounds together; returns what each returned."""
    results: dict[str, Any] = {}
    received: dict[str, Any] = dict.fromkeys(parties)
    while True:
        talks = {}
        for name, party in parties.items():
            try:
                talks[name] = party.send(received[name])
            except StopIteration as end:
                results[name] = end.value
        if not talks:
            return results
        for name, talk in talks.items():
            channels[name].begin(talk.label, talk.sends, talk.receives)
        received = {name: channels[name].finish() for name in talks}
