"""Smooth functions as quadratic splines: tables that are fitted when a program is compiled.

A function is replaced on [low, high] by pieces and continued by a constant below and a line above. With exact rounding
pieces lie side by side, each 2 h wide, h = 2^-step_bits, and are fitted on [-h, h] around their center, where the error of
the best quadratic is at most h^3 / 24 times the largest third derivative (Chebyshev). With fast rounding an argument is read
around a point up to h away that everybody knows; each piece is fitted on that much around one of 16 times as many centers.
`Smooth.max_error` states the error of exact arithmetic over the whole line, the tails included; fixed point adds two units in
the last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch

from securemodel.compiler.ir import Graph, Node

TABLE_SIZE = 128
"""Entries of a table at a secret index."""
PARTS = 16
"""With fast rounding, how many centers an entry has."""
BEYOND_16 = 2.0**-2
"""How much above 16 arguments of the functions of [1, 16) may be: 2^-6 of it."""
_GRID_BITS = 24
_NARROW = 46
_MARGIN = 3  # half entries that only catch arguments one unit outside, and the one above the last center


@dataclass(frozen=True)
class Smooth:
    """A function and its domain: `below` under `low`, `above` + `slope` x over `high`.

    `above` is None where arguments are not larger than `high`: the last piece then goes on to the table's end.
    `wide`: what holds outside of the domain holds for 8 pieces inside of it, too.
    beyond: with fast rounding, arguments may be so much above `high`.
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
    beyond: float = 0.0
    halved: int = 0

    @property
    def grid_bits(self) -> int:
        """Of `wide`: with fast rounding, an argument that is less than 2^-grid_bits, 8 pieces, inside of the domain may
        count as outside."""
        return self.step_bits + self.halved - 3

    @property
    def size(self) -> int:
        """Entries of its table."""
        return TABLE_SIZE >> self.halved

    def pieces(self) -> int:
        """Centers between low and high that are h apart."""
        return round((self.high - self.low) * 2**self.step_bits)


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
        Smooth("gelu", _gelu, -7.75, 7.25, 4, 2**-16, slope=1.0, wide=True),
        Smooth("gelu_tanh", _gelu_tanh, -7.75, 7.25, 4, 2**-16, slope=1.0, wide=True),
        Smooth("silu", torch.nn.functional.silu, -15.75, 15.0, 3, 2**-15, slope=1.0, wide=True),
        Smooth("mish", torch.nn.functional.mish, -15.75, 15.75, 3, 2**-14, slope=1.0, wide=True),
        Smooth("softplus", torch.nn.functional.softplus, -15.75, 15.25, 3, 2**-16, slope=1.0, wide=True),
        Smooth("gelu_slope", _gelu_slope, -7.875, 7.875, 4, 2**-15, above=1.0, wide=True),
        Smooth("gelu_tanh_slope", _gelu_tanh_slope, -7.875, 7.875, 4, 2**-15, above=1.0, wide=True),
        Smooth("silu_slope", _silu_slope, -15.75, 15.75, 3, 2**-14, above=1.0, wide=True),
        Smooth("mish_slope", _mish_slope, -15.75, 15.75, 3, 2**-13, above=1.0, wide=True),
        Smooth("expm1_below_zero", torch.expm1, -15.75, 0.0, 4, 2**-16, below=-1.0),
        Smooth("exp_below_zero", torch.exp, -15.75, 0.0, 4, 2**-16, above=None, wide=True),
        Smooth("reciprocal_1_16", torch.reciprocal, 1.0, 16.0, 4, 2**-14, above=None, beyond=BEYOND_16),
        Smooth("rsqrt_1_16", torch.rsqrt, 1.0, 16.0, 4, 2**-15, above=None, beyond=BEYOND_16),
        Smooth("log_1_16", torch.log, 1.0, 16.0, 4, 2**-15, above=None, beyond=BEYOND_16),
        Smooth("sqrt_1_16", torch.sqrt, 1.0, 16.0, 4, 2**-17.9, above=None, beyond=BEYOND_16),
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
    while round((high - low) * 2**made.step_bits) + _MARGIN > 2 * made.size:
        low, high = low + step, high - step if made.above is not None else high
    at = smooth.function(torch.tensor([low, high], dtype=torch.float64)).tolist()
    short = 0.0 if low == smooth.low else abs(at[0] - smooth.below)
    if smooth.above is not None and high != smooth.high:
        short = max(short, abs(at[1] - smooth.above - smooth.slope * high))
    inside = smooth.above is not None or high == smooth.high
    wide = made.wide and (low, high) == (smooth.low, smooth.high)
    return replace(made, low=low, high=high, wide=wide) if short < _TAIL and inside else None


@cache
def fitted(smooth: Smooth, exact: bool) -> tuple[tuple[float, ...], ...]:
    """Three rows: the coefficients of 1, t and t^2 around each center, multiples of 2^-24.

    With exact rounding, piece j has its center at low + (2 j + 1) h. Else there are PARTS times as many, from low - h on.
    """
    if smooth.pieces() + _MARGIN > 2 * smooth.size:
        raise ValueError(f"{smooth.name}: {smooth.pieces()} half entries do not fit a table of {smooth.size}")
    step, count = 2.0**-smooth.step_bits, smooth.size if exact else smooth.size * PARTS
    end = smooth.high + (0.0 if exact else smooth.beyond)
    apart = 2 * step * smooth.size / count
    centers = smooth.low + (torch.arange(count, dtype=torch.float64) + 0.5) * apart - (0.0 if exact else step)
    reach = step if exact else step + apart / 2
    center = centers.clamp(max=end + reach).numpy()[:, None]  # beyond it no argument falls
    low = np.clip(center - reach, smooth.low, end)
    high = np.clip(center + reach, smooth.low + step, end + 2 * step)
    nodes = np.cos((np.arange(8) + 0.5) * np.pi / 8)
    points = (low + high) / 2 + (high - low) / 2 * nodes
    values, t = smooth.function(torch.from_numpy(points)).numpy(), points - center
    basis = np.stack([np.ones_like(t), t, t * t], -1)
    turned = basis.transpose(0, 2, 1)
    found = np.linalg.solve(turned @ basis, turned @ values[..., None])[..., 0]
    return tuple(tuple(_rounded(float(c)) for c in row) for row in found.T)


def _rounded(coefficient: float) -> float:
    """Rounded to 2^-24: machines that differ in the last digits get equal tables."""
    return round(coefficient * 2.0**_GRID_BITS) * 2.0**-_GRID_BITS


@dataclass(frozen=True)
class Pieces:
    """A table of ring integers: rows of the coefficients of 1, t and t^2, and how a spline reads them.

    The value has `frac` fractional bits: the sum of row r times t^r times 2^shifts[r], where of t^2 `drop` bits are cut off.
    `cuts`: with fast rounding, the bits that are cut off where coefficients are moved to another center (see
    protocols.gates.lookup).
    """

    rows: tuple[tuple[int, ...], ...]
    frac: int
    shifts: tuple[int, int, int] = (0, 0, 0)
    drop: int = 0
    cuts: tuple[int, int, int] | None = None


@cache
def pieces(smooth: Smooth, frac_bits: int, exact: bool, factor: float = 1.0, shift: float = 0.0) -> Pieces:
    """The table of factor f + shift."""
    first, *others = ([c * factor for c in row] for row in fitted(smooth, exact))
    rows = [[c + shift for c in first], *others]
    return _exact_pieces(smooth, frac_bits, rows) if exact else _fast_pieces(smooth, frac_bits, rows)


@cache
def center_of(smooth: Smooth, frac_bits: int) -> float:
    """With fast rounding, a number that is taken from a function and added again once it is truncated: the middle of its
    values where fewer bytes are opened for what is left, else 0."""
    values = fitted(smooth, False)[0]
    middle = math.floor((max(values) + min(values)) / 2 * 8) / 8
    opened = [
        opened_bytes(pieces(smooth, frac_bits, False, 1.0, -number), smooth, frac_bits) for number in (0.0, middle)
    ]
    return middle if opened[1] < opened[0] else 0.0


def opened_bytes(made: Pieces, smooth: Smooth, frac_bits: int) -> int:
    """What is opened of a spline's value and its coefficients, an element, with fast rounding."""
    bits = most_of_pieces(made, piece_reach(frac_bits, smooth.step_bits, False)).bit_length() + 2
    width = -(-bits // 8) * 8
    return sum(-(-(width - shift) // 8) for shift in (0, *made.shifts))


def from_zero(made: Pieces, smooth: Smooth) -> Pieces:
    """The table with the pieces around 0 first: so it is read at x itself, modulo its size, and not at x - low."""
    size = len(made.rows[0])
    at = -round(smooth.low * 2 ** (smooth.step_bits - 1)) * size // smooth.size % size
    return replace(made, rows=tuple((*row[at:], *row[:at]) for row in made.rows))


def _ring(row: Sequence[float], frac: int) -> tuple[int, ...]:
    return tuple(round(c * 2.0**frac) for c in row)


def _exact_pieces(smooth: Smooth, frac_bits: int, rows: Sequence[Sequence[float]]) -> Pieces:
    """At the scale whose values 48 bits hold, with 2 to spare and half a unit of frac_bits that rounding adds; with
    3 frac_bits where that leaves too few for t^2 to be right to half a unit."""
    reach, most_frac = piece_reach(frac_bits, smooth.step_bits, True), 3 * frac_bits
    for frac in range(most_frac, most_frac - 2 * smooth.step_bits - 1, -1):
        made = Pieces(tuple(_ring(row, frac - r * frac_bits) for r, row in enumerate(rows)), frac)
        if (most_of_pieces(made, reach) + (1 << (frac - frac_bits) >> 1)).bit_length() <= _NARROW:
            return made
    return Pieces(tuple(_ring(row, most_frac - r * frac_bits) for r, row in enumerate(rows)), most_frac)


def _fast_pieces(smooth: Smooth, frac_bits: int, rows: Sequence[Sequence[float]]) -> Pieces:
    """At the scale that takes the fewest bytes in which the coefficients cost no more than a unit: those of 1 an eighth, of
    t half a unit and a sixteenth, of t^2 two eighths, of which one is that of t^2 itself."""
    step, steepest = smooth.step_bits, max(abs(c) for c in rows[2])
    largest = max(abs(c) for c in rows[0])
    room = max(0, math.ceil(math.log2(largest))) + 2
    while True:
        second = max(0, frac_bits + 2 - 2 * step)
        square = frac_bits + 2 + math.ceil(math.log2(steepest))
        square = max(2 * step, min(2 * frac_bits, square, 64 - room - second))
        fracs = [frac_bits + 3, frac_bits - step + frac_bits, second + square]
        sizes = [-(-(room + n) // 8) * 8 for n in fracs]
        frac = max(sizes) - room
        square = min(2 * frac_bits, sizes[2] - room - second)
        linear = min(sizes[1] - room - frac_bits, second + frac_bits)
        table = min(max(linear, frac_bits - step + 5), second + frac_bits)
        zeroth = min(sizes[0] - room, table + frac_bits)
        made = Pieces(
            tuple(_ring(row, n) for row, n in zip(rows, (zeroth, table, second), strict=True)),
            frac,
            (frac - zeroth, frac - linear - frac_bits, frac - second - square),
            2 * frac_bits - square,
            (table + frac_bits - zeroth, second + frac_bits - table, table - linear),
        )
        if most_of_pieces(made, piece_reach(frac_bits, step, False)).bit_length() <= max(sizes) - 2:
            return made
        room += 1


def most_of_pieces(made: Pieces, reach: int) -> int:
    """The largest magnitude of a piece's polynomial where |t| is at most `reach`, in units of the ring."""
    finer = made.cuts[2] if made.cuts else 0
    spare = 2 if made.cuts else 0  # what is cut off of coefficients
    return max(
        (abs(c0) + spare << made.shifts[0])
        + ((abs(c1) >> finer) + spare) * (reach << made.shifts[1])
        + (abs(c2) + spare) * ((reach**2 >> made.drop) + spare << made.shifts[2])
        for c0, c1, c2 in zip(*made.rows, strict=True)
    )


def most_of_spline(graph: Graph, spline: Node) -> int:
    """The largest magnitude of a spline's value in a graph whose truncations are placed, in units of the ring."""
    t, lookup = (graph[a] for a in spline.args[-2:])
    rows, cuts = lookup.attrs["table"], lookup.attrs.get("cuts")
    made = Pieces(rows, 0, tuple(spline.attrs["shifts"]), spline.attrs["drop"], tuple(cuts) if cuts else None)
    return most_of_pieces(made, piece_reach(t.frac or 0, spline.attrs["step_bits"], cuts is None))


def piece_reach(frac_bits: int, step_bits: int, exact: bool) -> int:
    """The largest magnitude of the argument of a piece, in units of the ring, with room for rounding."""
    half = 1 << max(0, frac_bits - step_bits)
    return half + (0 if exact else half // PARTS) + 2
