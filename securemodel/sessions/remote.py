"""Sessions between processes: the same script at every party, links over mutual TLS, a dealer or a store."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from protocols import identity
from protocols.channel import Channel, Link, dial
from protocols.channel import connect as connect_channel
from protocols.errors import public_reason
from protocols.identity import DEALER, Identity, PartiesConfig
from protocols.prg import Stream
from securemodel.compiler.ir import Phase
from securemodel.engines.labels import PROGRAM, STREAM_KEY
from securemodel.engines.masked.ahead import Ahead
from securemodel.engines.masked.party import OnlineParty, Rows
from securemodel.engines.masked.preparing import Item, Preparing, StreamSource
from securemodel.engines.masked.sources import DealerSource, NoSource, largest_message
from securemodel.engines.masked.store import Store, StoreSource
from securemodel.errors import ConfigError
from securemodel.invocation import current
from securemodel.program import Program
from securemodel.sessions.agree import agree
from securemodel.sessions.session import (
    Session,
    batches,
    frame_bytes,
    joined,
    split_rows,
)

_AHEAD_BYTES = 256 << 20
_STOP_S = 2.0  # longest wait for the preparing thread, before and after its source is cut off


class RemoteSession(Session):
    """One party's end of a session between processes. Made by `connect`.

    With `deal_after_inputs` the dealer is asked only when the inputs are shared: benchmarks time it so.
    """

    def __init__(
        self,
        program: Program,
        me: str,
        channel: Channel,
        key: bytes,
        source: DealerSource | StoreSource | NoSource,
        *,
        pairs: Mapping[str, Stream],
        store: Store | None = None,
        ahead: bool = True,
    ) -> None:
        super().__init__(program)
        self.me, self.channel = me, channel
        stream = Stream(key)
        self._party = OnlineParty(program, me, stream, pairs)
        self._source, self._store, self._ahead = source, store, ahead
        self.deal_after_inputs = False
        shares = source if self._party.role.last else StreamSource(stream)
        self._preparing = Preparing(program.graph, me, stream, _Counted(shares, self))
        self._worker = Ahead(self._prepare, _AHEAD_BYTES, me)
        self._submitted = 0
        self.dealt_bytes: dict[int, int] = {}
        self._dealt_total = 0
        self._first_run = store.next_run if store else 1

    # ---- phases
    def _prepare(self, epoch: int, phase: Phase) -> Iterator[Item]:
        self._source.begin(epoch, phase)
        return self._preparing.run(epoch, phase, {} if phase == "load" else self._party.loaded_operands)

    def _load(self, model: torch.nn.Module | None) -> None:
        with self._guarded():
            self._party.clear.set_model(model)
            if self._store:
                self._check_store_load()
            self._worker.discard()
            epoch = 0 if self._store else self._epochs.next_load(self._runs)
            self._loads, self._runs, self._submitted = self._loads + 1, self._first_run - 1, self._first_run - 1
            self._worker.submit(epoch, "load")
            drive_one(self._party.load(epoch, self._worker.take_from(epoch)), self.channel)
            self._worker.finish(epoch)
            self._dealt_total += self.dealt_bytes.pop(epoch, 0)

    def _check_store_load(self) -> None:
        """One store, one set of weights: the same mask over other weights would show their difference."""
        self._store.bind_weights(self._party.clear.weights_digest())
        if self._loads:
            self._first_run = self._store.next_run

    def _submit_up_to(self, run: int) -> None:
        while self._submitted < run:
            self._submitted += 1
            if self._store:
                self._store.consume(self._submitted)
            self._worker.submit(self._epochs.run(self._submitted), "run")

    def _run(self, inputs: Sequence[torch.Tensor | None]) -> list:
        header = self.program.header
        with self._guarded():
            mine = [self._is_mine(owner) for owner in header.inputs]
            total = split_rows(inputs, self.program, mine)
            owned = [x if own else None for x, own in zip(inputs, mine, strict=True)]
            if not any(mine):
                return self._follow(owned)
            results, counted = [], []
            for part, rows in batches(owned, self.program, total):
                outputs, _ = self._run_batch(part, rows)
                results.append(outputs)
                counted.append(rows)
            return joined(results, counted, self.program)

    def _is_mine(self, owner: str) -> bool:
        return owner in (self.me, "public")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._fail(error)
            raise

    def _follow(self, inputs: Sequence[torch.Tensor | None]) -> list:
        """Runs as many batches as the owners of the inputs announce."""
        results, counted = [], []
        while not counted or counted[-1].left:
            outputs, rows = self._run_batch(inputs, Rows())
            results.append(outputs)
            counted.append(rows)
        return joined(results, counted, self.program)

    def _run_batch(self, inputs: Sequence[torch.Tensor | None], rows: Rows) -> tuple[list, Rows]:
        self._runs += 1
        epoch = self._epochs.run(self._runs)
        submit = functools.partial(self._submit_up_to, self._runs)
        if rows.now:
            self._note(epoch, rows.now)
        self._party.agreed = lambda agreed: None if rows.now else self._note(epoch, agreed.now)
        if not self.deal_after_inputs:
            submit()
        self._before_run(epoch)
        self._party.clear.set_inputs(inputs)
        result = drive_one(self._party.run(epoch, self._worker.take_from(epoch), rows), self.channel, submit)
        self._dealt_total += self.dealt_bytes.pop(epoch, 0)
        if self._ahead and not self._store:
            self._submit_up_to(self._runs + 1)
        return result

    @property
    def shared_times(self) -> tuple[float, float]:
        """When, on the host's monotonic clock, the last run's inputs and its result were shared."""
        return self._party.inputs_shared_at, self._party.result_shared_at

    # ---- counting and ending
    def _counts(self) -> tuple[int, dict[str, int], int]:
        stats = self.channel.stats
        return stats.rounds, {self.me: stats.sent_bytes}, self._dealt_total

    def _fail(self, error: BaseException) -> None:
        """Tells the peers that this party stops, without saying anything about its values."""
        if self._closed:
            return
        self._closed = f"it failed: {type(error).__name__}"
        reason = public_reason(error)
        self.channel.abort(reason)
        self._stop_worker()
        self._source.abort(reason)
        self._release()

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = "close() was called"
        self.channel.close()
        self._stop_worker()
        self._source.close()
        self._release()

    def _stop_worker(self) -> None:
        """From here on, nobody else uses the source."""
        if not self._worker.close(_STOP_S):
            self._source.interrupt()
            self._worker.close(_STOP_S)

    def _release(self) -> None:
        if self._store:
            self._store.close()


class _Counted:
    """A source that notes how many bytes each epoch took from the dealer."""

    def __init__(self, source: Any, session: RemoteSession) -> None:
        self._source, self._session = source, session

    def dealt(self, epoch: int, node: int, parts):
        if isinstance(self._source, (DealerSource, StoreSource)):
            counted = self._session.dealt_bytes
            counted[epoch] = counted.get(epoch, 0) + frame_bytes(parts)
        return self._source.dealt(epoch, node, parts)


def drive_one(party: Any, channel: Channel, after_first: Callable[[], None] = lambda: None) -> Any:
    """Steps one party's coroutine over its channel; returns what it returned."""
    received = None
    while True:
        try:
            talk = party.send(received)
        except StopIteration as end:
            return end.value
        first = received is None
        received = channel.exchange(talk.label, talk.sends, talk.receives)
        if first:
            after_first()


def place(
    program: Program, me: str | None, config: str | Path | PartiesConfig | None, insecure_plain: bool
) -> tuple[str, PartiesConfig, Identity | None]:
    """Who this process is, where the others are, and its identity. Raises ConfigError."""
    me = me or current().me
    config = config or current().config
    if not me or not config:
        raise ConfigError(
            "connect() does not know who this process is. Start the script with "
            "`securemodel run SCRIPT --local` or `securemodel run SCRIPT --me NAME --config parties.toml`, "
            "or pass me= and config=."
        )
    if not isinstance(config, PartiesConfig):
        config = identity.load_config(config)
    _check_parties(program, me, config)
    return me, config, _own_identity(config, insecure_plain)


def meet(
    program: Program,
    me: str,
    config: PartiesConfig,
    own: Identity | None,
    store: Store | None,
    ahead: bool,
    insecure_plain: bool,
    kind: type[RemoteSession] | None = None,
) -> RemoteSession:
    """Connects, compares what the parties run, and gets this party's key. `kind` is the session to make."""
    kind = kind or RemoteSession
    channel = join(me, config, own, insecure_plain)
    link = None
    try:
        pairs = agree(program, me, channel, store, config.skipped_runs)
        last = program.parties[-1] == me
        if store:
            source = StoreSource(store) if last else NoSource()
            return kind(program, me, channel, store.key(), source, pairs=pairs, store=store, ahead=ahead)
        link = dial(me, DEALER, config, own, insecure_plain=insecure_plain)
        key = _introduce(program, link)
        source = DealerSource(link, largest_message(program.graph)) if last else NoSource(link)
        return kind(program, me, channel, key, source, pairs=pairs, ahead=ahead)
    except BaseException as error:
        reason = public_reason(error)
        channel.abort(reason)
        if link:
            link.abort(reason)
        raise


def join(me: str, config: PartiesConfig, own: Identity | None, insecure_plain: bool) -> Channel:
    """Connects with the others; goes on from where the command line began, if it is about the same party and file."""
    arrival, arrivals = None, current().arrivals
    while arrivals:
        made = arrivals.pop()
        if (made.me, made.config, made.plain) == (me, config, insecure_plain):
            arrival = made
        else:
            made.close()
    return connect_channel(me, config, own, insecure_plain=insecure_plain, arrival=arrival)


def _own_identity(config: PartiesConfig, insecure_plain: bool) -> Identity | None:
    if insecure_plain:
        return None
    if config.identity is None:
        raise ConfigError(f"{config.path or 'the configuration'} names no identity: set identity under [me]")
    return identity.load(config.identity)


def _check_parties(program: Program, me: str, config: PartiesConfig) -> None:
    if me not in program.parties:
        raise ConfigError(f"{me!r} is not a party of this program: its parties are {', '.join(program.parties)}")
    if set(config.parties) != set(program.parties):
        raise ConfigError(
            f"the program's parties are {', '.join(program.parties)}, but {config.path or 'the configuration'} lists "
            f"{', '.join(config.parties)}. Use the same names in both."
        )


def _introduce(program: Program, link: Link) -> bytes:
    """Hands the dealer the program's text and gets this party's key."""
    link.send(PROGRAM, [program.text().encode()])
    return link.receive(STREAM_KEY, 32).numpy().tobytes()
