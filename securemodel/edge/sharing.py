"""Numbers into shares and back: fixed point, additive sharing modulo 2^64, and streams that follow from seeds.

A value x is encoded as e = round(x * 2^frac_bits), to even where it is half-way. Shares of e are x_0 … x_{n-1} with
e = x_0 + … + x_{n-1} modulo 2^64; any n-1 of them are uniformly random and say nothing. Rank 0 gets numbers; the others
get 32 bytes that their share follows from, or numbers where this Python has no AES. `vectors/share-v1.json` holds all
of it by example.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

import numpy as np

from securemodel.edge.errors import InputError

try:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
except ImportError:  # a small client works without it: all parties get numbers
    HAS_AES = False
else:
    HAS_AES = True

SEED_BYTES = 32
_STREAM = b"securemodel share 1"


@dataclass(frozen=True)
class Share:
    """What one party gets of one tensor: little-endian int64 `values`, or the `seed` that they follow from."""

    form: Literal["values", "seed"]
    data: bytes = field(repr=False)


def encode(x: np.ndarray, frac_bits: int, limit: float, name: str = "x") -> np.ndarray:
    """The int64 round(x * 2^frac_bits), ties to even, of numbers with |x| <= limit; InputError names the first other."""
    return np.rint(bounded(x, limit, name) * 2.0**frac_bits).astype(np.int64)


def bounded(x: np.ndarray, limit: float, name: str = "x") -> np.ndarray:
    """Numbers with |x| <= limit as float64; InputError names the first other."""
    values = numbers(x, name).astype(np.float64, copy=False)
    _refuse(~(np.abs(values) <= limit), values, f"beyond ±{limit:g}, the largest that the model takes", name)
    return values


def encode_indices(x: np.ndarray, limit: float, name: str = "x") -> np.ndarray:
    """The int64 of whole numbers 0 <= x <= limit, such as token ids; InputError names the first other."""
    values = numbers(x, name)
    _refuse(~((values >= 0) & (values <= limit)), values, f"not from 0 to {limit:g}", name)
    _refuse(values != np.rint(values), values, "not a whole number", name)
    return values.astype(np.int64)


def numbers(x: np.ndarray, name: str) -> np.ndarray:
    """What was given as an array, if it holds real numbers."""
    try:
        values = np.asarray(x)
    except ValueError as error:
        raise InputError(f"input {name!r} is no array", why="its rows have different lengths") from error
    except (TypeError, RuntimeError) as error:  # of PyTorch, which says why: a gradient, bfloat16, another device
        fix = "give an array that NumPy has: x.detach().cpu().float().numpy()"
        raise InputError(f"input {name!r} is no array", why=str(error), fix=fix) from error
    if values.dtype.kind not in "fiub":
        raise InputError(f"input {name!r} holds no numbers", why=f"its type is {values.dtype}")
    return values


def _refuse(bad: np.ndarray, values: np.ndarray, why: str, name: str) -> None:
    """Raises InputError with the place of the first value that is bad, but never with the value."""
    if bad.any():
        place = tuple(int(at) for at in np.argwhere(bad)[0])
        kind = "not a number" if np.isnan(values[place]) else "infinite" if np.isinf(values[place]) else why
        raise InputError(
            f"an element of input {name!r} cannot be encoded",
            where=f"{name}[{', '.join(map(str, place))}], the first of {int(bad.sum())}",
            why=f"it is {kind}",
            fix="correct these elements, or leave their rows out",
        )


_ZEROS = memoryview(bytes(1 << 17))


def keystream(seed: bytes, id: bytes, tensor: int, first: int = 0) -> Callable[[int], np.ndarray]:
    """Gives as many int64 as it is asked for, one after the other, that follow from a seed from place `first` (even) on:
    AES-256 in counter mode over zeros, read as little-endian. All but the last number of them must be even.

    The first counter block is 8 bytes of SHA-256("securemodel share 1" ‖ the request's 16 id bytes ‖ the tensor's index
    as u32, little-endian), then a 64-bit big-endian counter from 0: even a seed used twice would not repeat a stream.
    """
    if len(seed) != SEED_BYTES or len(id) != 16:
        raise ValueError("a seed has 32 bytes, an id 16")
    start = sha256(_STREAM + id + tensor.to_bytes(4, "little")).digest()[:8] + (first // 2).to_bytes(8, "big")
    stream = Cipher(algorithms.AES(seed), modes.CTR(start)).encryptor()

    def more(count: int) -> np.ndarray:
        zeros = _ZEROS[: 8 * count] if 8 * count <= len(_ZEROS) else bytes(8 * count)
        return np.frombuffer(stream.update(zeros), dtype="<i8")

    return more


def expand(seed: bytes, id: bytes, tensor: int, count: int, first: int = 0) -> np.ndarray:
    """The `count` int64 of a `keystream`."""
    return keystream(seed, id, tensor, first)(count)


def split(
    e: np.ndarray,
    parties: int,
    id: bytes,
    tensor: int,
    *,
    seeds: bool = HAS_AES,
    random: Callable[[int], bytes] = os.urandom,
) -> list[Share]:
    """Shares of the int64 array e for each rank. `random` gives as many bytes as it is asked for."""
    rest, others = e.reshape(-1).astype(np.int64), []
    for _ in range(1, parties):
        share = Share("seed", random(SEED_BYTES)) if seeds else Share("values", random(8 * rest.size))
        rest -= values_of(share, id, tensor, rest.size)
        others.append(share)
    return [Share("values", rest.astype("<i8", copy=False).tobytes()), *others]


def values_of(share: Share, id: bytes, tensor: int, count: int) -> np.ndarray:
    """The `count` int64 of a share, which must have the size of them or of a seed."""
    if share.form == "seed":
        return expand(share.data, id, tensor, count)
    if len(share.data) != 8 * count:
        raise ValueError(f"{count} values have {8 * count} bytes")
    return np.frombuffer(share.data, dtype="<i8")


def add(shares: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of all parties' shares, modulo 2^64."""
    total = np.array(shares[0], dtype=np.int64, ndmin=1)
    for share in shares[1:]:
        total += share
    return total


def decode(e: np.ndarray, frac_bits: int) -> np.ndarray:
    """The float64 that encoded numbers stand for."""
    return e.astype(np.float64) * 2.0**-frac_bits
