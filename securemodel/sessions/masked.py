"""Opens the sessions of the masked engine's programs: in this process, or one party's end of one between processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from protocols import kernels
from protocols.channel import Channel, Link
from protocols.devices import CPU, Device, chosen
from protocols.errors import explain
from protocols.identity import Identity, PartiesConfig
from protocols.prg import Stream
from securemodel.engines.labels import PROGRAM, STREAM_KEY, TABLE_KEY
from securemodel.engines.masked.party import OnlineParty
from securemodel.engines.masked.sources import DealerSource, NoSource, largest_message
from securemodel.engines.masked.store import Store, StoreSource
from securemodel.engines.masked.tables import Tables, keys_to_hand
from securemodel.engines.masked.walk import MaskedWalk, local_walks
from securemodel.errors import ConfigError, InputError
from securemodel.invocation import current
from securemodel.program import Program
from securemodel.sessions.agree import agree
from securemodel.sessions.remote import aborting, dial_dealer, join, place
from securemodel.sessions.session import Epochs, Session


def open_local(program: Program, device: Device = None, *, tables: Mapping[str, Tables] | None = None) -> Session:
    """What `local` opens for programs of the masked engine. `tables`: what the parties shared in earlier sessions."""
    kernels.keep_freed_memory()
    _check_owned(program)
    return Session(program, local_walks(program, device=chosen(device or current().device), tables=tables))


def open_connection(
    program: Program,
    me: str | None,
    config: str | Path | PartiesConfig | None,
    *,
    store: str | Path | None = None,
    ahead: bool = True,
    insecure_plain: bool = False,
    paillier_key: str | Path | None = None,
    device: Device = None,
    tables: Tables | None = None,
    channel: Channel | None = None,
) -> Session:
    """What `connect` opens for programs of the masked engine. `tables`: what the parties shared in earlier sessions.

    `channel`: that of an earlier session of the same parties, which they left.
    """
    kernels.keep_freed_memory()
    _check_owned(program)
    store = store or current().store
    if paillier_key:
        raise ConfigError(
            explain(
                "the masked engine uses no Paillier key",
                fix='leave out paillier_key, or compile with protocol="paillier"',
            )
        )
    on = chosen(device or current().device)
    me, config, own = place(program.parties, me, config, insecure_plain)
    with ExitStack() as opened:
        held = Store.open(Path(store), program, me) if store else None
        if held:
            opened.callback(held.close)
        channel, walk = meet(program, me, config, own, held, ahead, insecure_plain, on, tables, channel)
        opened.pop_all()
    return Session(program, {me: walk}, {me: channel}, StoredEpochs(held) if held else None)


def _check_owned(program: Program) -> None:
    """Raises InputError for a program whose inputs no party has."""
    if program.header.serves:
        what = "the inputs of this program are a client's, who is no party"
        raise InputError(explain(what, fix="open a session of its family, the result of compile_service()"))


def meet(
    program: Program,
    me: str,
    config: PartiesConfig,
    own: Identity | None,
    store: Store | None,
    ahead: bool,
    insecure_plain: bool,
    device: torch.device = CPU,
    tables: Tables | None = None,
    channel: Channel | None = None,
) -> tuple[Channel, MaskedWalk]:
    """Connects, unless there is a channel, compares what the parties run, and gets this party's key."""
    channel = channel or join(me, config, own, insecure_plain, dealer=not store)
    tables = tables or Tables()
    with aborting(channel):
        pairs = agree(program.digest, me, channel, store, config.skipped_runs, tuning=program.header.tuning)
        last = program.parties[-1] == me
        if store:
            stream, source = Stream(store.key(), device), StoreSource(store) if last else NoSource()
            party = OnlineParty(program, me, stream, pairs)
            party.tables = tables.under(store.key())
            return channel, MaskedWalk(party, stream, source, store=store, threaded=True)
        link = dial_dealer(me, config, own, insecure_plain, channel.session)
        with aborting(link):
            keys = [tables.key_of(owner) for owner in keys_to_hand(program.graph, program.parties, me)]
            stream = Stream(introduce(program.text(), link, keys), device)
            party = OnlineParty(program, me, stream, pairs)
            party.tables = tables
            source = DealerSource(link, largest_message(program.graph)) if last else NoSource(link)
            return channel, MaskedWalk(party, stream, source, threaded=True, ahead=ahead)


def introduce(text: str, link: Link, keys: Sequence[bytes] = ()) -> bytes:
    """Hands the dealer the text of what is run, and the keys of rows that are shared once; gets this party's key."""
    link.send(PROGRAM, [text.encode()])
    if keys:
        link.send(TABLE_KEY, [b"".join(keys)])
    return link.receive(STREAM_KEY, 32).numpy().tobytes()


class StoredEpochs(Epochs):
    """The epochs of a store: its load is 0, and each run has its number."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store, self._used = store, 0

    def next_load(self, runs: int) -> int:
        """The load's epoch; later runs go on where the store is."""
        self._used = self._store.next_run - 1
        return 0

    def run(self, number: int) -> int:
        """The epoch of a run of the last load, from 1."""
        return self._used + number
