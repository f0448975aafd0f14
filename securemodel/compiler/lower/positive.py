"""Functions of positive numbers over many orders of magnitude: reciprocal, roots, logarithm.

x in [2^-10, 2^30), and no less than a unit, is first divided by 2^16 if it is 2^14 or more: one comparison, and the same
ring element read with 16 fractional bits more. Then it is scaled by a power of 16 into y in [1, 16): five comparisons
with public thresholds say which. The function of y is a spline; that of the scale is a choice by the same six bits.
Outside of the domain the result is meaningless, and nobody can see that it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch

from securemodel.compiler.approximations import SMOOTH
from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.registry import lowers
from securemodel.compiler.lower.smooth import spline

aten = torch.ops.aten

LOWEST, HIGHEST = 2.0**-10, 2.0**30
_MIDDLE, _SHIFT = 14, 16  # from 2^14 on, x is divided by 2^16
_WIDTH = 12  # beside frac_bits
_EXPONENTS = (10, 6, 2, -2, -6, -10)  # of the scales; the thresholds are 16 / scale
_MOST_INTEGER_BITS = 40


@dataclass(frozen=True)
class Scaled:
    """A positive number x as y 2^-e, with y in [1, 16).

    `bits` say which exponent e x has, or x 2^-16 where it is not `small`: x or x 2^-16 >= threshold for each threshold.
    `small` is None where the program's width leaves no room for others.
    """

    y: Value
    bits: tuple[Value, ...]
    small: Value | None

    def of_scale(self, g: Builder, function: Callable[[int], float]) -> Value:
        """A public function of the secret exponent; exact where its values are whole multiples of a power of two."""
        small = _chosen(g, self.bits, [function(e) for e in _EXPONENTS])
        if self.small is None:
            return small
        large = _chosen(g, self.bits, [function(e - _SHIFT) for e in _EXPONENTS])
        return g.add(large, g.select(self.small, g.sub(small, large)))


def _chosen(g: Builder, bits: Sequence[Value], values: Sequence[float]) -> Value:
    """The secret choice among public values: the first, and the next one for each bit that is set."""
    unit = min((math.frexp(v)[1] - 1 for v in values if v), default=0)
    whole = [v * 2.0**-unit for v in values]
    if not all(v.is_integer() and abs(v) < 2.0**_MOST_INTEGER_BITS for v in whole):
        unit, whole = 0, list(values)
    total: Value | None = None
    for bit, (before, after) in zip(bits, pairwise(whole), strict=True):
        change = after - before
        step = g.linear("scale", bit, factor=int(change)) if change.is_integer() else g.scale(bit, change)
        total = step if total is None else g.add(total, step)
    return g.offset(g.ldexp(cast(Value, total), unit), values[0])


def highest(g: Builder) -> float:
    """The end of the domain: where the width promises that no number is above 2^15, nothing is spent on others."""
    most = g.width - 1 - g.frac_bits
    return 2.0**_MIDDLE if most <= _MIDDLE + 1 else min(HIGHEST, 2.0**most)


def scaled(g: Builder, x: Value) -> Scaled:
    """Brings a positive number into [1, 16) by a secret power of two.

    Raises CannotLower where the width has no room for the largest scale and threshold, 1024.
    """
    if g.width < g.frac_bits + _WIDTH:
        reason = f"a function of positive numbers, with width = {g.width}"
        raise CannotLower(reason, f"compile with a width of at least {g.frac_bits + _WIDTH}")
    x, small = g.rescale(x), None
    if highest(g) > 2.0**_MIDDLE:
        small = g.is_negative(g.offset(x, -(2.0**_MIDDLE)), round(math.log2(highest(g))))
        divided = g.rescale(g.ldexp(x, -_SHIFT))
        x = g.add(g.select(small, x), g.select(small, divided, invert=True))
    thresholds = [16.0 / 2.0**e for e in _EXPONENTS[:-1]]
    bits = tuple(g.bit_to_ring(g.is_negative(g.offset(x, -t), _MIDDLE), invert=True) for t in thresholds)
    return Scaled(g.mul(x, _chosen(g, bits, [2.0**e for e in _EXPONENTS])), bits, small)


def _on_1_16(g: Builder, name: str, y: Value) -> Value:
    return spline(g, SMOOTH[name], g.rescale(y))


def by_powers(g: Builder, name: str, x: Value, powers: Sequence[int], pieces: Sequence[tuple[float, float]]) -> Value:
    """factor f(x / 16^i) + shift for 16^i <= x < 16^(i + 1), f of [1, 16), with (factor, shift) for each i of `powers`.

    x is below 2^14. f is looked up for all i at once, from one opening of x, while comparisons find out which one
    holds. So it takes few rounds, and many lookups: for few numbers.
    """
    out: Value | None = None
    smaller = {i: g.is_negative(g.offset(g.ldexp(x, -4 * i), -1.0), 15 - 4 * i) for i in powers[1:]}
    for i, (factor, shift) in zip(powers, pieces, strict=True):
        value = spline(g, SMOOTH[name], g.ldexp(x, -4 * i), factor, shift)
        if i == powers[0]:
            value = g.select(smaller[i + 1], value) if len(powers) > 1 else value
        elif i == powers[-1]:
            value = g.select(smaller[i], value, invert=True)
        else:
            value = g.select(g.either(smaller[i], smaller[i + 1]), value)
        out = value if out is None else g.add(out, value)
    return cast(Value, out)


def powers_of_16(count: int) -> range:
    """The powers of 16 from 1 on that are below `count`."""
    return range(max(1, math.ceil(math.log2(max(count, 2)) / 4)))


def rsqrt_of_few(g: Builder, x: Value, factor: float = 1.0) -> Value:
    """factor x^(-1/2) for x in [2^-20, 2^14), which may have more than frac_bits fractional bits."""
    powers = range(-5, 4)
    g.domain(x, 2.0**-20, 2.0**_MIDDLE, "rsqrt")
    return by_powers(g, "rsqrt_1_16", x, powers, [(factor * 4.0**-i, 0.0) for i in powers])


def reciprocal_positive(g: Builder, x: Value) -> Value:
    """1 / x for x in [2^-10, 2^30)."""
    g.domain(x, LOWEST, highest(g), "reciprocal")
    parts = scaled(g, x)
    return g.mul(_on_1_16(g, "reciprocal_1_16", parts.y), parts.of_scale(g, lambda e: 2.0**e))


def rsqrt_positive(g: Builder, x: Value) -> Value:
    """x^(-1/2) for x in [2^-10, 2^30); `times` takes it apart where it is a factor."""
    g.domain(x, LOWEST, highest(g), "rsqrt")
    parts = scaled(g, x)
    value, scale = _on_1_16(g, "rsqrt_1_16", parts.y), parts.of_scale(g, lambda e: 2.0 ** (e // 2))
    made = g.mul(value, scale)
    g.notes["factors", made.id] = value, scale
    return made


def times(g: Builder, x: Value, y: Value) -> Value | None:
    """x y for a y that was made as a product of a number near 1 and a power of two; None for another y.

    The power goes to x first: a small y alone has few digits. None also where x has another shape.
    """
    value, scale = g.notes.get(("factors", y.id), (None, None))
    if value is None or x.shape != y.shape:
        return None
    return g.mul(g.rescale(g.mul(scale, g.rescale(x) if x.secret else x)), g.rescale(value))


def signed(g: Builder, x: Value) -> tuple[Value, Value]:
    """(|x|, sign of x as -1 or 1)."""
    negative = g.is_negative(x)
    magnitude = g.sub(g.rescale(x), g.scale(g.select(negative, g.rescale(x)), 2.0))
    return magnitude, g.offset(g.scale(g.bit_to_ring(negative), -2.0), 1.0)


@lowers(aten.reciprocal.default)
def reciprocal(g: Builder, x):
    """1 / x for 2^-10 <= |x| < 2^30."""
    magnitude, sign = signed(g, x)
    return g.mul(g.rescale(reciprocal_positive(g, magnitude)), sign)


def divide(g: Builder, x, y: Value) -> Value:
    """x / y for a secret y with 2^-10 <= |y| < 2^30."""
    inverse = reciprocal(g, y)
    return g.mul(x, inverse) if isinstance(x, Value) else g.scale(inverse, x)


@lowers(aten.rsqrt.default)
def rsqrt(g: Builder, x):
    """x^(-1/2) for x in [2^-10, 2^30)."""
    return rsqrt_positive(g, x)


@lowers(aten.sqrt.default)
def sqrt(g: Builder, x):
    """Square root for x in [2^-10, 2^30), and of 0: y y^(-1/2) times the root of the scale."""
    g.domain(x, LOWEST, highest(g), "sqrt", or_zero=True)
    parts = scaled(g, x)
    y = g.rescale(parts.y)
    root = g.rescale(g.mul(y, _on_1_16(g, "rsqrt_1_16", y)))
    return g.mul(root, parts.of_scale(g, lambda e: 2.0 ** (-e // 2)))


@lowers(aten.log.default)
def log(g: Builder, x):
    """Natural logarithm for x in [2^-10, 2^30)."""
    g.domain(x, LOWEST, highest(g), "log")
    parts = scaled(g, x)
    return g.add(_on_1_16(g, "log_1_16", parts.y), parts.of_scale(g, lambda e: -e * math.log(2.0)))


@lowers(aten.log1p.default)
def log1p(g: Builder, x):
    """log(1 + x), on the domain of log."""
    return log(g, g.offset(x, 1.0))


@lowers(aten.log2.default)
def log2(g: Builder, x):
    """Logarithm to base 2, on the domain of log."""
    return g.scale(log(g, x), 1.0 / math.log(2.0))


@lowers(aten.sign.default, aten.sgn.default)
def sign(g: Builder, x):
    """-1, 0 or 1."""
    positive = g.bit_to_ring(g.is_negative(g.linear("neg", x)))
    return g.sub(positive, g.bit_to_ring(g.is_negative(x)))


@lowers(aten.abs.default)
def absolute(g: Builder, x):
    """|x| = 2 max(x, 0) - x."""
    return g.sub(g.scale(g.relu(x), 2.0), g.rescale(x))


@lowers(aten.maximum.default)
def maximum(g: Builder, x, y):
    """The larger of two values."""
    return g.maximum(x, y)


@lowers(aten.minimum.default)
def minimum(g: Builder, x, y):
    """The smaller of two values."""
    difference = g.sub(x, y)
    return g.add(y, g.select(g.is_negative(difference), difference))
