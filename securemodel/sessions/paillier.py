"""Sessions of encrypted graphs: both parties in this process, or one of them over a channel."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from protocols import kernels
from protocols.channel import Channel, local_channels
from protocols.errors import ConfigError, explain, public_reason
from protocols.files import read_secret
from protocols.identity import PartiesConfig
from protocols.paillier import BlindingPool, PrivateKey, generate, load_private
from protocols.paillier.cipher import Draw
from protocols.paillier.keys import insecure_generate
from protocols.paillier.pool import InsecurePool
from securemodel.engines.labels import PAILLIER_KEY
from securemodel.engines.masked.party import Rows
from securemodel.engines.paillier.deep import DeepProgram
from securemodel.engines.paillier.party import Client, Inputs, Server, key_bytes
from securemodel.engines.paillier.program import PaillierProgram
from securemodel.sessions.agree import agree
from securemodel.sessions.hybrid import LocalDeepSession, RemoteDeepSession
from securemodel.sessions.remote import drive_one, join, meet, place
from securemodel.sessions.session import Session, batches, drive, joined, split_rows

_MOST_FACTORS = 4096


class LocalPaillierSession(Session):
    """Both parties in this process, with a key made for the session; `run` takes and returns everything.

    `key` and `insecure_draw` are for tests that must repeat.
    """

    def __init__(
        self, program: PaillierProgram, key: PrivateKey | None = None, insecure_draw: Draw | None = None
    ) -> None:
        super().__init__(program)
        self.channels: dict[str, Channel] = dict(local_channels(program.parties))
        nonce = (insecure_draw or os.urandom)(32)
        self.client = Client(program, nonce, key or new_key(program))
        self.server = Server(program, nonce)
        self.server.take_key(self.client.key_text())
        if insecure_draw:
            self.client.pool, self.server.pool = (
                InsecurePool(party.key, insecure_draw) for party in (self.client, self.server)
            )

    def _load(self, model: torch.nn.Module | None) -> None:
        self._epochs.next_load(self._runs)
        self._loads, self._runs = self._loads + 1, 0
        self.client.clear.set_model(model)
        self.server.load(model)

    def _run(self, inputs: Inputs) -> list:
        header, results, counted = self.program.header, [], []
        total = split_rows(inputs, self.program, [True] * len(header.inputs))
        for part, rows in batches(inputs, self.program, total):
            results.append(self._run_batch(part, rows)[0])
            counted.append(rows)
        return joined(results, counted, self.program)

    def _run_batch(self, inputs: Inputs, rows: Rows) -> tuple[list, Rows]:
        self._runs += 1
        epoch, runs, owners = self._epochs.run(self._runs), {}, self.program.header.inputs
        self._note(epoch, rows.now)
        for party in (self.client, self.server):
            given = rows if party.me in owners else Rows()
            runs[party.me] = party.run(epoch, _owned(inputs, owners, party.me), given)
        return drive(runs, self.channels)[self.client.me][0], rows

    def _is_mine(self, owner: str) -> bool:
        return True

    def _counts(self) -> tuple[int, dict[str, int], int]:
        stats = {name: channel.stats for name, channel in self.channels.items()}
        return max(s.rounds for s in stats.values()), {name: s.sent_bytes for name, s in stats.items()}, 0

    def _close(self) -> None:
        self._closed = self._closed or "close() was called"
        for channel in self.channels.values():
            channel.close()


class RemotePaillierSession(Session):
    """One party's end of a session between processes. Made by `securemodel.connect`.

    With `ahead`, blinding factors for the next run are made while none is going on.
    """

    def __init__(self, program: PaillierProgram, party: Client | Server, channel: Channel, ahead: bool) -> None:
        super().__init__(program)
        self.me, self.channel, self._party = party.me, channel, party
        if ahead:
            shape = program.shape
            mine = shape.groups * shape.inputs if isinstance(party, Client) else shape.reply_cells
            party.pool = BlindingPool(party.key, min(mine, _MOST_FACTORS))

    def _load(self, model: torch.nn.Module | None) -> None:
        with self._guarded():
            self._epochs.next_load(self._runs)
            self._loads, self._runs = self._loads + 1, 0
            if isinstance(self._party, Server):
                self._party.load(model)
            else:
                self._party.clear.set_model(model)

    def _run(self, inputs: Inputs) -> list:
        results: list[list] = []
        counted: list[Rows] = []
        with self._guarded():
            for part, rows in self._parts(inputs, counted):
                outputs, agreed = self._run_batch(part, rows)
                results.append(outputs)
                counted.append(agreed)
            return joined(results, counted, self.program)

    def _run_batch(self, inputs: Inputs, rows: Rows) -> tuple[list, Rows]:
        self._runs += 1
        epoch = self._epochs.run(self._runs)
        if rows.now:
            self._note(epoch, rows.now)
        self._party.agreed = lambda agreed: None if rows.now else self._note(epoch, agreed.now)
        walk = self._party.run(epoch, inputs, rows)
        return drive_one(walk, self.channel)

    def _is_mine(self, owner: str) -> bool:
        return owner in (self.me, "public")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._fail(error)
            raise

    def _parts(self, inputs: Inputs, counted: list[Rows]) -> Iterator[tuple[Inputs, Rows]]:
        """This party's inputs in batches; without any, as many times nothing as the client announces batches."""
        header = self.program.header
        mine = [owner in (self.me, "public") for owner in header.inputs]
        total, owned = split_rows(inputs, self.program, mine), _owned(inputs, header.inputs, self.me)
        if any(mine):
            yield from batches(owned, self.program, total)
            return
        while not counted or counted[-1].left:
            yield owned, Rows()

    def _counts(self) -> tuple[int, dict[str, int], int]:
        stats = self.channel.stats
        return stats.rounds, {self.me: stats.sent_bytes}, 0

    def _fail(self, error: BaseException) -> None:
        if not self._closed:
            self._closed = f"it failed: {type(error).__name__}"
            self.channel.abort(public_reason(error))
            self._release()

    def _close(self) -> None:
        if not self._closed:
            self._closed = "close() was called"
            self.channel.close()
            self._release()

    def _release(self) -> None:
        if self._party.pool is not None:
            self._party.pool.close()


def _owned(inputs: Inputs, owners: Sequence[str], me: str) -> list[torch.Tensor | None]:
    """Of the inputs, what a party has."""
    return [x if owner in (me, "public") else None for x, owner in zip(inputs, owners, strict=True)]


def new_key(program: PaillierProgram | DeepProgram) -> PrivateKey:
    """A key of the program's size, for one session."""
    bits = program.settings["key_bits"]
    return insecure_generate(bits) if program.settings["insecure"] else generate(bits)


def key_in(path: str | Path, program: PaillierProgram | DeepProgram) -> PrivateKey:
    """The client's private key from its file. Raises ConfigError for a file others can read, or another key."""
    path, bits = Path(path), program.settings["key_bits"]
    try:
        text = read_secret(path, "a private key").decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(explain("the key file cannot be read", where=str(path), why=type(error).__name__)) from None
    key = load_private(text, program.settings["insecure"])
    if key.public.bits != bits:
        raise ConfigError(
            explain(
                f"the key has {key.public.bits} bits, and the program was compiled for {bits}",
                where=str(path),
                fix=f"use another key, or compile with key_bits={key.public.bits} at both parties",
            )
        )
    return key


def open_local(program: PaillierProgram | DeepProgram) -> Session:
    """What `local` opens for encrypted graphs."""
    if isinstance(program, DeepProgram):
        kernels.keep_freed_memory()
        return LocalDeepSession(program, new_key(program))
    return LocalPaillierSession(program)


def open_connection(
    program: PaillierProgram | DeepProgram,
    me: str | None,
    config: str | Path | PartiesConfig | None,
    *,
    store: str | Path | None,
    ahead: bool,
    insecure_plain: bool,
    paillier_key: str | Path | None,
) -> Session:
    """What `connect` opens for encrypted graphs; a dealer is asked for deep models only."""
    if store:
        raise ConfigError(explain("protocol 'paillier' uses no store", why="nothing is dealt", fix="leave out store"))
    me, config, own = place(program, me, config, insecure_plain)
    key = None
    if me == program.client:
        key = key_in(paillier_key, program) if paillier_key else new_key(program)
    if isinstance(program, DeepProgram):
        kernels.keep_freed_memory()
        session = meet(program, me, config, own, None, ahead, insecure_plain, RemoteDeepSession)
        session.take_key(key)
        return session
    channel = join(me, config, own, insecure_plain)
    try:
        agree(program, me, channel, None)
        return RemotePaillierSession(program, _with_key(program, me, channel, key), channel, ahead)
    except BaseException as error:
        channel.abort(public_reason(error))
        raise


def _with_key(program: PaillierProgram, me: str, channel: Channel, key: PrivateKey | None) -> Client | Server:
    """This party, after the client has sent its public key."""
    size = key_bytes(program.settings["key_bits"])
    if key is not None:
        client = Client(program, channel.session, key)
        channel.exchange(PAILLIER_KEY, {client.peer: [client.key_text()]}, {})
        return client
    server = Server(program, channel.session)
    received = channel.exchange(PAILLIER_KEY, {}, {server.peer: size})
    server.take_key(received[server.peer].numpy().tobytes())
    return server
