"""What a message looks like on the wire, and how a receiver checks one.

A frame is a fixed header followed by its payload. The header, little-endian, HEADER_BYTES = 32 bytes:

    magic 'SMF1' | sequence u64 | epoch, low u32 | node u32 | purpose u8 | zero u8 | epoch, high u16 | length u64

`sequence` counts the frames of one link in one direction from 0. A receiver always knows which label and how many
bytes come next (for control frames: at most how many); the peer's length is compared with that and never trusted.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from protocols.errors import BadFrame, InputError, Mismatch, explain

MAGIC = b"SMF1"
PROTOCOL_VERSION = 5
_LAYOUT = struct.Struct("<4sQIIBBHQ")
HEADER_BYTES = _LAYOUT.size


class Purpose(IntEnum):
    """What a message is for."""

    HELLO = 1  # names, version and nonce, first message of a link
    START = 2  # agreement on the program that is about to run
    INPUT = 3  # a masked input, or shares of it
    OPEN = 4  # what opens masked values: one message per peer and round
    REVEAL = 5  # shares of a result, to whoever may learn it
    SEED = 6  # a stream key, from whoever deals
    DEAL = 7  # dealt correlated randomness
    REQUEST = 8  # asks whoever deals for more
    TRANSFER = 9  # a step of a two-party sub-protocol that replaces the dealer
    CONTROL = 10  # everything else the runtime has to say
    ALIVE = 11  # nothing but that the sender is there; no message waits for it
    ABORT = 254  # the session ends with an error; the payload is a public reason
    BYE = 255  # the session ends well


_PURPOSES = {int(purpose): purpose for purpose in Purpose}


class Label(NamedTuple):
    """Says which message of a program this is: the run (epoch), the operation (node) and what for."""

    epoch: int
    node: int
    purpose: Purpose

    def __str__(self) -> str:
        purpose = _PURPOSES.get(self.purpose)
        return f"{purpose.name if purpose else f'purpose {self.purpose}'} of node {self.node}, epoch {self.epoch}"


class Header(NamedTuple):
    """One parsed frame header; `nbytes` is the payload length the sender claims."""

    sequence: int
    label: Label
    nbytes: int


class Expected(NamedTuple):
    """The next message as the receiver knows it.

    `label` may be None when any of `purposes` will do. The payload has `nbytes` bytes: exactly, or at most if not `exact`.
    """

    label: Label | None
    nbytes: int
    exact: bool = True
    purposes: tuple[Purpose, ...] = ()

    def __str__(self) -> str:
        name = str(self.label) if self.label else " or ".join(purpose.name for purpose in self.purposes)
        return f"{name}, {'' if self.exact else 'at most '}{self.nbytes} bytes"


def pack_header(sequence: int, label: Label, nbytes: int) -> bytes:
    """The HEADER_BYTES bytes that precede a payload of `nbytes` bytes. Raises InputError if a field does not fit."""
    try:
        low, high = label.epoch & 0xFFFFFFFF, label.epoch >> 32
        return _LAYOUT.pack(MAGIC, sequence, low, label.node, label.purpose, 0, high, nbytes)
    except struct.error as error:
        raise InputError(
            explain(
                f"a message label does not fit its header: {label}, {nbytes} bytes",
                why=f"{error}; epochs have 48 bits, nodes 32, purposes 8, none is negative",
                fix="use smaller epoch and node numbers",
            )
        ) from None


def parse_header(data: bytes | bytearray | memoryview, sequence: int, peer: str) -> Header:
    """Read a header and check what does not depend on the expected message. Raises BadFrame."""
    magic, got_sequence, low, node, purpose, zero, high, nbytes = _LAYOUT.unpack(data)
    if magic != MAGIC or zero or purpose not in _PURPOSES:
        raise BadFrame(
            peer,
            explain(
                f"party {peer!r} sent bytes that are not a message of this protocol",
                where=f"where message {sequence} of the link should start",
                why="the header's fixed fields are wrong: another version, another service on that port, "
                "one side without TLS, or a message cut short before it",
                fix="start the same version of this program on both sides, with the same security options",
            ),
        )
    label = Label(low | high << 32, node, _PURPOSES[purpose])
    if got_sequence != sequence:
        how = "replayed" if got_sequence < sequence else "lost or reordered"
        raise BadFrame(
            peer,
            explain(
                f"party {peer!r} sent message number {got_sequence}, expected number {sequence}",
                where=str(label),
                why=f"messages were {how} on the way, or the peer is faulty",
                fix="start the session again; if it happens again, do not trust the link or the peer",
            ),
        )
    return Header(got_sequence, label, nbytes)


def check_expected(header: Header, expected: Expected, peer: str) -> None:
    """Compare a header with the message that must come next. Raises BadFrame; Mismatch where both begin a run."""
    label = header.label
    if expected.label and expected.label.purpose == label.purpose == Purpose.START:
        _check_start(header, expected, peer)
    if (label != expected.label) if expected.label else (label.purpose not in expected.purposes):
        raise BadFrame(
            peer,
            explain(
                f"party {peer!r} sent the wrong message",
                where=f"message {header.sequence} of the link",
                why=f"expected [{expected}], received [{label}, {header.nbytes} bytes]",
                fix="make sure that all parties run the same program with the same inputs' shapes",
            ),
        )
    if header.nbytes > expected.nbytes or (expected.exact and header.nbytes != expected.nbytes):
        size = "too large" if header.nbytes > expected.nbytes else "too small"
        raise BadFrame(
            peer,
            explain(
                f"party {peer!r} sent a message that is {size}",
                where=f"{label}, message {header.sequence} of the link",
                why=f"expected {'' if expected.exact else 'at most '}{expected.nbytes} bytes, "
                f"its header says {header.nbytes}",
                fix="make sure that all parties run the same program with the same inputs' shapes",
            ),
        )


def _check_start(header: Header, expected: Expected, peer: str) -> None:
    """The first message of a run tells what is run before its digest is read: by its label and its length."""
    if (header.label, header.nbytes) != (expected.label, expected.nbytes):
        raise Mismatch(
            peer,
            explain(
                f"party {peer!r} starts another run than this party: the sizes differ, or the programs",
                where=f"message {header.sequence} of the link",
                why=f"expected [{expected}], received [{header.label}, {header.nbytes} bytes]",
                fix="run the same program with the same number of rows at every party, in the same order",
            ),
        )
