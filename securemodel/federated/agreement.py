"""How aggregators agree on a round: who is in, in which epoch it is computed, and when its result may be seen.

Each says where it stands; then the same function of what all said decides at every one, and a second message shows that
it decided the same everywhere. A client is in where every aggregator holds its share of the same upload. Once that is
fixed, it is for good: an aggregator that crashed takes it from the others, and a later epoch computes of the same uploads.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import msgspec

from protocols.channel import Channel, Label
from protocols.errors import BadFrame, Mismatch, explain
from securemodel.engines.labels import DECIDED, STANDING, STANDING_SIZE
from securemodel.federated.journal import AGREED, COMPUTED, OPEN, REFUSED, RELEASED
from securemodel.federated.uploads import Receipt, agree

MAX_CLIENTS = 1 << 20
_MOST_BYTES = 256 << 20
_DIGEST = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_CLIENT = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_CLIENTS = Annotated[list[_CLIENT], msgspec.Meta(max_length=MAX_CLIENTS)]
_DIGITS = re.compile("[0-9a-f]{64}")
_T = TypeVar("_T")

OTHERS_LACK = "not every aggregator had its part at the deadline"


class Standing(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where an aggregator stands: its latest round (0: none yet), of a task. `held`: what it has of clients' uploads."""

    task: _DIGEST
    number: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    state: str
    epoch: Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]
    deadline: float
    held: Annotated[dict[_CLIENT, Receipt], msgspec.Meta(max_length=MAX_CLIENTS)]
    members: _CLIENTS | None = None
    refused: dict[_CLIENT, str] = {}
    """Why others than the members are not in; before that is fixed, whom this aggregator does not let in."""
    reason: str = ""
    proposed: float = 0.0
    """The deadline of the next round, if it begins now."""


@dataclass(frozen=True)
class Decision:
    """What all aggregators do next with a round: `state` is what it becomes, AGREED: it is computed in this epoch."""

    number: int
    state: str
    epoch: int = 0
    members: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""

    def digest(self) -> bytes:
        """SHA-256 of all of it."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).digest()


def decide(standings: Mapping[str, Standing], minimum: int, slots: int = MAX_CLIENTS) -> Decision:
    """What becomes of a round that is past its deadline everywhere; standings by name, in the order of ranks.

    Raises Mismatch, which names a party.
    """
    first, said = next(iter(standings.values())), list(standings.values())
    if all(one.state in (COMPUTED, RELEASED) and one.epoch == first.epoch for one in said):
        return Decision(first.number, RELEASED, first.epoch, tuple(first.members or ()))
    if refusing := [one for one in said if one.state == REFUSED]:
        return Decision(first.number, REFUSED, refused=dict(refusing[0].refused), reason=refusing[0].reason)
    members, refused = _members(standings, slots)
    epoch = 1 + max(one.epoch for one in said)
    if len(members) < minimum:
        reason = f"{len(members)} clients are in, and the round has a minimum of {minimum}"
        return Decision(first.number, REFUSED, epoch, (), refused, reason)
    return Decision(first.number, AGREED, epoch, members, refused)


def _members(standings: Mapping[str, Standing], slots: int) -> tuple[tuple[str, ...], dict[str, str]]:
    """Who is in, in order, and why others are not."""
    fixed = {name: tuple(one.members) for name, one in standings.items() if one.members is not None}
    if fixed:
        members = next(iter(fixed.values()))
        for name, theirs in fixed.items():
            if theirs != members:
                why = "the sums over two sets of clients would tell the difference of these"
                raise _differs(name, "took others for the clients of this round", why)
        for name, one in standings.items():
            if missing := [client for client in members if client not in one.held]:
                why = f"{len(missing)} of {len(members)} are not there any more"
                raise _differs(name, "has lost uploads to a round that is fixed", why)
            if one.members is None and set(members) & one.refused.keys():
                raise _differs(next(iter(fixed)), "let in clients that another one refuses", f"{name!r} refuses them")
        held = [{c: r for c, r in one.held.items() if c in members} for one in standings.values()]
        if agree(held, slots).present != members:  # each once, and with parts of one upload: the minimum counts on that
            why = "they are named twice, or their parts belong to different uploads"
            raise _differs(next(iter(fixed)), "let in clients that cannot be in", why)
        return members, dict(standings[next(iter(fixed))].refused)
    barred = {client: why for one in standings.values() for client, why in one.refused.items()}
    found = agree([{c: r for c, r in one.held.items() if c not in barred} for one in standings.values()], slots)
    return found.present, {**dict.fromkeys(found.absent, OTHERS_LACK), **found.refused, **barred}


def _differs(party: str, what: str, why: str) -> Mismatch:
    fix = "begin a new federation with the latest model, in empty folders at all aggregators"
    return Mismatch(party, explain(f"aggregator {party!r} {what}", why=why, fix=fix))


def exchange_standings(channel: Channel, mine: Standing, names: Sequence[str]) -> dict[str, Standing]:
    """Where all aggregators stand, by name in the order of these names. Raises BadFrame, Mismatch of another task."""
    heard = swap(channel, STANDING_SIZE, STANDING, msgspec.msgpack.encode(mine))
    said = {channel.me: mine, **{peer: read(data, Standing, peer) for peer, data in heard.items()}}
    for peer, standing in said.items():
        if standing.task != mine.task:
            fix = "give all aggregators the same script, and the same versions of everything"
            raise Mismatch(peer, explain(f"aggregator {peer!r} works on another task", fix=fix))
        if standing.state not in ("", OPEN, AGREED, COMPUTED, RELEASED, REFUSED):
            raise misbehaved(peer, "it is in a state that there is not")
        if standing.number == mine.number and standing.deadline != mine.deadline:  # it could put off the round's end
            raise misbehaved(peer, f"its deadline of round {mine.number} is another one")
        if not all(_DIGITS.fullmatch(text) for one in standing.held.values() for text in (one.commit, one.digest)):
            raise misbehaved(peer, "it has digests of uploads that are none")
    return {name: said[name] for name in names}


def check_same(channel: Channel, decision: Decision) -> None:
    """Raises Mismatch, which names a party that decided otherwise: one of them told the others different things."""
    mine = decision.digest()
    heard = channel.exchange(DECIDED, {peer: [mine] for peer in channel.peers}, dict.fromkeys(channel.peers, len(mine)))
    for peer, data in heard.items():
        if data.numpy().tobytes() != mine:
            what, fix = f"aggregator {peer!r} decided otherwise on the same round", "run the same version everywhere"
            why = "it was told something else than this one, or is of another version"
            raise Mismatch(peer, explain(what, where=f"round {decision.number}", why=why, fix=fix))


def swap(channel: Channel, size: Label, label: Label, data: bytes) -> dict[str, bytes]:
    """Everybody's bytes, of sizes that are told first. Raises BadFrame where there would be too many."""
    told = channel.exchange(
        size, {peer: [len(data).to_bytes(8, "little")] for peer in channel.peers}, dict.fromkeys(channel.peers, 8)
    )
    sizes = {peer: int.from_bytes(part.numpy().tobytes(), "little") for peer, part in told.items()}
    for peer, count in sizes.items():
        if count > _MOST_BYTES:
            raise misbehaved(peer, f"it would send {count} bytes, at most {_MOST_BYTES} are read")
    heard = channel.exchange(label, {peer: [data] for peer in channel.peers}, sizes)
    return {peer: part.numpy().tobytes() for peer, part in heard.items()}


def read(data: bytes, kind: type[_T], party: str) -> _T:
    """What an aggregator said. Raises BadFrame, which names it and quotes nothing."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise misbehaved(party, f"it sent a message that cannot be read: {type(error).__name__}") from None


def misbehaved(party: str, why: str) -> BadFrame:
    """The error of an aggregator that says what the protocol does not let it say."""
    fix = "run the same version at all aggregators; if they did, do not trust that one"
    return BadFrame(party, explain(f"aggregator {party!r} broke the agreement of the federation", why=why, fix=fix))
