"""Cuckoo hashing and lines over the integers modulo 2^127 - 1, for the alignment of ids: in C++ where it was built.

Numbers are two words of uint64, low first; any 128 bits stand for what they are modulo the prime. Functions check shapes
and raise ValueError; `protocols.kernels.twins.bins` defines what they compute.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from protocols.kernels.cpu import build
from protocols.kernels.twins import bins as twins

TAG_SIZES = (12, 16)
SESSION_BYTES = 32


def _native() -> Any:
    return build.module if hasattr(build.module, "place_in_bins") else None


def _array(array: np.ndarray, dtype: type, what: str, *shape: int | None) -> np.ndarray:
    fits = array.dtype == dtype and array.ndim == len(shape)
    if not fits or any(want not in (None, have) for want, have in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{what} must be {np.dtype(dtype)}{list(shape)}, not {array.dtype}{list(array.shape)}")
    return np.ascontiguousarray(array)


def _choices(choices: np.ndarray, bins: int) -> np.ndarray:
    choices = _array(choices, np.int64, "choices", None, 3)
    if choices.size and not 0 <= choices.min() <= choices.max() < bins:
        raise ValueError(f"choices must be bins from 0 to {bins - 1}")
    return choices


def three_bins(random: np.ndarray, bins: int) -> np.ndarray:
    """int64[n, 3]: three different ones of `bins` bins for each item, from uniform words uint64[n, 3]."""
    random = _array(random, np.uint64, "random", None, 3)
    if bins < 3:
        raise ValueError(f"three_bins: {bins} bins are fewer than three")
    if (native := _native()) is None:
        return twins.three_bins(random, bins)
    out = np.empty(random.shape, np.int64)
    native.three_bins(out.ctypes.data, random.ctypes.data, len(random), bins)
    return out


def place_in_bins(choices: np.ndarray, bins: int) -> np.ndarray | None:
    """Gives each item one of its three bins, at most one to a bin; None where there is no way to do so.

    choices: int64[n, 3]. Returns int64[bins]: 3 item + which of the three, -1 for an empty bin. Breadth-first search for
    an augmenting path: it ends without one only where Hall's condition fails.
    """
    choices = _choices(choices, bins)
    if (native := _native()) is None:
        return twins.place_in_bins(choices, bins)
    seats = np.empty(bins, np.int64)
    return seats if native.place_in_bins(seats.ctypes.data, choices.ctypes.data, len(choices), bins) else None


def line_offsets(a: np.ndarray, r: np.ndarray, c: np.ndarray) -> np.ndarray:
    """b with a r + b = c: uint64[n, 2] each."""
    a = _array(a, np.uint64, "a", None, 2)
    r, c = (_array(part, np.uint64, "r and c", len(a), 2) for part in (r, c))
    if (native := _native()) is None:
        return twins.line_offsets(a, r, c)
    out = np.empty_like(a)
    addresses = (array.ctypes.data for array in (out, a, r, c))
    native.line_offsets(*addresses, len(a), torch.get_num_threads())
    return out


def line_shifts(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    """x - r: uint64[n, 2] each."""
    x = _array(x, np.uint64, "x", None, 2)
    r = _array(r, np.uint64, "r", len(x), 2)
    if (native := _native()) is None:
        return twins.line_shifts(x, r)
    out = np.empty_like(x)
    native.line_shifts(out.ctypes.data, x.ctypes.data, r.ctypes.data, len(x))
    return out


def line_values(y: np.ndarray, choices: np.ndarray, known: np.ndarray) -> np.ndarray:
    """uint64[n, 3, 2]: a (y - d) + b in each of the three bins of y; known: uint64[bins, 6], of each bin a, d and b."""
    y, known = _array(y, np.uint64, "y", None, 2), _array(known, np.uint64, "known", None, 6)
    choices = _array(_choices(choices, len(known)), np.int64, "choices", len(y), 3)
    if (native := _native()) is None:
        return twins.line_values(y, choices, known)
    out = np.empty((len(y), 3, 2), np.uint64)
    addresses = (array.ctypes.data for array in (out, y, choices, known))
    native.line_values(*addresses, len(y), torch.get_num_threads())
    return out


def line_tags(values: np.ndarray, bins: np.ndarray, numbers: np.ndarray, session: bytes, size: int) -> np.ndarray:
    """uint8[n, size]: a hash of each value, its bin and which choice of its item that is, in one session.

    values: uint64[n, 2]; bins, numbers: int64[n]; session: 32 bytes; size: 12 or 16. BLAKE2s (RFC 7693) of one block.
    """
    values = _array(values, np.uint64, "values", None, 2)
    bins, numbers = (_array(part, np.int64, "bins and numbers", len(values)) for part in (bins, numbers))
    if size not in TAG_SIZES or len(session) != SESSION_BYTES:
        raise ValueError(f"tags have 12 or 16 bytes, not {size}, and a session {SESSION_BYTES}, not {len(session)}")
    if (native := _native()) is None:
        return twins.line_tags(values, bins, numbers, session, size)
    out = np.empty((len(values), size), np.uint8)
    addresses = (array.ctypes.data for array in (out, values, bins, numbers))
    native.line_tags(*addresses, session, size, len(values), torch.get_num_threads())
    return out
