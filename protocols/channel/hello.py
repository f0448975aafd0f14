"""The first message of a link: who sends it, with which list of parties, in which lane and session."""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass, field

from protocols.channel.frame import PROTOCOL_VERSION, Label, Purpose
from protocols.errors import BadFrame, IdentityError, Mismatch, explain
from protocols.identity import DEALER, MOST_LANES

HELLO = Label(0, 0, Purpose.HELLO)
HELLO_LAYOUT = struct.Struct("<I32s32sI32s")  # version, roster digest, nonce, lane, session; the name follows
MAX_HELLO_BYTES = HELLO_LAYOUT.size + 64
SESSION_BYTES = 32
EVERY_LANE = 0xFFFFFFFF
"""The lane of who takes part in all of them: the dealer."""


@dataclass(frozen=True)
class Hello:
    """What the first message of a link says, once it is checked."""

    name: str
    nonce: bytes = field(repr=False)
    lane: int
    session: bytes = field(repr=False)


def pack_hello(said: Hello, digest: bytes) -> bytes:
    """The message. `digest` is that of the list of parties."""
    return HELLO_LAYOUT.pack(PROTOCOL_VERSION, digest, said.nonce, said.lane, said.session) + said.name.encode()


def read_hello(peer: str, hello: bytes, digest: bytes, allowed: Collection[str], lane: int) -> Hello:
    """What `peer` says, where it is for this lane. Raises BadFrame, Mismatch, IdentityError for a name not allowed."""
    if len(hello) < HELLO_LAYOUT.size:
        raise BadFrame(peer, explain(f"the first message of {peer!r} is cut short", fix="use the same version"))
    version, their_digest, nonce, theirs, session = HELLO_LAYOUT.unpack_from(hello)
    if version != PROTOCOL_VERSION:
        why = f"it speaks protocol version {version}, we speak {PROTOCOL_VERSION}"
        raise Mismatch(peer, explain(f"party {peer!r} runs another version", why=why, fix="install the same version"))
    name = hello[HELLO_LAYOUT.size :].decode("ascii", errors="replace")
    if name not in allowed:
        raise IdentityError(
            peer,
            explain(
                f"party {peer!r} says that it is {name[:64]!r}",
                where="first message of the link",
                why=f"expected {' or '.join(sorted(allowed))}: the name its certificate is pinned for",
                fix="start each party with its own identity and name",
            ),
        )
    if their_digest != digest:
        raise Mismatch(
            name,
            explain(
                f"party {name!r} has another list of parties",
                where="first message of the link",
                why="the names or certificates in its party file are not those in ours",
                fix="give all parties the same [parties] and [dealer] entries",
            ),
        )
    if theirs >= MOST_LANES if lane == EVERY_LANE else theirs != (EVERY_LANE if name == DEALER else lane):
        raise Mismatch(
            name,
            explain(
                f"party {name!r} is lane {theirs}, and this is lane {lane}",
                where="first message of the link",
                why="a lane meets the same lane of the others",
                fix="give all parties files with the same addresses, and ports that are lanes of one party only",
            ),
        )
    return Hello(name, nonce, theirs, session)
