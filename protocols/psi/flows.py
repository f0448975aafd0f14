"""Lists that several parties send one another at once, in pieces, so that computing goes on while they travel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from protocols.channel import Channel, Label, Purpose
from protocols.channel.buffers import Buffer
from protocols.psi.terms import EPOCH

PIECE = 4096
"""Elements of a list that travel in one message."""
LAG = 4
"""How many messages after a piece its answer travels: so long there is time to make it."""


def span(piece: int) -> slice:
    """Which elements of a list are its piece of this number."""
    return slice(piece * PIECE, (piece + 1) * PIECE)


@dataclass(frozen=True)
class Shape:
    """A list on its way between two parties: how many elements of how many bytes, and how many turns it starts late."""

    items: int
    width: int
    lag: int = 0

    @property
    def pieces(self) -> int:
        """How many messages it is part of."""
        return -(-self.items // PIECE)

    @property
    def turns(self) -> int:
        """After how many turns it has arrived."""
        return self.lag + self.pieces if self.items else 0

    def nbytes(self, turn: int) -> int:
        """What of it travels in a turn."""
        start = (turn - self.lag) * PIECE
        return max(0, min(PIECE, self.items - start)) * self.width if start >= 0 else 0


@dataclass(frozen=True)
class Out:
    """A list to a peer: `pieces` gives what is next."""

    peer: str
    shape: Shape
    pieces: Iterator[Buffer]


@dataclass(frozen=True)
class In:
    """A list from a peer: `put` is given each piece and its number."""

    peer: str
    shape: Shape
    put: Callable[[int, memoryview], None]


def travel(channel: Channel, step: int, outs: Sequence[Out], ins: Sequence[In]) -> None:
    """Sends and receives lists side by side, a message for each peer and turn. Raises PeerError.

    Both ends name the lists between them in the same order; `step` is the same at all parties, in one alignment once.
    """
    for turn in range(max(flow.turns for flow in [*(out.shape for out in outs), *(into.shape for into in ins)])):
        sends: dict[str, list[Buffer]] = {}
        receives: dict[str, int] = {}
        for out in outs:
            if out.shape.nbytes(turn):
                sends.setdefault(out.peer, []).append(next(out.pieces))
        for flow in ins:
            if nbytes := flow.shape.nbytes(turn):
                receives[flow.peer] = receives.get(flow.peer, 0) + nbytes
        received = channel.exchange(Label(EPOCH + step, turn, Purpose.TRANSFER), sends, receives)
        rest = {peer: payload.numpy().data for peer, payload in received.items()}
        for flow in ins:
            if nbytes := flow.shape.nbytes(turn):
                flow.put(turn - flow.shape.lag, rest[flow.peer][:nbytes])
                rest[flow.peer] = rest[flow.peer][nbytes:]


def array_out(peer: str, rows: np.ndarray, lag: int = 0) -> Out:
    """A list that is there: uint8[n, w]."""
    shape = Shape(len(rows), rows.shape[1], lag)
    return Out(peer, shape, (np.ascontiguousarray(rows[span(piece)]) for piece in range(shape.pieces)))


def array_in(peer: str, rows: np.ndarray, lag: int = 0) -> In:
    """Room for a list: uint8[n, w]."""

    def put(piece: int, data: memoryview) -> None:
        rows[span(piece)] = np.frombuffer(data, np.uint8).reshape(-1, rows.shape[1])

    return In(peer, Shape(len(rows), rows.shape[1], lag), put)


def whole(channel: Channel, step: int, sends: dict[str, bytes], receives: dict[str, int]) -> dict[str, bytes]:
    """One short message to some peers, and from some."""
    label = Label(EPOCH + step, 0, Purpose.CONTROL)
    received = channel.exchange(label, {peer: [data] for peer, data in sends.items()}, receives)
    return {peer: payload.numpy().tobytes() for peer, payload in received.items()}
