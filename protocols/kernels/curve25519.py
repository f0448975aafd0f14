"""Many points of Curve25519 times one key: eight at a time with AVX-512 IFMA, on all cores.

Where `lanes()` is 0 these kernels were not built or this CPU lacks the instructions; `protocols.psi.curve` then
computes the same with OpenSSL, which is what tests compare with. A point is the 32 bytes of its u coordinate [RFC 7748].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from protocols.kernels.cpu import build

POINT_BYTES = KEY_BYTES = 32


def lanes() -> int:
    """How many points these kernels multiply at once, or 0 where they cannot."""
    native = _native()
    return native.residue_lanes() if hasattr(native, "x25519") and native.residue_lanes() > 1 else 0


def x25519(points: np.ndarray, key: bytes, threads: int = 1) -> np.ndarray:
    """uint8[N, 32]: points uint8[N, 32] times a key, as X25519 of RFC 7748 has it; zeros for points of small order.

    Raises ValueError for other shapes, and for a key that does not have the form that the RFC gives to keys.
    """
    points = _checked(points)
    if len(key) != KEY_BYTES or key[0] & 7 or key[31] & 192 != 64:
        raise ValueError("x25519: a key has 32 bytes, is a multiple of 8, and its highest bit is bit 254")
    scalar, out = np.frombuffer(key, np.uint8), np.empty_like(points)
    _native().x25519(out.ctypes.data, points.ctypes.data, len(points), scalar.ctypes.data, threads)
    return out


def on_curve(points: np.ndarray, threads: int = 1) -> np.ndarray:
    """bool[N]: which u of uint8[N, 32] are points of the curve, not of its twist; the highest bit of u is not read."""
    points = _checked(points)
    out = np.empty(len(points), np.uint8)
    _native().curve25519_points(out.ctypes.data, points.ctypes.data, len(points), threads)
    return out.astype(bool)


def _checked(points: np.ndarray) -> np.ndarray:
    if points.dtype != np.uint8 or points.ndim != 2 or points.shape[1] != POINT_BYTES:
        raise ValueError(f"points must be uint8[*, {POINT_BYTES}], not {points.dtype}{list(points.shape)}")
    return np.ascontiguousarray(points)


def _native() -> Any:
    return build.module
