"""Whole numbers of the discrete Gaussian distribution, drawn exactly, many at a time.

That of parameter s has probabilities proportional to exp(-x^2 / 2 s^2) [Canonne, Kamath, Steinke, NeurIPS 2020]. Numbers
are proposed and kept as Karney does for the normal distribution [ACM TOMS 42(1), 2016]: |x| = k t + j, with t a power of two
from s / 32 to s / 16, or 1. The cell k is drawn with probability proportional to exp(-(k t)^2 / 2 s^2), j is uniform from 0 to
t - 1, x is kept with probability exp(-j (2 k t + j) / 2 s^2), and has a random sign, of which -0 is not kept.

Both choices compare a uniform real with a probability. Of the real 64 binary digits are drawn, and of the probability as
many are known: these decide, but for one choice in 2^39. There, more digits are drawn and computed until they decide.
So no probability is rounded, whatever the scale.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache

import numpy as np

from protocols.prg import Stream, Use, new_key

LEAST_SCALE, MOST_SCALE = 2.0**-64, 2.0**58
"""Numbers up to 32 times as large, beyond which one is in 2^738, fit 64 bits."""
_CHUNK = 1 << 14
_DIGITS = 64
_MARGIN = 2.0**-40
"""More than `_exp` and what it is given are off: some 50 operations, correctly rounded, on numbers below 1 lose 2^-45 at
most, and the terms that are left out 2^-56."""
_TERMS = 18
More = Callable[[], int]
"""Draws 64 more digits."""


def draw(scale: float, count: int) -> np.ndarray:
    """So many numbers of parameter `scale`, from LEAST_SCALE to MOST_SCALE: int64, under a fresh key of the operating system."""
    sampler, stream, out, filled, epoch = _sampler(scale), Stream(new_key()), np.empty(count, np.int64), 0, 0
    further = iter(range(1 << 16))
    more = lambda: int(stream.draw((1,), epoch, 1, Use.NOISE, index=next(further)).numpy().view(np.uint64)[0])
    while filled < count:
        rows = min(_CHUNK, (count - filled) * 9 // 8 + 16)
        made = sampler.made(stream.draw((3, rows), epoch, 0, Use.NOISE).numpy().view(np.uint64), more)
        made = made[: count - filled]
        out[filled : filled + len(made)] = made
        filled, epoch = filled + len(made), epoch + 1
    return out


class Sampler:
    """Makes numbers of parameter `scale` of 64-bit words: for the cell, for the place and the sign, and to keep it."""

    def __init__(self, scale: float) -> None:
        self._double = 2 * Fraction(scale) ** 2
        self._shift = max(0, math.frexp(scale)[1] - 5)
        kept = list[int]()
        for edge in _edges(self._double, self._shift, _DIGITS):
            if kept and edge - kept[-1] < 8:  # from here on the digits do not decide
                break
            kept.append(min(edge, 2**_DIGITS - 1))
        near = [end for edge in kept for end in (edge - 1, edge + 2)]
        self._near = np.array(near[:-1], np.uint64)

    def made(self, words: np.ndarray, more: More) -> np.ndarray:
        """The numbers of words (3, n), int64: those that are kept."""
        cell, place, keep = words
        found = np.searchsorted(self._near, cell, side="right")  # odd where a probability is near
        k, j = (found >> 1).astype(np.uint64), place & np.uint64((1 << self._shift) - 1)
        off = keep * 2.0**-_DIGITS - self._chance(k, j)
        kept, unsure = off < -_MARGIN, np.flatnonzero((np.abs(off) <= _MARGIN) | (found & 1 == 1))
        for at in unsure:
            k[at] = exact = self.cell(int(cell[at]), more)
            kept[at] = self.keeps(exact, int(j[at]), int(keep[at]), more)
        made = ((k << np.uint64(self._shift)) | j).view(np.int64)
        minus = place >> np.uint64(63) == 1
        made[minus] *= -1
        return made[kept & ~(minus & (made == 0))]

    def _chance(self, k: np.ndarray, j: np.ndarray) -> np.ndarray:
        """exp(-j (2 k t + j) / 2 s^2) within _MARGIN."""
        place = j.astype(np.float64)
        x = k * 2.0 ** (self._shift + 1)
        x += place
        x *= place
        x *= -1 / float(self._double)
        return _exp(x)

    def cell(self, digits: int, more: More) -> int:
        """The cell of a uniform real that begins with 64 digits."""
        bits = _DIGITS
        while True:
            edges = _edges(self._double, self._shift, bits)
            k = bisect_right(edges, digits)
            if all(abs(digits - edge) > 1 for edge in edges[max(k - 1, 0) : k + 1]):
                return k
            digits, bits = digits << _DIGITS | more(), bits + _DIGITS

    def keeps(self, k: int, j: int, digits: int, more: More) -> bool:
        """Whether a place in a cell is kept, by a uniform real that begins with 64 digits."""
        bits, x = _DIGITS, Fraction(j * ((k << self._shift + 1) + j)) / self._double
        while x:
            context = _context(bits)
            edge = int(context.multiply(_weight(x, context), 1 << bits))
            if abs(digits - edge) > 1:
                return digits < edge
            digits, bits = digits << _DIGITS | more(), bits + _DIGITS
        return True


@lru_cache(maxsize=8)
def _edges(double: Fraction, shift: int, bits: int) -> list[int]:
    """Of each cell of 2^shift numbers, the probability of it and all before it, times 2^bits, rounded down: off by less than
    one. double: 2 s^2."""
    context, weights = _context(bits), list[Decimal]()
    while not weights or weights[-1] > Decimal(10) ** -context.prec:
        weights.append(_weight(Fraction((len(weights) << shift) ** 2) / double, context))
    total = context.create_decimal(0)
    sums = [total := context.add(total, weight) for weight in weights]
    return [int(context.divide(context.multiply(each, 1 << bits), total)) for each in sums]


def _context(bits: int) -> Context:
    """Decimal numbers of 20 digits more than a binary number of so many bits has."""
    return Context(prec=math.ceil(bits * math.log10(2)) + 20)


def _weight(x: Fraction, context: Context) -> Decimal:
    """exp(-x)."""
    return context.exp(context.divide(Decimal(-x.numerator), Decimal(x.denominator)))


def _exp(x: np.ndarray) -> np.ndarray:
    """exp(x) for -0.9 <= x <= 0, by its series."""
    made = np.full_like(x, 1 / math.factorial(_TERMS - 1))
    for term in range(_TERMS - 2, -1, -1):
        made *= x
        made += 1 / math.factorial(term)
    return made


_sampler = lru_cache(maxsize=64)(Sampler)
