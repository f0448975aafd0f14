"""Real numbers as integers with one public scale, and how large they may be."""

from math import frexp, isfinite

import numpy as np

from protocols.errors import InputError, explain

LARGEST_INT = 1 << 62


def integers(values: np.ndarray, frac_bits: int, limit: float, what: str) -> np.ndarray:
    """round(values * 2^frac_bits), as int64 where they fit and else as Python integers.

    Raises InputError for a value that is not finite or whose magnitude is above `limit`; the value is not named.
    """
    values = np.asarray(values)
    if values.dtype == object:
        fits = all(abs(v) <= limit for v in values.flat)
    elif values.dtype.kind in "iub":
        fits = values.size == 0 or max(int(values.max()), -int(values.min())) <= limit
    elif values.dtype.kind == "f":
        fits = bool(np.all(np.abs(values) <= limit))
    else:
        raise InputError(f"{what}: expected real numbers, not {values.dtype}")
    if not fits:
        raise InputError(
            explain(
                f"{what}: a value is not finite or above the limit {limit:g}",
                fix="scale the data, or pass a larger limit; the limit is public and decides how wide results are",
            )
        )
    if magnitude(limit, frac_bits) > LARGEST_INT:
        exact = [_exact(v, frac_bits) for v in values.reshape(-1).tolist()]
        out = np.empty(len(exact), object)
        out[:] = exact
        return out.reshape(values.shape)
    if values.dtype.kind == "f":
        return np.rint(values.astype(np.float64) * 2.0**frac_bits).astype(np.int64)
    return values.astype(np.int64) << frac_bits


def _exact(value: float, frac_bits: int) -> int:
    if isinstance(value, float):
        top, bottom = value.as_integer_ratio()
        return ((top << frac_bits + 1) // bottom + 1) >> 1
    return int(value) << frac_bits


def magnitude(limit: float, frac_bits: int) -> int:
    """The largest integer that a number up to `limit` becomes."""
    if not isfinite(limit):
        raise InputError(f"the limit {limit} is not finite")
    top, bottom = (float(limit) if not isinstance(limit, int) else limit).as_integer_ratio()
    return -(-(top << frac_bits) // bottom)


def power_of_two(values: np.ndarray) -> int | float:
    """The smallest power of two that no magnitude exceeds: what a result tells about the weights that made it."""
    values = np.asarray(values)
    if not values.size:
        return 1
    if values.dtype.kind in "iub":
        return 1 << max(0, max(int(values.max()), -int(values.min())) - 1).bit_length()
    largest = float(np.abs(values).max())
    if not isfinite(largest):
        raise InputError("a public array has a value that is not finite")
    fraction, exponent = frexp(largest)
    return 2.0 ** (exponent - (fraction == 0.5)) if largest else 1


def negative(values: np.ndarray) -> np.ndarray:
    """Minus a public array; unsigned integers and the smallest signed one do not wrap around."""
    values = np.asarray(values)
    return -(values.astype(object) if values.dtype.kind in "iub" else values)
