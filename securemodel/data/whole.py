"""Numbers as whole numbers: what owners compute in the clear enters programs so, and sums of it are exact.

An owner's float64 is its mantissa and its exponent; a large whole number is two small ones; a column's numbers are
multiples of a public unit, as fine as the sums of so many rows leave room for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch

from protocols.errors import InputError, explain

FEW_FRAC_BITS = 4
"""Fractional bits of programs that compute with whole numbers alone: their owners' may be up to 2^53."""
ROOM_BITS = 60
"""Sums of whole numbers stay below 2^60."""
WITHHELD = math.inf
"""Stands for a number that its owner does not tell, as too few rows are behind it; NaN for one that is undefined."""
_MANTISSA_BITS, _UNDEFINED, _WITHHELD = 53, 4000, 4001
_LIMB_BITS = 28
_MOST_BITS = 24


def from_floats(numbers: np.ndarray) -> torch.Tensor:
    """Any float64 numbers [...] as whole ones [..., 2]: mantissa and exponent, exactly; see `to_floats`."""
    mantissa, exponent = np.frexp(np.asarray(numbers, np.float64))
    mantissa = np.where(np.isfinite(numbers), mantissa, 0.0) * 2.0**_MANTISSA_BITS
    exponent = np.where(np.isnan(numbers), _UNDEFINED, np.where(np.isinf(numbers), _WITHHELD, exponent))
    return torch.from_numpy(np.stack([mantissa.astype(np.int64), exponent.astype(np.int64)], -1))


def to_floats(whole: torch.Tensor) -> np.ndarray:
    """The inverse of `from_floats`; NaN where a number is undefined, `WITHHELD` where it is withheld."""
    mantissa, exponent = (part.numpy() for part in whole.unbind(-1))
    made = np.ldexp(mantissa.astype(np.float64), np.clip(exponent, -1200, 1200).astype(np.int32) - _MANTISSA_BITS)
    return np.where(exponent == _UNDEFINED, np.nan, np.where(exponent == _WITHHELD, WITHHELD, made))


def in_two(total: torch.Tensor) -> torch.Tensor:
    """Whole numbers below 2^60 [...] as two that an owner may give [..., 2]; see `together`."""
    return torch.stack([total >> _LIMB_BITS, total & (1 << _LIMB_BITS) - 1], -1)


def together(parts: torch.Tensor) -> torch.Tensor:
    """The inverse of `in_two`, of secrets too."""
    half = 1 << _LIMB_BITS // 2
    return parts[..., 0] * half * half + parts[..., 1]


class Bounds(Protocol):
    """What a schema says of a column."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class Unit:
    """A column's number x enters sums as round((x - origin) factor); `most` is the largest magnitude of that.

    Where the factor is 1 and the origin whole, whole numbers stay what they are.
    """

    origin: float
    factor: float
    most: int

    def whole(self, x: np.ndarray) -> np.ndarray:
        """Numbers in the unit, as float64: at most `most` whatever float64 rounds."""
        return np.clip(np.round((x - self.origin) * self.factor), -self.most, self.most)

    def mean(self, total: int, count: int) -> float:
        """The mean of numbers from their sum in the unit."""
        return float(Fraction(self.origin) + Fraction(total, count) / Fraction(self.factor))

    def variance(self, total: int, squares: int, count: int) -> float:
        """The variance of numbers, with count - 1 for n, from sums of them and of their squares in the unit."""
        moment = Fraction(count * squares - total * total, count * (count - 1))
        return float(max(moment, Fraction(0)) / Fraction(self.factor) ** 2)


def unit_of(column: Bounds, rows: int) -> Unit:
    """The finest unit in which sums of so many rows' squares have room. Raises InputError for bounds that are none."""
    low, high = float(column.low), float(column.high)
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        what = f"the column {column.name!r} has no bounds, low {low} and high {high}"
        raise InputError(explain(what, fix="write low and high into the schema: no number is below or above"))
    room = (ROOM_BITS - math.ceil(math.log2(rows + 1))) // 2
    middle = float(math.floor((low + high) / 2))
    most = math.ceil(max(high - middle, middle - low))
    if column.kind != "number" and most < 2**room:
        return Unit(middle, 1.0, max(most, 1))
    half = (high - low) / 2 or 1.0
    bits = min(room, _MOST_BITS)
    return Unit((low + high) / 2, 2.0**bits / half, 2**bits)
