"""What fronts say to each other: a closed set of messages in msgpack, read strictly.

A follower tells the leader which requests it holds (`Have`), refuses (`Refuse`) or has dropped (`Gone`), how runs went
(`Held`, `Failed`), and that preprocessing is used up (`Dry`). The leader alone decides: what runs (`Run`), what is answered (`Release`), what is refused
everywhere (`Drop`), and which version is current (`Switch`). Anybody may say that it takes nothing new
(`Drain`), and ask after a restart what was answered before (`Doubt`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec

from protocols.errors import BadFrame, explain

MAX_BYTES = 1 << 16
MAX_IDS = 256
"""The most ids of one message: 128 rows a run, and room for what is said of several runs at once."""

Id = Annotated[str, msgspec.Meta(min_length=32, max_length=32)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Text = Annotated[str, msgspec.Meta(max_length=512)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]
Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Ids = Annotated[list[Id], msgspec.Meta(max_length=MAX_IDS)]


class Message(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What all messages have in common: an array of a tag and the fields, none more and none less."""


class Claim(Message, frozen=True):
    """A request that a party holds its share of. `version` is 0 where the client named none."""

    id: Id
    commit: Annotated[str, msgspec.Meta(min_length=64, max_length=64)]
    model: Name
    version: Count
    rows: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]
    left_ms: Count
    """How many milliseconds its client still waits."""


class Place(Message, frozen=True):
    """Which rows of a run are a request's."""

    id: Id
    row: Count
    rows: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)]


class Have(Message, frozen=True, tag="HAVE"):
    """follower -> leader: it holds its shares of these, until the leader says what becomes of them."""

    claims: Annotated[list[Claim], msgspec.Meta(max_length=MAX_IDS)]


class Run(Message, frozen=True, tag="RUN"):
    """leader -> followers: these requests are the rows of a run on a lane, in this session of it. No answer is awaited."""

    run: Number
    lane: Count
    model: Name
    version: Count
    size: Count
    places: Annotated[list[Place], msgspec.Meta(min_length=1, max_length=MAX_IDS)]
    manifest: Digest
    session: Text = ""


class Held(Message, frozen=True, tag="HELD"):
    """follower -> leader: its shares of the outputs are there and in its journal; `where` is session and epoch."""

    run: Number
    where: Text


class Failed(Message, frozen=True, tag="FAILED"):
    """follower -> leader: the run failed before the outputs were shares; `party` is who failed, if that is known."""

    run: Number
    party: Annotated[str, msgspec.Meta(max_length=64)]
    reason: Text


class Refuse(Message, frozen=True, tag="REFUSE"):
    """follower -> leader: it does not hold these, or holds them no more if the leader agrees, and why."""

    ids: Ids
    code: Name


class Gone(Message, frozen=True, tag="GONE"):
    """follower -> leader: these are dropped, as it was told."""

    ids: Ids


class Release(Message, frozen=True, tag="RELEASE"):
    """leader -> followers: all parties hold the outputs of a run; or, with ids, these were released before."""

    run: Number
    ids: Ids = []


class Doubt(Message, frozen=True, tag="DOUBT"):
    """anybody -> anybody: it restarted, and its journal has these as computed. A follower says which it did not release; the
    leader says which were released (`Release`), and that the others are lost (`Drop`)."""

    ids: Ids


class Drop(Message, frozen=True, tag="DROP"):
    """leader -> followers: these are refused everywhere, and why; `parties` are those it is about."""

    ids: Ids
    code: Name
    parties: Annotated[list[Name], msgspec.Meta(max_length=64)]


class Switch(Message, frozen=True, tag="SWITCH"):
    """leader -> followers: this version is the current one, and those of `serves` may still be run."""

    model: Name
    version: Count
    serves: Annotated[list[Count], msgspec.Meta(max_length=64)]


class Drain(Message, frozen=True, tag="DRAIN"):
    """anybody -> anybody: it takes nothing new, for the reason of `code`; or it does again, where `code` is empty."""

    code: Annotated[str, msgspec.Meta(max_length=64)]


class Dry(Message, frozen=True, tag="DRY"):
    """follower -> leader: runs of this version wait for preprocessing, for so long already; 0: they do not any more."""

    model: Name
    version: Count
    for_ms: Count


class Publish(Message, frozen=True, tag="PUBLISH"):
    """anybody <-> leader: how far a version is that is to be published (`publishing.py`); the agreement ignores it."""

    model: Name
    version: Count
    stage: Annotated[str, msgspec.Meta(max_length=16)]
    why: Text = ""


AnyMessage = Have | Run | Held | Failed | Refuse | Gone | Release | Doubt | Drop | Switch | Drain | Dry | Publish
Received = Callable[[str, AnyMessage], None]
"""Is told of a party and what it says."""
Connected = Callable[[str, bool], None]
"""Is told of a party whose link is up, and whether it restarted or is new."""
Disconnected = Callable[[str], None]
"""Is told of a party whose link is down."""
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(AnyMessage)


def pack(message: Message) -> bytes:
    """A message as msgpack."""
    return _ENCODER.encode(message)


def unpack(raw: bytes | memoryview, party: str) -> AnyMessage:
    """The message that a party sent. Raises BadFrame, which names the party and quotes nothing of the bytes."""
    try:
        return _DECODER.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise misbehaved(party, f"it sent a message that cannot be read: {type(error).__name__}") from None


def misbehaved(party: str, why: str) -> BadFrame:
    """The error of a party that says what the protocol does not let it say."""
    return BadFrame(
        party,
        explain(
            f"party {party!r} broke the agreement of the service",
            why=why,
            fix="run the same version at all parties; if they did, do not trust that one",
        ),
    )


def parts(ids: Sequence, most: int = MAX_IDS) -> list[list]:
    """A list in pieces that one message holds."""
    return [list(ids[start : start + most]) for start in range(0, len(ids), most)]
