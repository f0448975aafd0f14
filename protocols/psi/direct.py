"""Lists that go to a peer and come back: two parties who both learn, or one that learns of several others.

    A -> B   a H(x) for its ids x, in an order that A alone knows      32 bytes an id
    B -> A   b H(y) for its ids y, in an order that B alone knows      32 bytes an id
    whoever does not learn, or both: the other's points times one's own key, in the order in which they came,
                                                                       16 bytes an id

a b H(x) = b a H(y) where x = y (Meadows 1986; Huberman, Franklin, Hogg 1999). Without b, points a b H(y) are random to
A (decisional Diffie-Hellman; H is a random oracle), so A learns which of its ids are B's and B's number of ids. A party
that does not learn sees a H(x) alone. Keys are new in each alignment.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from protocols.channel import Channel
from protocols.errors import BadFrame, explain
from protocols.psi import tags
from protocols.psi.curve import POINT_BYTES, new_key
from protocols.psi.flows import LAG, In, Out, Shape, array_in, travel, whole
from protocols.psi.lists import Multiplied, blinded
from protocols.psi.outcome import Outcome
from protocols.psi.same import check_same
from protocols.psi.sets import OwnSet, shuffled
from protocols.psi.tags import TAG_BYTES
from protocols.psi.workers import Workers

LISTS, COUNT, SAME = 1, 2, 3
"""Steps."""
COUNT_BYTES = 8


@dataclass(frozen=True, repr=False)
class _Crossed:
    """One's own row at each place of one's list; by peer, the tags of one's own list and of the peer's."""

    order: np.ndarray
    mine: Mapping[str, np.ndarray]
    theirs: Mapping[str, np.ndarray]


def both_learn(channel: Channel, own: OwnSet, rows: Mapping[str, int], workers: Workers) -> Outcome:
    """Two parties learn their common ids; joint rows are in the order of tags. Raises PeerError."""
    (peer,) = channel.peers
    crossed = _cross(channel, own, rows, set(rows), workers)
    found = tags.common(crossed.mine[peer], crossed.theirs[peer])
    positions = crossed.order[tags.places(crossed.mine[peer], found)]
    check_same(channel, SAME, own, positions)
    return Outcome(len(found), len(found), positions)


def one_learns(
    channel: Channel, own: OwnSet, rows: Mapping[str, int], learner: str, drop: bool, workers: Workers
) -> Outcome:
    """`learner` learns, of each other party, which of its own ids that party has; the others learn sizes.

    Joint rows are the learner's in its own order. drop: only those that all others have; their number is told to all.
    """
    crossed = _cross(channel, own, rows, {learner}, workers)
    if channel.me != learner:
        count = int.from_bytes(whole(channel, COUNT, {}, {learner: COUNT_BYTES})[learner], "little")
        if count > min(rows.values()) if drop else count != rows[learner]:
            raise _wrong_count(learner, count)
        return Outcome(count, count if drop else None, order=crossed.order)
    links = {}
    for peer, mine in crossed.mine.items():
        links[peer] = np.empty(len(crossed.order), np.int64)
        links[peer][crossed.order] = tags.places(crossed.theirs[peer], tags.as_tags(mine))
    positions = np.arange(len(crossed.order))
    matched = np.logical_and.reduce([places >= 0 for places in links.values()])
    common = int(matched.sum())
    if drop:
        positions = positions[matched]
        links = {peer: places[matched] for peer, places in links.items()}
    told = len(positions).to_bytes(COUNT_BYTES, "little")  # and that all went well here
    whole(channel, COUNT, dict.fromkeys(channel.peers, told), {})
    return Outcome(len(positions), common, positions, links)


def _cross(channel: Channel, own: OwnSet, rows: Mapping[str, int], learners: set[str], workers: Workers) -> _Crossed:
    learns, key = channel.me in learners, new_key()
    peers = [peer for peer in channel.peers if learns or peer in learners]
    order = shuffled(rows[channel.me])
    theirs = {peer: Multiplied(peer, rows[peer], key, TAG_BYTES, workers) for peer in peers}
    mine = {peer: np.empty((len(order), TAG_BYTES), np.uint8) for peer in peers if learns}
    copies = itertools.tee(blinded(own, order, key, channel.session, workers), len(peers))
    outs: list[Out] = []
    ins: list[In] = []
    for peer, pieces in zip(peers, copies, strict=True):
        outs.append(Out(peer, Shape(len(order), POINT_BYTES), pieces))
        ins.append(theirs[peer].arriving())
        if peer in learners:
            outs.append(Out(peer, Shape(rows[peer], TAG_BYTES, LAG), theirs[peer].pieces()))
        if learns:
            ins.append(array_in(peer, mine[peer], LAG))
    travel(channel, LISTS, outs, ins)
    found = {peer: each.all() for peer, each in theirs.items()}
    for peer in found if learns else ():
        tags.check_distinct(found[peer], peer)
    return _Crossed(order, mine, found)


def _wrong_count(peer: str, count: int) -> BadFrame:
    return BadFrame(
        peer,
        explain(
            f"party {peer!r} says that there are {count} joint rows, and that cannot be",
            where="the end of the alignment",
            fix="do not trust this party, or the version that it runs",
        ),
    )
