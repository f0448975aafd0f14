"""The two parties' walks through a run: coroutines that yield when they must talk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from protocols.channel import Label, Purpose
from protocols.errors import BadFrame, ConfigError, InputError, Mismatch, ProtocolError, explain, reason_of
from protocols.paillier import BlindingPool, PrivateKey, PublicKey, keyfile
from protocols.paillier.affine import AffineClient, AffineServer
from securemodel.compiler.capture import ModelState
from securemodel.compiler.wire import START
from securemodel.engines.clear import ClearSide, typed
from securemodel.engines.masked.party import check_runnable
from securemodel.engines.paillier.folding import fold
from securemodel.engines.paillier.program import PaillierProgram
from securemodel.engines.start import agreed_rows, start_bytes
from securemodel.engines.walk import Inputs, Rows, Steps, Talk


def key_bytes(bits: int) -> int:
    """Bytes of the message that carries a public key: its text, filled up with blanks."""
    return bits // 2 + 512


def key_text(key: PrivateKey, size: int) -> bytes:
    """The public key as the message that carries it."""
    return keyfile.dump_public(key.public).encode().ljust(size)


def read_key(text: bytes, peer: str, settings: Mapping[str, Any]) -> PublicKey:
    """The key in a peer's message. Raises Mismatch for one that is none, or of another size."""
    try:
        key = keyfile.load_public(text.decode("ascii"), settings["insecure"])
        if key.bits != settings["key_bits"]:
            raise ConfigError(f"it has {key.bits} bits, and the program was compiled for {settings['key_bits']}")
    except (ConfigError, UnicodeDecodeError) as error:
        what, fix = f"party {peer!r} sent a key that cannot be used", "compile the same program at both parties"
        raise Mismatch(peer, explain(what, where="start of the session", why=reason_of(error), fix=fix)) from None
    return key


@contextmanager
def blaming(peer: str, where: str) -> Iterator[None]:
    """Errors of a message become a BadFrame of the party it came from."""
    try:
        yield
    except ProtocolError as error:
        text = explain(f"party {peer!r} sent a message that cannot be used", where=where, why=reason_of(error),
                       fix="start all parties again; if it happens again, do not trust the link or the peer")  # fmt: skip
        raise BadFrame(peer, text) from None


class Party:
    """What both parties have: the program, their numbers in the clear, and the session that messages belong to."""

    def __init__(self, program: PaillierProgram, me: str, session: bytes) -> None:
        check_runnable(program)
        self.program, self.me = program, me
        self.peer = next(name for name in program.parties if name != me)
        self.clear = ClearSide(program, me)
        self.pool: BlindingPool | None = None
        self.agreed: Callable[[Rows], None] = lambda rows: None
        """Told the rows of a run at the server, before it answers."""
        self._session = session.hex()

    def context(self, epoch: int) -> str:
        """What the ciphertexts of a run are bound to, besides their sender and step."""
        return f"{self._session}/{self.program.digest}/{epoch}"

    def each_row(self, inputs: Inputs) -> Iterator[None]:
        """Sets this party's inputs to those of each row in turn: what the program's graph is about."""
        rows = self.program.shape.rows
        for row in range(rows):
            self.clear.set_inputs(inputs if rows == 1 else [None if x is None else x[row : row + 1] for x in inputs])
            yield

    def start(self, inputs: Inputs, rows: Rows) -> bytes:
        """The first bytes of a run: what public values it is about, and how many rows are real."""
        self.clear.set_inputs(inputs)
        return start_bytes(self.clear.agreed_digest("run"), rows)


class Client(Party):
    """The party with the key: encrypts its numbers, decrypts the answer, computes the rest in the clear."""

    def __init__(self, program: PaillierProgram, session: bytes, key: PrivateKey) -> None:
        super().__init__(program, program.client, session)
        self.key, self._gate = key, AffineClient(key, program.shape)
        self._sources = [node.args[0] for node in program.nodes("encrypt")]
        self._decrypted, self._revealed = program.nodes("decrypt"), program.nodes("reveal")

    def load(self, model: ModelState | None) -> None:
        """Takes the weights that this party needs in the clear."""
        self.clear.set_model(model)

    def run(self, epoch: int, inputs: Inputs, rows: Rows) -> Steps[tuple[list, Rows]]:
        """One run; returns the outputs, and the rows that count."""
        numbers = []
        for _ in self.each_row(inputs):
            numbers.append(torch.cat([self.clear.value(i).detach().double().reshape(-1) for i in self._sources]))
        try:
            request = self._gate.request(torch.stack(numbers).numpy(), self.context(epoch), self.pool)
        except InputError as error:
            raise InputError(
                explain(
                    f"party {self.me!r} has inputs that the program has no room for",
                    why=reason_of(error),
                    fix="scale them, or compile with a larger input_limit at both parties; it is public",
                )
            ) from None
        sends = {self.peer: [self.start(inputs, rows), request]}
        yield Talk(Label(epoch, 0, Purpose.INPUT), sends, {})
        received = yield Talk(Label(epoch, 1, Purpose.REVEAL), {}, {self.peer: self.program.shape.reply_bytes})
        with blaming(self.peer, f"answer of run {epoch}"):
            scores = self._gate.finish(received[self.peer].numpy().tobytes(), self.context(epoch))
        return self._outputs(inputs, scores), rows

    def _outputs(self, inputs: Inputs, scores: np.ndarray) -> list[torch.Tensor]:
        made: list[list[torch.Tensor]] = []
        exact: dict[int, torch.Tensor] = {}
        for row, _ in enumerate(self.each_row(inputs)):
            at = 0
            for node in self._decrypted:
                size = int(np.prod(node.shape, dtype=int))
                value = torch.from_numpy(scores[row, at : at + size].copy()).reshape(node.shape)
                value = value.round().to(torch.int64) if node.attrs.get("integer") else value
                exact[node.id] = value
                self.clear.give(node.id, value.to(torch.float32) if value.is_floating_point() else value)
                at += size
            read = lambda node: exact[node] if node in exact else self.clear.value(node)
            made.append([typed(read(n.args[0]), n.attrs["dtype"]) for n in self._revealed])
        columns = [list(column) for column in zip(*made, strict=True)]
        return [column[0] if len(column) == 1 else torch.cat(column) for column in columns]


class Server(Party):
    """The party with the weights: computes on the client's ciphertexts."""

    def __init__(self, program: PaillierProgram, session: bytes, key: PublicKey) -> None:
        super().__init__(program, program.server, session)
        self.key = key
        self._gate: AffineServer | None = None

    def load(self, model: ModelState | None) -> None:
        """Takes the weights. Raises InputError for one above the limit; nothing is sent."""
        self._gate = None
        self.clear.set_model(model)
        if self.program.shared:
            self._gate = self._multiplied_out([*fold(self.program, self.clear)])

    def _multiplied_out(self, matrix_and_bias: list[np.ndarray]) -> AffineServer:
        try:
            return AffineServer(self.program.shape, *matrix_and_bias)
        except InputError as error:
            given = self.program.settings
            raise InputError(
                explain(
                    f"party {self.me!r} has weights that the program has no room for",
                    why=reason_of(error),
                    fix=f"compile with a larger weight_limit (now {given['weight_limit']:g}) or input_limit "
                    f"(now {given['input_limit']:g}) at both parties; both are public",
                )
            ) from None

    def run(self, epoch: int, inputs: Inputs, rows: Rows) -> Steps[tuple[list, Rows]]:
        """One run; returns no outputs, and the rows that count."""
        shape, gate = self.program.shape, self._gate
        if gate is None:
            parts = [fold(self.program, self.clear) for _ in self.each_row(inputs)]
            gate = self._multiplied_out([np.stack(part) for part in zip(*parts, strict=True)])
        self.clear.set_inputs(inputs)
        expected = {self.peer: START.size + shape.request_bytes}
        received = yield Talk(Label(epoch, 0, Purpose.INPUT), {}, expected)
        data, said = received[self.peer].numpy().tobytes(), {self.peer: received[self.peer]}
        agreed = agreed_rows(self.program, self.me, self.clear.agreed_digest("run"), rows, said, least=1)
        self.agreed(agreed)
        with blaming(self.peer, f"request of run {epoch}"):
            reply = gate.reply(self.key, data[START.size :], self.context(epoch), self.pool)
        yield Talk(Label(epoch, 1, Purpose.REVEAL), {self.peer: [reply]}, {})
        return [None] * len(self.program.header.outputs), agreed
