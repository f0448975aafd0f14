"""The same points as `curve` makes, many at once, by the kernels for it; where `curve25519.lanes()` is not 0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from protocols.kernels import curve25519
from protocols.psi.curve import POINT_BYTES, BadPoint, are_reduced, two_tries


def hash_all(items: Sequence[bytes], salt: bytes) -> np.ndarray:
    """uint8[n, 32]: the points of ids (see `curve.hash_to_curve`). `salt`: up to 64 bytes."""
    out, left, count = np.empty((len(items), POINT_BYTES), np.uint8), np.arange(len(items)), 0
    while len(left):
        tries = b"".join([two_tries(items[at], salt, count) for at in left.tolist()])
        numbers = np.frombuffer(tries, np.uint8).reshape(-1, POINT_BYTES).copy()
        numbers[:, -1] &= 0x7F
        good = (are_reduced(numbers) & curve25519.on_curve(numbers)).reshape(-1, 2)
        first = np.where(good[:, 0], 0, 1)
        found = good.any(1)
        out[left[found]] = numbers.reshape(-1, 2, POINT_BYTES)[found, first[found]]
        left, count = left[~found], count + 1
    return out


def blind(items: Sequence[bytes], key: bytes, salt: bytes) -> bytes:
    """The points of ids times a key, one after the other."""
    return _times(hash_all(items, salt), key, POINT_BYTES)


def multiply(points: bytes, key: bytes, size: int = POINT_BYTES) -> bytes:
    """Points times a key, in their order, each cut to its first `size` bytes. Raises BadPoint for one of small order."""
    return _times(np.frombuffer(points, np.uint8).reshape(-1, POINT_BYTES), key, size)


def _times(points: np.ndarray, key: bytes, size: int) -> bytes:
    made = curve25519.x25519(points, key)
    if not np.all(made.any(1)):
        raise BadPoint("a point of small order")
    return made[:, :size].tobytes()
