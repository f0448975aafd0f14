"""Smooth functions as quadratic splines: tables that are fitted when a program is compiled.

A function is replaced on [low, high] by pieces and continued by a constant below and a line above. Each piece is fitted
on [-h, h] around its center, h = 2^-step_bits, where the error of the best quadratic is at most h^3 / 24 times the largest
third derivative (Chebyshev). With exact rounding the pieces lie side by side, each 2 h wide. Else their centers are h
apart, and an argument may fall into either of the two pieces around it. `Smooth.max_error` states the error of exact arithmetic over the whole line, the tails included;
fixed point adds two units in the last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

TABLE_SIZE = 256
"""Entries of a table; half of them where rounding is exact."""
_GRID_BITS = 24
_NARROW = 46
_MARGIN = 3  # pieces that only catch arguments one unit outside, and the one above the last center


@dataclass(frozen=True)
class Smooth:
    """A function and its domain: `below` under `low`, `above` + `slope` x over `high`.

    `above` is None where arguments are not larger than `high`: the last piece then goes on to the table's end.
    `wide`: what holds outside of the domain holds for 8 pieces inside of it, too.
    halved: how often its table has half as many pieces as `SMOOTH` has.
    max_error: of a table that is not halved, the largest error, absolute; for root_of_exp from `low` to `high` only, and relative to max(f(x), 2^-5).
    """

    name: str
    function: Callable[[torch.Tensor], torch.Tensor]
    low: float
    high: float
    step_bits: int
    max_error: float
    below: float = 0.0
    above: float | None = 0.0
    slope: float = 0.0
    wide: bool = False
    halved: int = 0

    @property
    def grid_bits(self) -> int:
        """Of `wide`: with fast rounding, an argument that is less than 2^-grid_bits, 8 pieces, inside of the domain may
        count as outside."""
        return self.step_bits + self.halved - 3

    @property
    def size(self) -> int:
        """Entries of its table, half of them where rounding is exact."""
        return TABLE_SIZE >> self.halved

    def pieces(self) -> int:
        """Centers between low and high that are h apart."""
        return round((self.high - self.low) * 2**self.step_bits)

    def start(self, exact: bool) -> float:
        """The argument at index 0: the first piece is a margin unless rounding is exact."""
        return self.low - (0.0 if exact else 2.0**-self.step_bits)


def _erf(x: torch.Tensor) -> torch.Tensor:
    return torch.erf(x)


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def _gelu_slope(x: torch.Tensor) -> torch.Tensor:
    return torch.special.ndtr(x) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_slope(x: torch.Tensor) -> torch.Tensor:
    root, cube = math.sqrt(2 / math.pi), 0.044715
    inner = torch.tanh(root * (x + cube * x**3))
    return 0.5 * (1 + inner) + 0.5 * x * (1 - inner**2) * root * (1 + 3 * cube * x**2)


def _silu_slope(x: torch.Tensor) -> torch.Tensor:
    y = torch.sigmoid(x)
    return y * (1 + x * (1 - y))


def _mish_slope(x: torch.Tensor) -> torch.Tensor:
    inner = torch.tanh(torch.nn.functional.softplus(x))
    return inner + x * (1 - inner**2) * torch.sigmoid(x)


def _root_of_exp(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(x / 2) / 4


SMOOTH = {
    s.name: s
    for s in (
        Smooth("sigmoid", torch.sigmoid, -15.75, 15.75, 3, 2**-16, above=1.0, wide=True),
        Smooth("tanh", torch.tanh, -7.875, 7.875, 4, 2**-15, below=-1.0, above=1.0, wide=True),
        Smooth("erf", _erf, -7.875, 7.875, 4, 2**-15, below=-1.0, above=1.0, wide=True),
        Smooth("gelu", _gelu, -7.875, 7.875, 4, 2**-16, slope=1.0, wide=True),
        Smooth("gelu_tanh", _gelu_tanh, -7.875, 7.875, 4, 2**-16, slope=1.0, wide=True),
        Smooth("silu", torch.nn.functional.silu, -15.75, 15.75, 3, 2**-15, slope=1.0, wide=True),
        Smooth("mish", torch.nn.functional.mish, -15.75, 15.75, 3, 2**-14, slope=1.0, wide=True),
        Smooth("softplus", torch.nn.functional.softplus, -15.75, 15.75, 3, 2**-16, slope=1.0, wide=True),
        Smooth("gelu_slope", _gelu_slope, -7.875, 7.875, 4, 2**-15, above=1.0, wide=True),
        Smooth("gelu_tanh_slope", _gelu_tanh_slope, -7.875, 7.875, 4, 2**-15, above=1.0, wide=True),
        Smooth("silu_slope", _silu_slope, -15.75, 15.75, 3, 2**-14, above=1.0, wide=True),
        Smooth("mish_slope", _mish_slope, -15.75, 15.75, 3, 2**-13, above=1.0, wide=True),
        Smooth("expm1_below_zero", torch.expm1, -15.75, 0.0, 4, 2**-16, below=-1.0),
        Smooth("exp_below_zero", torch.exp, -15.75, 0.0, 4, 2**-16, above=None, wide=True),
        Smooth("reciprocal_1_16", torch.reciprocal, 1.0, 16.0, 4, 2**-14, above=None),
        Smooth("rsqrt_1_16", torch.rsqrt, 1.0, 16.0, 4, 2**-15, above=None),
        Smooth("log_1_16", torch.log, 1.0, 16.0, 4, 2**-15, above=None),
        Smooth("sqrt_1_16", torch.sqrt, 1.0, 16.0, 4, 2**-18, above=None),
        Smooth("root_of_exp", _root_of_exp, -10.75, 20.875, 3, 2**-16, above=None),
    )
}


MOST_HALVED = 2
_TAIL = 2.0**-18


@cache
def coarser(smooth: Smooth, times: int) -> Smooth | None:
    """The function on a table that is halved so often, with pieces that are as much wider.

    Where that leaves too few pieces, the domain ends earlier; None where what holds outside does not hold there yet.
    """
    if times > MOST_HALVED:
        return None
    made = replace(smooth, step_bits=smooth.step_bits - times, halved=times)
    step = 2.0 ** (1 - made.step_bits)
    low, high = math.ceil(made.low / step) * step, math.floor(made.high / step) * step
    while round((high - low) * 2**made.step_bits) + _MARGIN > made.size:
        low, high = low + step, high - step if made.above is not None else high
    at = smooth.function(torch.tensor([low, high], dtype=torch.float64)).tolist()
    short = 0.0 if low == smooth.low else abs(at[0] - smooth.below)
    if smooth.above is not None and high != smooth.high:
        short = max(short, abs(at[1] - smooth.above - smooth.slope * high))
    inside = smooth.above is not None or high == smooth.high
    wide = made.wide and (low, high) == (smooth.low, smooth.high)
    return replace(made, low=low, high=high, wide=wide) if short < _TAIL and inside else None


@cache
def fitted(smooth: Smooth, frac_bits: int, exact: bool) -> tuple[tuple[int, ...], ...]:
    """Three rows of ring integers: the coefficients of 1, t and t^2 of each piece, at a common scale of 3 frac_bits.

    Piece j has its center at low + (2 j + 1) h with exact rounding, and there is one behind the last. Else its center is at
    low + (j - 1) h: the first and the last two pieces are margins.
    """
    if smooth.pieces() + _MARGIN > smooth.size:
        raise ValueError(f"{smooth.name}: {smooth.pieces()} pieces do not fit a table of {smooth.size}")
    step = 2.0**-smooth.step_bits
    if exact:
        centers = smooth.low + (2 * torch.arange(smooth.size // 2, dtype=torch.float64) + 1) * step
    else:
        centers = smooth.low + (torch.arange(smooth.size, dtype=torch.float64) - 1) * step
    centers = centers.clamp(max=smooth.high + step)  # beyond it no argument falls
    nodes = np.cos((np.arange(8) + 0.5) * np.pi / 8)
    points = centers.unsqueeze(1) + torch.from_numpy(nodes) * step
    values = smooth.function(points).numpy()
    basis = np.vander(nodes * step, 3, increasing=True)
    pieces = np.linalg.lstsq(basis, values.T, rcond=None)[0]
    return tuple(tuple(_ring(float(c), (3 - power) * frac_bits) for c in row) for power, row in enumerate(pieces))


def _ring(coefficient: float, frac_bits: int) -> int:
    """A coefficient at a scale, rounded to 2^-24 first: machines that differ in the last digits get equal tables."""
    rounded, shift = round(coefficient * 2.0**_GRID_BITS), frac_bits - _GRID_BITS
    return rounded << shift if shift >= 0 else (rounded + (1 << (-shift - 1))) >> -shift


def narrowest(rows: Sequence[Sequence[int]], frac_bits: int, step_bits: int) -> tuple[list[list[int]], int]:
    """Rows of a scale of 3 frac_bits at the scale whose values 48 bits hold, with 2 to spare and half a unit of frac_bits
    that rounding adds, and its fractional bits.

    As they are where that leaves too few for t^2 to be right to half a unit.
    """
    made, frac, reach = [list(row) for row in rows], 3 * frac_bits, piece_reach(frac_bits, step_bits)
    while (most_of_pieces(made, reach) + (1 << (frac - frac_bits) >> 1)).bit_length() > _NARROW:
        frac -= 1
        if frac < 3 * frac_bits - 2 * step_bits:
            return [list(row) for row in rows], 3 * frac_bits
        less = 3 * frac_bits - frac
        made = [[(c + (1 << less >> 1)) >> less for c in row] for row in rows]
    return made, frac


def most_of_pieces(rows: Sequence[Sequence[int]], reach: int) -> int:
    """The largest magnitude of a piece's polynomial where |t| is at most `reach`, in units of the ring."""
    return max(sum(abs(c) * reach**power for power, c in enumerate(piece)) for piece in zip(*rows, strict=True))


def piece_reach(frac_bits: int, step_bits: int) -> int:
    """The largest magnitude of the argument of a piece, h, in units of the ring, with room for rounding."""
    return (1 << max(0, frac_bits - step_bits)) + 2
