"""Nobody learns which ids are common: the parties get names for all of them, and each the places of its own rows.

After Private-ID (Buddhavarapu, Knox, Mohassel, Sengupta, Taubeneck, Vlaskin: "Private Matching for Compute", 2020,
section 3), for two and more parties. Each party p has two keys, k and r. The name of an id is its point times all keys.

    1. Every list, times its owner's k, goes around the ring twice: times k of all and shuffled by all, to the counter
       (protocols.psi.ring); and times k r of all in its owner's order, back to its owner, who multiplies by its own r:
       these are the names of its ids.
    2. The counter makes the union of the lists under all k, puts it into a random order and multiplies by its r; the
       others one after the other multiply by theirs and shuffle. The last has the names of the union and sends them to
       all, sorted: the place of a name is a joint row.

The names of a party's own ids are all among those of the union, so it learns how many other names there are, and not
which of its own somebody else has. The counter knows the lists under all k only in orders that the others chose, and
cannot follow them to names for lack of their r, nor its own ids to the lists (decisional Diffie-Hellman): it learns how
many ids each set of parties has in common. With two parties that is one number, which all learn from the size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from protocols.channel import Channel
from protocols.errors import BadFrame, Mismatch, explain
from protocols.psi import tags
from protocols.psi.curve import POINT_BYTES, new_keys
from protocols.psi.flows import Out, Shape, array_in, array_out, travel, whole
from protocols.psi.lists import Multiplied, raised
from protocols.psi.outcome import Outcome
from protocols.psi.ring import Ring, announced, collect, pass_around
from protocols.psi.sets import OwnSet, shuffled
from protocols.psi.tags import TAG_BYTES
from protocols.psi.workers import Workers

HOME, NAMING, NAMES, SAME = 500, 600, 700, 701
"""Steps; of naming there is one for each party."""
DIGEST_BYTES = 32


def nobody_learns(channel: Channel, own: OwnSet, rows: Mapping[str, int], workers: Workers) -> Outcome:
    """Each party gets the places of its rows in the union of all ids; joint rows are in the order of names.

    Raises PeerError.
    """
    ring, (key, second, both) = Ring(tuple(rows), channel.me), new_keys()
    passed = pass_around(channel, own, rows, workers, key, both, POINT_BYTES)
    mine = Multiplied(ring.at(-1), rows[channel.me], second, TAG_BYTES, workers)
    travel(channel, HOME, [array_out(ring.at(1), passed.ordered)], [mine.arriving()])
    lists = collect(channel, ring, rows, passed.mixed, POINT_BYTES)
    merged = np.unique(np.concatenate([tags.as_tags(each) for each in lists.values()])) if lists else np.empty(0, "S32")
    size = announced(channel, ring, len(merged), sum(rows.values()))
    if size < max(rows.values()):
        raise _wrong(ring.counter, "a union is no smaller than a set in it")
    names = _named(channel, ring, merged, size, second, workers)
    places = np.empty(rows[channel.me], np.int64)
    places[passed.order] = tags.places(names, tags.as_tags(mine.all()))
    if np.any(places < 0):
        raise _wrong(ring.at(-1), "the names of the union lack some of this party's own")
    return Outcome(size, sum(rows.values()) - size if len(rows) == 2 else None, places=places)


def _named(channel: Channel, ring: Ring, merged: np.ndarray, size: int, key: bytes, workers: Workers) -> np.ndarray:
    """uint8[size, 16]: the names of the union, sorted, the same at all. `merged` is the union at the counter."""
    mine, last = ring.parties.index(channel.me), ring.hops
    names = np.empty((size, TAG_BYTES), np.uint8)
    if mine == 0:
        points = np.frombuffer(merged[shuffled(size)].tobytes(), np.uint8).reshape(-1, POINT_BYTES)
        travel(channel, NAMING + 1, [Out(ring.at(1), Shape(size, POINT_BYTES), raised(points, key, workers))], [])
    else:
        making = Multiplied(ring.at(-1), size, key, TAG_BYTES if mine == last else POINT_BYTES, workers)
        travel(channel, NAMING + mine, [], [making.arriving()])
        made = making.all()
        if mine < last:
            travel(channel, NAMING + mine + 1, [array_out(ring.at(1), made[shuffled(size)])], [])
        else:
            names = _rows(np.sort(tags.as_tags(made)))
    teller = ring.parties[last]
    if mine == last:
        travel(channel, NAMES, [array_out(peer, names) for peer in channel.peers], [])
    else:
        travel(channel, NAMES, [], [array_in(teller, names)])
    listed = tags.as_tags(names)
    if np.any(listed[1:] <= listed[:-1]):
        raise _wrong(teller if mine < last else ring.at(-1), "the names of the union are not sorted, or not different")
    _check_alike(channel, names)
    return names


def _check_alike(channel: Channel, names: np.ndarray) -> None:
    """That the same names came to all. Raises Mismatch."""
    digest = hashlib.sha256(names.tobytes()).digest()
    sizes = dict.fromkeys(channel.peers, DIGEST_BYTES)
    for peer, theirs in whole(channel, SAME, dict.fromkeys(channel.peers, digest), sizes).items():
        if theirs != digest:
            fix = "do not use this alignment; find out which party it was, and start again"
            what = f"party {peer!r} has other names of the union of ids than this party"
            raise Mismatch(peer, explain(what, where="the end of the alignment", fix=fix))


def _rows(listed: np.ndarray) -> np.ndarray:
    return np.frombuffer(listed.tobytes(), np.uint8).reshape(len(listed), -1)


def _wrong(peer: str, why: str) -> BadFrame:
    what = f"party {peer!r} sent something about the union of ids that cannot be true"
    fix = "do not trust this party, or the version that it runs"
    return BadFrame(peer, explain(what, where="the end of the alignment", why=why, fix=fix))
