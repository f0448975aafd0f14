"""Sessions of training with Paillier: both parties in this process, or one of them over a channel. Nobody deals."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from protocols.identity import PartiesConfig
from protocols.paillier import PrivateKey, PublicKey, generate
from protocols.paillier.keys import insecure_generate
from securemodel.engines.labels import PAILLIER_KEY
from securemodel.engines.paillier.linear_program import LinearProgram
from securemodel.engines.paillier.party import key_bytes, key_text, read_key
from securemodel.engines.paillier.trainer import Trainer
from securemodel.engines.paillier.training_walk import TrainingWalk
from securemodel.engines.walk import Inputs, Rows
from securemodel.sessions.agree import agree
from securemodel.sessions.remote import aborting, join, place
from securemodel.sessions.session import Session


class TrainingSession(Session):
    """`run` takes the columns, then the learning rate, the rows (None for rows that are not of the data set) and the
    step's number; it returns the guard's sum where this step has one, else None."""

    def _run(self, inputs: Inputs) -> list:
        with self._guarded():
            for walk in self.walks.values():
                cast(TrainingWalk, walk).public = inputs[-3:]
            return self._run_batch(inputs[:-3], Rows(cast(LinearProgram, self.program).shape.rows))[0]


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


def open_local(program: LinearProgram) -> TrainingSession:
    """Both parties here, each with a key of its own."""
    keys, walks = {me: new_key(program) for me in program.parties}, {}
    for rank, me in enumerate(program.parties):
        peer = program.parties[1 - rank]
        walks[me] = TrainingWalk(program, Trainer(program.shape, me, peer, rank, keys[me], keys[peer].public))
    return TrainingSession(program, walks)


def open_connection(
    program: LinearProgram, me: str | None, config: str | Path | PartiesConfig | None, *, insecure_plain: bool = False
) -> TrainingSession:
    """This party's end: connects, compares programs, exchanges public keys. Raises ConfigError, Mismatch, PeerError."""
    me, config, own = place(program.parties, me, config, insecure_plain, "train")
    key = new_key(program)
    channel = join(me, config, own, insecure_plain)
    with aborting(channel):
        agree(program.digest, me, channel, None)
        rank = program.parties.index(me)
        peer, size = program.parties[1 - rank], key_bytes(program.shape.key_bits)
        got = channel.exchange(PAILLIER_KEY, {peer: [key_text(key, size)]}, {peer: size})
        theirs = read_key(got[peer].numpy().tobytes(), peer, program.key_settings)
        prepare(theirs)
        walk = TrainingWalk(program, Trainer(program.shape, me, peer, rank, key, theirs))
    return TrainingSession(program, {me: walk}, {me: channel})
