"""Cuckoo hashing with three bins for each item, and lines over the integers modulo 2^127 - 1, on plain integers."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np

PRIME = 2**127 - 1
PERSON = b"sm align"


def three_bins(random: np.ndarray, bins: int) -> np.ndarray:
    """int64[n, 3]: three different bins of each item, out of uniform words uint64[n, 3]."""
    out = []
    for words in random.tolist():
        chosen: list[int] = []
        for taken, word in enumerate(words):
            at = word * (bins - taken) >> 64
            for other in sorted(chosen):
                at += at >= other
            chosen.append(at)
        out.append(chosen)
    return np.array(out, np.int64).reshape(-1, 3)


def place_in_bins(choices: np.ndarray, bins: int) -> np.ndarray | None:
    """int64[bins]: 3 item + which of its choices has the item there, -1 for none; None where there is no way.

    Each item is placed by a shortest path of moves, first choices first.
    """
    seats, rows = [-1] * bins, choices.tolist()
    for item, own in enumerate(rows):
        free = next((k for k, at in enumerate(own) if seats[at] < 0), None)
        if free is not None:
            seats[own[free]] = 3 * item + free
        elif not _moved(seats, rows, item):
            return None
    return np.array(seats, np.int64)


def _moved(seats: list[int], rows: Sequence[Sequence[int]], item: int) -> bool:
    reached: dict[int, tuple[int, int]] = {}  # by bin: who may move there, and from which bin
    queue = deque([(item, -1)])
    while queue:
        who, source = queue.popleft()
        for k, at in enumerate(rows[who]):
            if at in reached:
                continue
            reached[at] = 3 * who + k, source
            if seats[at] < 0:
                while at >= 0:
                    seats[at], at = reached[at]
                return True
            queue.append((seats[at] // 3, at))
    return False


def _read(words: np.ndarray) -> list[int]:
    return [(low | high << 64) % PRIME for low, high in words.reshape(-1, 2).tolist()]


def _written(numbers: Iterable[int], shape: Sequence[int]) -> np.ndarray:
    mask = 2**64 - 1
    return np.array([(x & mask, x >> 64) for x in numbers], np.uint64).reshape(*shape, 2)


def line_offsets(a: np.ndarray, r: np.ndarray, c: np.ndarray) -> np.ndarray:
    """c - a r, each uint64[n, 2], low word first."""
    made = ((z - x * y) % PRIME for x, y, z in zip(_read(a), _read(r), _read(c), strict=True))
    return _written(made, (len(a),))


def line_shifts(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    """x - r, each uint64[n, 2]."""
    return _written(((p - q) % PRIME for p, q in zip(_read(x), _read(r), strict=True)), (len(x),))


def line_values(y: np.ndarray, choices: np.ndarray, known: np.ndarray) -> np.ndarray:
    """uint64[n, 3, 2]: a (y - d) + b in each of the three bins of y, with known = (a, d, b), uint64[bins, 6]."""
    lines = _read(known)
    made = []
    for item, bins in zip(_read(y), choices.tolist(), strict=True):
        for at in bins:
            a, d, b = lines[3 * at : 3 * at + 3]
            made.append((a * (item - d) + b) % PRIME)
    return _written(made, (len(y), 3))


def line_tags(values: np.ndarray, bins: np.ndarray, numbers: np.ndarray, session: bytes, size: int) -> np.ndarray:
    """uint8[n, size]: BLAKE2s of the session, the value, the bin and the number of the choice, cut by its own parameter."""
    out = bytearray()
    for value, at, number in zip(_read(values), bins.tolist(), numbers.tolist(), strict=True):
        message = session + value.to_bytes(16, "little") + at.to_bytes(8, "little") + number.to_bytes(8, "little")
        out += hashlib.blake2s(message, digest_size=size, person=PERSON).digest()
    return np.frombuffer(bytes(out), np.uint8).reshape(-1, size)
