"""Sessions of training with Paillier: both parties in this process, or one of them over a channel. Nobody deals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from protocols.channel import Channel, local_channels
from protocols.errors import InputError, explain, public_reason
from protocols.identity import PartiesConfig
from protocols.paillier import PrivateKey, PublicKey, generate
from protocols.paillier.keys import insecure_generate
from securemodel.engines.labels import PAILLIER_KEY
from securemodel.engines.masked.party import Rows
from securemodel.engines.paillier.linear_program import LinearProgram
from securemodel.engines.paillier.party import key_bytes, key_text, read_key
from securemodel.engines.paillier.trainer import Trainer
from securemodel.sessions.agree import agree
from securemodel.sessions.remote import drive_one, join, place
from securemodel.sessions.session import Session, drive

Given = Sequence[torch.Tensor | None]


class _TrainingSession(Session):
    """`run` takes the columns, then the learning rate, the rows (None for rows that are not of the data set) and the
    step's number; it returns the guard's sum where this step has one, else None."""

    program: LinearProgram
    _trainers: Mapping[str, Trainer]

    def _walk(self, me: str, epoch: int, inputs: Given):
        """A party's coroutine for one step. Raises InputError before anything is sent."""
        program, columns = self.program, list(inputs[:-3])
        lr, rows, number = inputs[-3:]
        shape, attrs = program.shape, program.attrs
        rate, decay = float(lr) * attrs["factor"], float(lr) * attrs["decay"]
        if not 0 <= rate <= 1 or not 0 <= decay <= 1:
            raise InputError(
                explain(f"the learning rate {float(lr):g} is out of range", why="rate times gradients, and rate times "
                        "weight decay, must be from 0 to 1", fix="use a smaller rate")
            )  # fmt: skip
        mine = [x for x, owner in zip(columns, program.header.inputs, strict=True) if owner == me]
        wanted = [s for s, owner in zip(program.header.input_shapes, program.header.inputs, strict=True) if owner == me]
        if [None if x is None else tuple(x.shape) for x in mine] != [tuple(s) for s in wanted]:
            raise InputError(
                explain(f"party {me!r} gave a batch of other shapes", why=f"a step takes {[list(s) for s in wanted]}",
                        fix="give as many rows as the step was compiled for")
            )  # fmt: skip
        guard = bool(attrs["guard"]) and int(number) % attrs["guard"] == 0
        known = None if rows is None else rows.tolist()
        x, y = program.columns_of(me, columns), program.labels_of(me, columns)
        self._note(epoch, shape.rows)
        return self._trainers[me].step(epoch, x, y, rate, decay, known, guard)

    def _load(self, model: Any) -> None:
        self._epochs.next_load(self._runs)
        self._loads, self._runs = self._loads + 1, 0
        for trainer in self._trainers.values():
            trainer.begin(self.program.start())

    def _next(self) -> int:
        self._runs += 1
        return self._epochs.run(self._runs)

    def _run_batch(self, inputs: Given, rows: Rows) -> tuple[list, Rows]:
        return self._run(inputs), rows


class LocalTraining(_TrainingSession):
    """Both parties in this process, each with a key of its own."""

    def __init__(self, program: LinearProgram) -> None:
        super().__init__(program)
        self.channels: dict[str, Channel] = dict(local_channels(program.parties))
        keys = {me: new_key(program) for me in program.parties}
        self._parties = self._trainers = {
            me: Trainer(program.shape, me, peer, rank, keys[me], keys[peer].public)
            for rank, (me, peer) in enumerate(_pairs(program))
        }

    def _run(self, inputs: Given) -> list:
        epoch = self._next()
        walks = {me: self._walk(me, epoch, inputs) for me in self.program.parties}
        return [drive(walks, self.channels)[self.program.parties[0]]]

    def _is_mine(self, owner: str) -> bool:
        return True

    def _counts(self) -> tuple[int, dict[str, int], int]:
        stats = {name: channel.stats for name, channel in self.channels.items()}
        return max(s.rounds for s in stats.values()), {name: s.sent_bytes for name, s in stats.items()}, 0

    def _close(self) -> None:
        self._closed = self._closed or "close() was called"
        for channel in self.channels.values():
            channel.close()


class RemoteTraining(_TrainingSession):
    """One party's end of a training between processes."""

    def __init__(self, program: LinearProgram, trainer: Trainer, channel: Channel) -> None:
        super().__init__(program)
        self.me, self.channel, self._party = trainer.me, channel, trainer
        self._trainers = {trainer.me: trainer}

    def _run(self, inputs: Given) -> list:
        with self._guarded():
            return [drive_one(self._walk(self.me, self._next(), inputs), self.channel)]

    def _is_mine(self, owner: str) -> bool:
        return owner == self.me

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        if not self._closed:
            self._closed = f"it failed: {type(error).__name__}"
            self.channel.abort(public_reason(error))

    def _counts(self) -> tuple[int, dict[str, int], int]:
        stats = self.channel.stats
        return stats.rounds, {self.me: stats.sent_bytes}, 0

    def _close(self) -> None:
        if not self._closed:
            self._closed = "close() was called"
            self.channel.close()


def _pairs(program: LinearProgram) -> list[tuple[str, str]]:
    first, second = program.parties
    return [(first, second), (second, first)]


def new_key(program: LinearProgram) -> PrivateKey:
    """A party's key, for one session. Its tables are made now, not in the first step."""
    bits = program.shape.key_bits
    key = insecure_generate(bits) if program.attrs["insecure"] else generate(bits)
    prepare(key.public)
    key.blinding_bases, key.halves  # noqa: B018
    return key


def prepare(key: PublicKey) -> None:
    """Makes the tables for re-randomizing under a peer's key."""
    key.blinding_base, key.upper_base  # noqa: B018


def open_local(program: LinearProgram) -> LocalTraining:
    """Both parties here."""
    return LocalTraining(program)


def open_connection(
    program: LinearProgram, me: str | None, config: str | Path | PartiesConfig | None, *, insecure_plain: bool = False
) -> RemoteTraining:
    """This party's end: connects, compares programs, exchanges public keys. Raises ConfigError, Mismatch, PeerError."""
    me, config, own = place(program, me, config, insecure_plain)
    key = new_key(program)
    channel = join(me, config, own, insecure_plain)
    try:
        agree(program, me, channel, None)
        peer = dict(_pairs(program))[me]
        size = key_bytes(program.shape.key_bits)
        got = channel.exchange(PAILLIER_KEY, {peer: [key_text(key, size)]}, {peer: size})
        theirs = read_key(got[peer].numpy().tobytes(), peer, program.key_settings)
        prepare(theirs)
        return RemoteTraining(
            program, Trainer(program.shape, me, peer, program.parties.index(me), key, theirs), channel
        )
    except BaseException as error:
        channel.abort(public_reason(error))
        raise
