"""A party's ids in bins: each id has three, and the party that asks puts each of its own into one, at most one to a bin.

Where ids are hashed as by a random function, there is a way to do so unless some t ids have no more than t-1 bins among
them (Hall 1935). Such a set of ids, the smallest one, reaches each of its t-1 bins at least twice; summed over all sets of
t ids and t-1 bins, that has a probability below 2^-40 with `bins_for` bins (tests/protocols/psi/test_cuckoo.py adds it
up). It is found out before anything is sent, and other hashes are then taken. [Cuckoo hashing: Pagh, Rodler 2001; with
three places: Fotakis, Pagh, Sanders, Spirakis 2003.]
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protocols.errors import ProtocolError, explain
from protocols.kernels.bins import place_in_bins, three_bins

CHOICES = 3
_LEAST_MORE = 128
_DIGEST = 40
_MOST_ATTEMPTS = 64


def bins_for(rows: int) -> int:
    """How many bins so many ids are put into: 1.3 for each, and 128 more for the sake of small sets."""
    return rows + -(-3 * rows // 10) + _LEAST_MORE


@dataclass(frozen=True, repr=False)
class Hashed:
    """Ids as numbers modulo 2^127 - 1, uint64[n, 2], and the three bins of each, int64[n, 3]."""

    numbers: np.ndarray
    choices: np.ndarray


def hashed(ids: Sequence[bytes], session: bytes, attempt: int, bins: int) -> Hashed:
    """Hashes ids by the functions of one session and attempt, which all parties know: BLAKE2b of 40 bytes."""
    start = session + attempt.to_bytes(4, "little")  # of one length, so that no two pairs of start and id are alike
    digests = b"".join([hashlib.blake2b(start + item, digest_size=_DIGEST, person=b"sm bins").digest() for item in ids])
    words = np.frombuffer(digests, np.uint64).reshape(-1, _DIGEST // 8)
    numbers = words[:, :2] & np.array([(1 << 64) - 1, (1 << 63) - 1], np.uint64)
    return Hashed(numbers, three_bins(np.ascontiguousarray(words[:, 2:]), bins))


@dataclass(frozen=True, repr=False)
class Placed:
    """Hashed ids in their bins: `rows` int64[bins] is which id a bin has, -1 for none; `numbers` int64[n] and `bins`
    int64[n] are which of its three bins each id has, and that bin."""

    attempt: int
    hashed: Hashed
    rows: np.ndarray
    numbers: np.ndarray
    bins: np.ndarray


def placed(ids: Sequence[bytes], session: bytes, bins: int) -> Placed:
    """Puts ids into bins, by the hashes of the first attempt that has a way."""
    for attempt in range(_MOST_ATTEMPTS):
        made = hashed(ids, session, attempt, bins)
        seats = place_in_bins(made.choices, bins)
        if seats is not None:
            return _placed(attempt, made, seats)
    raise ProtocolError(explain(f"{len(ids)} ids do not fit into {bins} bins", why="two of them are equal, or a fault"))


def _placed(attempt: int, made: Hashed, seats: np.ndarray) -> Placed:
    used = np.nonzero(seats >= 0)[0]
    rows = np.where(seats >= 0, seats // CHOICES, -1)
    numbers, own = np.empty((2, len(made.choices)), np.int64)
    numbers[rows[used]], own[rows[used]] = seats[used] % CHOICES, used
    return Placed(attempt, made, rows, numbers, own)
