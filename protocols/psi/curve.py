"""Ids as points of Curve25519, and points times a party's key [RFC 7748].

A point is the 32 bytes of its u coordinate. An id is hashed to points of the curve itself and never of its twist: a
point stays on its side under every key, so a hash that may fall on either side would tell one bit of each id. Keys are
multiples of the cofactor, so what a peer adds of small order goes away; what it sends from the twist is as hard there
(Bernstein, "Curve25519: new Diffie-Hellman speed records", PKC 2006, section 3), and tells nothing of the key.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

try:
    from gmpy2 import jacobi
except ImportError:
    jacobi = None

POINT_BYTES = KEY_BYTES = SALT_BYTES = 32
_P, _A = 2**255 - 19, 486662
_ORDER = 2**252 + 27742317777372353535851937790883648493
_LOW, _HIGH = 1 << 254, 1 << 255
_EIGHTH = pow(8, -1, _ORDER)
_PERSON = b"id to curve"
_TOP = np.uint64(1 << 63)
_ONES = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
_LAST = np.uint64(2**64 - 19)


class BadPoint(ValueError):
    """Bytes that no honest party sends as a point."""


def new_key() -> bytes:
    """A fresh key from the operating system, in the form that RFC 7748 gives to keys."""
    return _clamped(os.urandom(KEY_BYTES)).to_bytes(KEY_BYTES, "little")


def new_keys() -> tuple[bytes, bytes, bytes]:
    """Two fresh keys, and one that does what both do one after the other.

    The product modulo the order of the group has a form as in RFC 7748 for every other pair; others are drawn again.
    """
    first = new_key()
    while True:
        second = new_key()
        product = int.from_bytes(first, "little") * int.from_bytes(second, "little") % _ORDER
        both = 8 * (product * _EIGHTH % _ORDER)
        if _LOW <= both < _HIGH:
            return first, second, both.to_bytes(KEY_BYTES, "little")


def _clamped(key: bytes) -> int:
    return int.from_bytes(key, "little") & (_LOW - 8) | _LOW


def hash_to_curve(item: bytes, salt: bytes) -> bytes:
    """The point of an id, 32 bytes, whose logarithm nobody knows. `salt`: up to 64 bytes, the same at all parties.

    u is a hash, counted up until u^3 + A u^2 + u is a square: two tries on average.
    """
    for count in range(1 << 16):
        digest = two_tries(item, salt, count)
        for half in (digest[:POINT_BYTES], digest[POINT_BYTES:]):
            u = int.from_bytes(half, "little") & (_HIGH - 1)
            if u < _P and is_square(((u + _A) * u + 1) * u % _P):
                return u.to_bytes(POINT_BYTES, "little")
    raise AssertionError("half of all numbers are points")


def two_tries(item: bytes, salt: bytes, count: int) -> bytes:
    """The 64 bytes of the next two numbers to try for an id; of each the highest bit is not used."""
    seed = count.to_bytes(16, "little")
    return hashlib.blake2b(item, digest_size=2 * POINT_BYTES, key=salt, person=_PERSON, salt=seed).digest()


def is_square(number: int) -> bool:
    """Whether a number that is not 0 modulo 2^255 - 19 is a square there."""
    if jacobi is not None:
        return jacobi(number, _P) == 1
    return pow(number, (_P - 1) // 2, _P) == 1


def blind(items: Iterable[bytes], key: bytes, salt: bytes) -> bytes:
    """The points of ids times a key, one after the other."""
    return multiply(b"".join([hash_to_curve(item, salt) for item in items]), key)


def multiply(points: bytes, key: bytes, size: int = POINT_BYTES) -> bytes:
    """Points times a key, in their order, each cut to its first `size` bytes. Raises BadPoint for one of small order."""
    exchange, load = X25519PrivateKey.from_private_bytes(key).exchange, X25519PublicKey.from_public_bytes
    try:
        out = [exchange(load(points[at : at + POINT_BYTES])) for at in range(0, len(points), POINT_BYTES)]
    except ValueError:
        raise BadPoint("a point of small order") from None
    return b"".join(out if size == POINT_BYTES else [point[:size] for point in out])


def check_points(points: bytes | memoryview) -> None:
    """Raises BadPoint unless each 32 bytes are a number below 2^255 - 19, so that no point has two forms."""
    if not np.all(are_reduced(points)):
        raise BadPoint("a number that is no coordinate")


def are_reduced(points: bytes | memoryview | np.ndarray) -> np.ndarray:
    """bool[n]: which numbers of 32 bytes are below 2^255 - 19."""
    words = np.frombuffer(points, "<u8").reshape(-1, 4)
    above = (words[:, 3] == _ONES >> np.uint64(1)) & (words[:, 2] == _ONES) & (words[:, 1] == _ONES)
    return (words[:, 3] < _TOP) & ~(above & (words[:, 0] >= _LAST))


def joined(items: Sequence[bytes]) -> bytes:
    """Byte strings as one, with their lengths, for a worker."""
    lengths = np.fromiter(map(len, items), "<u4", len(items))
    return len(items).to_bytes(4, "little") + lengths.tobytes() + b"".join(items)


def parted(data: bytes) -> list[bytes]:
    """What `joined` put together."""
    count = int.from_bytes(data[:4], "little")
    ends = 4 + 4 * count + np.cumsum(np.frombuffer(data, "<u4", count, 4), dtype=np.int64)
    starts = np.concatenate([[4 + 4 * count], ends[:-1]]) if count else ends
    return [data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
