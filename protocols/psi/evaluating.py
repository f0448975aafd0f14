"""Two parties and a dealer: which ids are common, by lines in bins, without a curve.

The asker A puts its ids x into bins, at most one to a bin; an id y of the answerer B may be in any of its three. For each
bin B has a line (a, b) and A a point (r, c) of it, c = a r + b modulo p = 2^127 - 1 (`protocols.psi.dealing`):

    A -> B   d = x - r for each bin; for an empty one x = 0             16 bytes a bin
    B -> A   Hash(bin, i, a (y - d) + b) for each y and each of its bins, i = 0, 1, 2;
             B's ids are in an order that B alone knows                 3 x 12 bytes an id of B
    A        compares Hash(bin, i, c), where i is which of its three bins x is in

a (x - d) + b = c. For y other than x it is c + a (y - x), and A does not know a. B sees d, which is uniform, as r is.
The hash is a random oracle: A learns something of a y that is not its own only by asking it at c + a (y - x), which it
meets with a probability of at most one in p for each question and tag. This is the encoding of Kolesnikov, Kumaresan,
Rosulek, Trieu 2016 with lines in the place of codewords; on lines with a vector of OLE, Rindal, Schoppmann 2021.
"""

from __future__ import annotations

import numpy as np

from protocols.channel import Channel, Label, Purpose
from protocols.channel.buffers import Buffer
from protocols.errors import BadFrame, explain
from protocols.kernels.bins import TAG_SIZES, line_shifts, line_tags, line_values
from protocols.psi import dealing, tags
from protocols.psi.cuckoo import CHOICES, hashed, placed
from protocols.psi.dealing import NUMBER_BYTES, Line, Request
from protocols.psi.sets import OwnSet, shuffled
from protocols.psi.terms import EPOCH

SHIFTS, TAGS = 1, 2
"""Steps."""
ATTEMPT_BYTES = 8
_PIECE = 1 << 15


def tag_size(asker_rows: int, answerer_rows: int) -> int:
    """Bytes of a tag, so that two of different ids are equal with a probability below 2^-40."""
    return min(size for size in TAG_SIZES if 8 * size >= 40 + (asker_rows * answerer_rows).bit_length() or size == 16)


def asked(channel: Channel, dealer: Line, own: OwnSet, request: Request, theirs: int) -> np.ndarray:
    """The asker's part: int64[own rows], the place in the peer's list of each of one's ids, -1 where it has no such id.

    theirs: the peer's number of rows. Raises PeerError.
    """
    (peer,) = channel.peers
    stream = dealing.ask(dealer, request)
    mine = placed(own.ids, channel.session, request.bins)
    r, c = (dealing.all_drawn(stream, request.bins, index) for index in (0, 1))
    numbers = np.zeros((request.bins, 2), np.uint64)
    numbers[mine.bins] = mine.hashed.numbers
    shifts = line_shifts(numbers, r)
    attempt = mine.attempt.to_bytes(ATTEMPT_BYTES, "little")
    channel.exchange(Label(EPOCH + SHIFTS, 0, Purpose.TRANSFER), {peer: [attempt, _bytes(shifts)]}, {})
    del r, numbers, shifts
    size = tag_size(len(own.ids), theirs)
    expected = line_tags(c[mine.bins], mine.bins, mine.numbers, channel.session, size)
    came = channel.exchange(Label(EPOCH + TAGS, 0, Purpose.TRANSFER), {}, {peer: CHOICES * size * theirs})[peer]
    listed = came.numpy().reshape(theirs, CHOICES, size)
    links = np.full(len(own.ids), -1)
    for number in range(CHOICES):
        here = np.nonzero(mine.numbers == number)[0]
        links[here] = _places(np.ascontiguousarray(listed[:, number]), expected[here])
    found = np.sort(links[links >= 0])
    if np.any(found[1:] == found[:-1]):
        raise _lie(peer, "one of its ids is two of ours")
    return links


def answered(channel: Channel, dealer: Line, own: OwnSet, request: Request, theirs: int) -> np.ndarray:
    """The answerer's part: int64[own rows], one's own row at each place of one's list. Raises PeerError."""
    (peer,) = channel.peers
    bins, size = request.bins, tag_size(theirs, len(own.ids))
    stream = dealing.ask(dealer, request)
    known = np.empty((bins, 6), np.uint64)
    known[:, 4:] = dealing.offsets(dealer, bins)
    known[:, :2] = dealing.all_drawn(stream, bins, 0)
    order = shuffled(len(own.ids))
    items = hashed(own.ids, channel.session, 0, bins)  # the first attempt is almost always the right one
    nbytes = ATTEMPT_BYTES + NUMBER_BYTES * bins
    came = channel.exchange(Label(EPOCH + SHIFTS, 0, Purpose.TRANSFER), {}, {peer: nbytes})[peer].numpy()
    attempt = int.from_bytes(came[:ATTEMPT_BYTES].tobytes(), "little")
    if attempt >= 1 << 32:
        raise _lie(peer, f"it used the hashes of attempt {attempt}")
    if attempt:
        items = hashed(own.ids, channel.session, attempt, bins)
    known[:, 2:4] = came[ATTEMPT_BYTES:].view(np.uint64).reshape(-1, 2)
    made: list[Buffer] = []
    for start in range(0, len(order), _PIECE):
        rows = order[start : start + _PIECE]
        choices = items.choices[rows]
        values = line_values(items.numbers[rows], choices, known).reshape(-1, 2)
        which = np.tile(np.arange(CHOICES), len(rows))
        made.append(_bytes(line_tags(values, choices.reshape(-1), which, channel.session, size)))
    channel.exchange(Label(EPOCH + TAGS, 0, Purpose.TRANSFER), {peer: made}, {})
    return order


def _places(listed: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where in a list uint8[n, size] each of some tags is, -1 where it is not; sorted by the first eight bytes."""
    keys, looked = (np.ascontiguousarray(part[:, :8]).view(np.uint64).reshape(-1) for part in (listed, wanted))
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    if np.any(ordered[1:] == ordered[:-1]):  # of honest tags hardly ever: then all bytes are sorted by
        return tags.places(listed, tags.as_tags(wanted))
    at = np.minimum(np.searchsorted(ordered, looked), len(ordered) - 1)
    found = order[at]
    return np.where((listed[found] == wanted).all(1), found, -1)


def _bytes(array: np.ndarray) -> memoryview:
    return array.data.cast("B")


def _lie(peer: str, why: str) -> BadFrame:
    what = f"party {peer!r} does not follow the protocol"
    fix = "do not trust this party, or the version that it runs"
    return BadFrame(peer, explain(what, where="the alignment of ids", why=why, fix=fix))
