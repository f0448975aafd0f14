"""Lists that pass all parties: the ids that all of three and more parties have, or of two and more only how many.

Each list is multiplied by its owner's key, then goes once around the ring of parties in the order of their names; each
multiplies it by its own key and puts it into an order that it alone knows. The one before the owner has it last, under
all keys, and sends it to the *counter*, the first party. Equal ids are equal there, and the counter cannot tell whose
row is where, not even in its own list, unless all others tell it the orders they chose. So it learns how many ids each
set of parties has in common, and no id, though n-1 parties work together (decisional Diffie-Hellman, random oracle).

It tells all parties how many ids are common. Where all may learn which, it sends the places of the common ids, for each
list in one order, back the way that the list came: each party undoes what it did to the order, until the owner reads
its own rows. What a party sees on the way are places of common ids in a list of points that it knows already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from protocols.channel import Channel
from protocols.errors import BadFrame, explain
from protocols.psi import tags
from protocols.psi.curve import POINT_BYTES, new_key
from protocols.psi.direct import COUNT_BYTES
from protocols.psi.flows import Out, Shape, array_in, array_out, travel, whole
from protocols.psi.lists import Multiplied, blinded
from protocols.psi.outcome import Outcome
from protocols.psi.same import check_same
from protocols.psi.sets import OwnSet, shuffled
from protocols.psi.tags import TAG_BYTES
from protocols.psi.workers import Workers

HOPS, COLLECT, ANSWER, BACK, SAME = 100, 200, 201, 300, 400
"""Steps; of hops and of the way back there is one for each party."""
PLACE_BYTES = 4


@dataclass(frozen=True)
class Ring:
    """The parties in the order of their names, seen by one of them."""

    parties: tuple[str, ...]
    me: str

    def at(self, distance: int) -> str:
        """The party so many places further; negative ones are before."""
        return self.parties[(self.parties.index(self.me) + distance) % len(self.parties)]

    @property
    def counter(self) -> str:
        """Who compares the lists."""
        return self.parties[0]

    @property
    def hops(self) -> int:
        """How often a list is passed on until all parties had it."""
        return len(self.parties) - 1


@dataclass(frozen=True, repr=False)
class Passed:
    """After the hops: one's own order; how one shuffled each list, by owner; and the list of the next party.

    mixed: uint8[n, w], under all keys, shuffled by all. ordered: uint8[n, 32], under all keys but the owner's second one,
    in the owner's order; where there are second keys.
    """

    order: np.ndarray
    shuffles: Mapping[str, np.ndarray]
    mixed: np.ndarray
    ordered: np.ndarray


def pass_around(
    channel: Channel,
    own: OwnSet,
    rows: Mapping[str, int],
    workers: Workers,
    key: bytes,
    both: bytes = b"",
    size: int = TAG_BYTES,
) -> Passed:
    """Sends all lists around the ring. Raises PeerError.

    size: bytes kept of each product in the end. both: what multiplies a second copy of the others' lists, kept in order.
    """
    ring = Ring(tuple(rows), channel.me)
    before, after = ring.at(-1), ring.at(1)
    order, shuffles = shuffled(rows[channel.me]), {}
    pieces = blinded(own, order, key, channel.session, workers)
    outs = [Out(after, Shape(len(order), POINT_BYTES), pieces)]
    mixed = ordered = np.empty((0, POINT_BYTES), np.uint8)
    for hop in range(1, ring.hops + 1):
        owner = ring.at(-hop)
        kept = size if hop == ring.hops else POINT_BYTES
        mixing = Multiplied(before, rows[owner], key, kept, workers)
        ordering = Multiplied(before, rows[owner], both, POINT_BYTES, workers) if both else None
        if ordering is None:
            ins = [mixing.arriving()]
        elif hop == 1:
            ins = [mixing.arriving(ordering)]
        else:
            ins = [mixing.arriving(), ordering.arriving()]
        travel(channel, HOPS + hop, outs, ins)
        shuffles[owner] = shuffled(rows[owner])
        mixed, ordered = mixing.all()[shuffles[owner]], ordering.all() if ordering else ordered
        outs = [array_out(after, mixed)] + ([array_out(after, ordered)] if both else [])
    return Passed(order, shuffles, mixed, ordered)


def collect(
    channel: Channel, ring: Ring, rows: Mapping[str, int], mixed: np.ndarray, size: int = TAG_BYTES
) -> dict[str, np.ndarray]:
    """All lists under all keys, by owner, at the counter; nothing at the others. Raises PeerError."""
    if channel.me != ring.counter:
        travel(channel, COLLECT, [array_out(ring.counter, mixed)], [])
        return {}
    lists = {ring.at(1): mixed}
    lists |= {ring.at(d + 1): np.empty((rows[ring.at(d + 1)], size), np.uint8) for d in range(1, len(rows))}
    travel(channel, COLLECT, [], [array_in(ring.at(d), lists[ring.at(d + 1)]) for d in range(1, len(rows))])
    for owner, each in lists.items():
        last = Ring(ring.parties, owner).at(-1)
        tags.check_distinct(each, last if last != channel.me else owner, f", list of {owner!r}")
    return lists


def count(channel: Channel, own: OwnSet, rows: Mapping[str, int], workers: Workers) -> Outcome:
    """All parties learn how many ids all of them have. Raises PeerError."""
    passed = pass_around(channel, own, rows, workers, new_key())
    ring = Ring(tuple(rows), channel.me)
    lists = collect(channel, ring, rows, passed.mixed)
    found = tags.common(*lists.values()) if lists else np.empty(0)
    return Outcome(0, announced(channel, ring, len(found), min(rows.values())))


def all_learn(channel: Channel, own: OwnSet, rows: Mapping[str, int], workers: Workers) -> Outcome:
    """All parties learn which ids all of them have; joint rows are in the order of tags. Raises PeerError."""
    passed = pass_around(channel, own, rows, workers, new_key())
    ring = Ring(tuple(rows), channel.me)
    lists = collect(channel, ring, rows, passed.mixed)
    found = tags.common(*lists.values()) if lists else np.empty(0)
    joint = announced(channel, ring, len(found), min(rows.values()))
    positions = passed.order[_way_back(channel, ring, rows, passed, lists, found, joint)]
    check_same(channel, SAME, own, positions)
    return Outcome(joint, joint, positions)


def announced(channel: Channel, ring: Ring, found: int, most: int) -> int:
    """The number that the counter tells all. Raises BadFrame where it cannot be true."""
    if channel.me == ring.counter:
        whole(channel, ANSWER, dict.fromkeys(channel.peers, found.to_bytes(COUNT_BYTES, "little")), {})
        return found
    said = int.from_bytes(whole(channel, ANSWER, {}, {ring.counter: COUNT_BYTES})[ring.counter], "little")
    if said > most:
        raise _wrong(ring.counter, f"it says {said} ids, and there cannot be more than {most}")
    return said


def _way_back(
    channel: Channel,
    ring: Ring,
    rows: Mapping[str, int],
    passed: Passed,
    lists: Mapping[str, np.ndarray],
    found: np.ndarray,
    joint: int,
) -> np.ndarray:
    """int64[joint]: places in one's own list, in the order that all have."""
    held = np.empty((joint, PLACE_BYTES), np.uint8)
    if channel.me == ring.counter:
        there = {ring.at(d): _packed(tags.places(lists[ring.at(d + 1)], found)) for d in range(len(rows))}
        held = there.pop(channel.me)
        travel(channel, BACK, [array_out(peer, each) for peer, each in there.items()], [])
    else:
        travel(channel, BACK, [], [array_in(ring.counter, held)])
    for step in range(1, len(rows)):
        owner = ring.at(step)
        sent = _packed(passed.shuffles[owner][_unpacked(held, rows[owner], ring.at(1) if step > 1 else ring.counter)])
        held = np.empty((joint, PLACE_BYTES), np.uint8)
        travel(channel, BACK + step, [array_out(ring.at(-1), sent)], [array_in(ring.at(1), held)])
    return _unpacked(held, rows[channel.me], ring.at(1))


def _packed(places: np.ndarray) -> np.ndarray:
    return places.astype("<u4").view(np.uint8).reshape(-1, PLACE_BYTES)


def _unpacked(data: np.ndarray, below: int, peer: str) -> np.ndarray:
    """Places as numbers. Raises BadFrame unless they differ and are places of a list of so many."""
    places = data.view("<u4").reshape(-1).astype(np.int64)
    if np.any(places >= below) or len(np.unique(places)) < len(places):
        raise _wrong(peer, "places in a list are outside of it, or named twice")
    return places


def _wrong(peer: str, why: str) -> BadFrame:
    what = f"party {peer!r} sent something about the common ids that cannot be true"
    fix = "do not trust this party, or the version that it runs"
    return BadFrame(peer, explain(what, where="the end of the alignment", why=why, fix=fix))
