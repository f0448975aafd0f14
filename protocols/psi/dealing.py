"""The dealer's part of an alignment: a line for each bin, of which one party has the slope and the other a point.

The asker's stream gives r and c, the answerer's a, all uniform modulo p = 2^127 - 1, and the dealer sends the answerer
b = c - a r: oblivious linear evaluation of x -> a x + b at a random r [Naor, Pinkas 1999; made by a dealer as in Beaver
1995]. The dealer learns how many bins there are, and when; it sees no message between the parties.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch

from protocols.channel import Channel, Label, Purpose
from protocols.channel.buffers import Buffer
from protocols.errors import DecodeError, Mismatch, ProtocolError, explain
from protocols.kernels.bins import line_offsets
from protocols.prg import KEY_BYTES, Stream, Use, new_key
from protocols.psi.cuckoo import CHOICES, bins_for
from protocols.psi.terms import EPOCH, MOST_ROWS
from protocols.strict import strict_fields

ASK = Label(0, 3, Purpose.CONTROL)
"""What a party wants of the dealer: where others send it a program."""
KEY = Label(0, 0, Purpose.SEED)
PIECE = 1 << 18
"""Bins of one message."""
NUMBER_BYTES = 16
_FIRST = "alignment "
_VERSION = 1
_MOST_TEXT = 1024
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "asker": str,
    "answerer": str,
    "bins": int,
    "session": str,
    "version": int,
}


class Line(Protocol):
    """What a party has to talk to the dealer, and the dealer to a party: a `Link`, or one peer of a channel."""

    def send(self, label: Label, buffers: Sequence[Buffer]) -> None: ...

    def receive(self, label: Label, nbytes: int | None = None, *, max_bytes: int = 0) -> torch.Tensor: ...

    def abort(self, reason: str) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class PeerLine:
    """The line that a channel has to one of its peers."""

    channel: Channel
    peer: str

    def send(self, label: Label, buffers: Sequence[Buffer]) -> None:
        self.channel.send(self.peer, label, buffers)

    def receive(self, label: Label, nbytes: int | None = None, *, max_bytes: int = 0) -> torch.Tensor:
        return self.channel.receive(self.peer, label, nbytes, max_bytes=max_bytes)

    def abort(self, reason: str) -> None:
        self.channel.abort(reason)

    def close(self) -> None:
        self.channel.close()


@dataclass(frozen=True)
class Request:
    """What both parties ask for, in the same words: a line for each of so many bins."""

    asker: str
    answerer: str
    bins: int
    session: str

    def text(self) -> bytes:
        """The request as it is sent."""
        return (_FIRST + json.dumps({**asdict(self), "version": _VERSION}, sort_keys=True)).encode()


def is_request(text: bytes) -> bool:
    """Whether a party wants an alignment dealt for, and not a program."""
    return text.startswith(_FIRST.encode())


def parse_request(text: bytes) -> Request:
    """Reads a request, from whoever it comes. Raises ProtocolError."""
    try:
        fields = strict_fields(text[len(_FIRST) :], "a request", _FIELDS, _MOST_TEXT)
    except DecodeError:
        raise _refused("it cannot be read") from None
    if fields.pop("version") != _VERSION:
        raise _refused("it is of another version of securemodel")
    request = Request(**fields)
    if not CHOICES <= request.bins <= bins_for(MOST_ROWS):
        raise _refused(f"it is about {request.bins} bins")
    return request


def _refused(why: str) -> ProtocolError:
    fix = "use the same version at both parties and the dealer"
    return ProtocolError(explain("the dealer refuses a request for an alignment", why=why, fix=fix))


def ask(dealer: Line, request: Request) -> Stream:
    """Asks the dealer; the stream that it shares with this party. Raises PeerError."""
    dealer.send(ASK, [request.text()])
    return Stream(dealer.receive(KEY, KEY_BYTES).numpy().tobytes())


def pieces(bins: int) -> Iterator[tuple[int, slice]]:
    """(number, bins) of each message of a list with one number for each bin."""
    for number, start in enumerate(range(0, bins, PIECE)):
        yield number, slice(start, min(start + PIECE, bins))


def drawn(stream: Stream, piece: int, size: int, index: int) -> np.ndarray:
    """uint64[size, 2]: numbers of a stream for the bins of one piece, the first (0) or the second (1) of a bin's."""
    return stream.draw((size, 2), 0, piece, Use.DEALT, torch.int64, index).numpy().view(np.uint64)


def all_drawn(stream: Stream, bins: int, index: int) -> np.ndarray:
    """The same for all bins."""
    return np.concatenate([drawn(stream, piece, at.stop - at.start, index) for piece, at in pieces(bins)])


def offsets(dealer: Line, bins: int) -> np.ndarray:
    """uint64[bins, 2]: what the dealer sends the party that answers. Raises PeerError."""
    out = np.empty((bins, 2), np.uint64)
    for piece, at in pieces(bins):
        came = dealer.receive(Label(EPOCH, piece, Purpose.DEAL), (at.stop - at.start) * NUMBER_BYTES)
        out[at] = came.numpy().view(np.uint64).reshape(-1, 2)
    return out


def deal(lines: Mapping[str, Line], texts: Mapping[str, bytes]) -> Request:
    """Serves one alignment whose requests have come. Raises ProtocolError, and Mismatch where they differ."""
    first, *others = texts
    for name in others:
        if texts[name] != texts[first]:
            raise Mismatch(
                name,
                explain(
                    f"parties {first!r} and {name!r} ask for different alignments",
                    where="dealer, before dealing",
                    fix="align with the same terms at both parties, at the same time",
                ),
            )
    request = parse_request(texts[first])
    if sorted((request.asker, request.answerer)) != sorted(lines):
        raise _refused(f"it is between {request.asker!r} and {request.answerer!r}, not {' and '.join(sorted(lines))}")
    streams: dict[str, Stream] = {}
    for name, line in lines.items():
        key = new_key()
        streams[name] = Stream(key)
        line.send(KEY, [key])
    asker, answerer = streams[request.asker], streams[request.answerer]
    for piece, at in pieces(request.bins):
        size = at.stop - at.start
        made = line_offsets(drawn(answerer, piece, size, 0), *(drawn(asker, piece, size, index) for index in (0, 1)))
        lines[request.answerer].send(Label(EPOCH, piece, Purpose.DEAL), [made.data.cast("B")])
    return request


def serve(lines: Mapping[str, Line]) -> Request:
    """The dealer of one alignment in a process that does nothing else: takes the requests, and deals. Raises ProtocolError."""
    texts = {name: line.receive(ASK, max_bytes=_MOST_TEXT).numpy().tobytes() for name, line in lines.items()}
    return deal(lines, texts)
