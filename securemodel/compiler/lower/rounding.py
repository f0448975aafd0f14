"""Rounding to whole numbers and division with remainder, exactly.

A truncation gives the nearest whole number, or the floor or one more at random. What is then left over lies between two
public bounds, so that comparisons of few bits say by how much to correct. Values with more than frac_bits fractional bits are brought to
frac_bits first: results are exact for that value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.arithmetic import div
from securemodel.compiler.lower.positive import divide, signed
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten

_LARGEST_DIVISOR = 2.0**14


def total(g: Builder, parts: Sequence[Value]) -> Value:
    """The sum of several values."""
    out = parts[0]
    for part in parts[1:]:
        out = g.add(out, part)
    return out


def _at_least(g: Builder, x: Value, limits: Sequence[float], below: int) -> Value:
    """How many of the public limits x reaches, for |x - limit| < 2^below."""
    bits = [g.bit_to_ring(g.is_negative(g.offset(x, -limit), below), invert=True) for limit in limits]
    return total(g, bits)


def quotient(g: Builder, x: Value, divisor: float) -> tuple[Value, Value]:
    """(floor(x / divisor), the rest in [0, divisor)) for a public divisor, at least two units and at most 2^14.

    The divisor is rounded to frac_bits. If it is no power of two, |x| must stay below 2^(frac_bits - 1) and |x / divisor|
    below 2^30: the estimate x (1 / divisor) is then off by less than one, and the floor one of four numbers.
    """
    unit = 2.0**-g.frac_bits
    divisor = round(divisor / unit) * unit
    if not 2 * unit <= divisor <= _LARGEST_DIVISOR:
        raise CannotLower(f"division with remainder by {divisor}", f"divide by a number from {2 * unit} to 2^14")
    limits: tuple[float, ...]
    x, (mantissa, exponent) = g.rescale(x), math.frexp(divisor)
    if mantissa == 0.5 and g.exact:
        whole = g.floor(x, 1 - exponent)
        return whole, g.sub(x, g.scale(whole, divisor))
    if mantissa == 0.5:
        near, limits = g.floor_or_above(x, 1 - exponent), (0.0,)
    else:
        g.domain(x, -(2.0 ** (g.frac_bits - 1)), 2.0 ** (g.frac_bits - 1), "division with remainder")
        near, limits = g.floor_or_above(g.scale(x, 1.0 / divisor)), (-divisor, 0.0, divisor)
    rest = g.sub(x, g.scale(near, divisor))
    reached = _at_least(g, rest, limits, max(0, exponent + 2))
    correction = g.offset(reached, -(len(limits) // 2 + 1))
    return g.add(near, correction), g.sub(rest, g.scale(correction, divisor))


@lowers(aten.floor.default)
def floor(g: Builder, x):
    """Largest whole number that is not above x; exact."""
    return x if x.integer else quotient(g, x, 1.0)[0]


@lowers(aten.ceil.default)
def ceil(g: Builder, x):
    """Smallest whole number that is not below x; exact."""
    return g.linear("neg", floor(g, g.linear("neg", x)))


@lowers(aten.round.default)
def round_(g: Builder, x):
    """Nearest whole number, halves to the even one; exact.

    With s = x + 1/2 - 2 q for q = floor((x + 1/2) / 2) or one more, s lies in [-2, 2) and the result is 2 q plus
    -2, -1, 0 or 1 for s in [-2, -1], (-1, 0), [0, 1] and (1, 2).
    """
    if x.integer:
        return x
    shifted = g.offset(g.rescale(x), 0.5)
    twice = g.scale(g.floor_or_above(shifted, -1), 2)
    s, unit = g.sub(shifted, twice), 2.0**-g.frac_bits
    return g.add(twice, g.offset(_at_least(g, s, (-1 + unit, 0.0, 1 + unit), 2), -2))


@lowers(aten.round.decimals)
def round_decimals(g: Builder, x, decimals=0):
    """Nearest multiple of 10^-decimals; the factor is a public number, and a value is scaled before it is rounded."""
    return g.scale(round_(g, g.scale(x, 10.0**decimals)), 10.0**-decimals)


def toward_zero(g: Builder, x: Value, whole: Value, rest: Value, divisor: float) -> tuple[Value, Value]:
    """Quotient and rest as C has them: where x is negative and a rest is left, one more and the divisor less."""
    left = g.bit_to_ring(g.is_negative(g.linear("neg", rest), max(0, math.frexp(divisor)[1])))
    step = g.select(g.is_negative(x), left)
    return g.add(whole, step), g.sub(rest, g.scale(step, divisor))


@lowers(aten.trunc.default)
def trunc(g: Builder, x):
    """The whole number next to x on the side of zero; exact: the floor, and one more for negative x that are not whole."""
    if x.integer:
        return x
    x = g.rescale(x)
    near = g.floor_or_above(x)
    rest = g.sub(x, near)
    below, above = (g.bit_to_ring(g.is_negative(side, 0)) for side in (rest, g.linear("neg", rest)))
    return g.add(g.sub(near, below), g.select(g.is_negative(x), g.add(below, above)))


def quotient_by_secret(g: Builder, x: Value, y: Value) -> tuple[Value, Value, Value, Value]:
    """(floor(s x / |y|), the rest in [0, |y|), s x, the sign s of y) for |x / y| < 2^18 and y not 0.

    The rest of an estimate is divided once more, which leaves one of four numbers: comparisons of the rest with
    multiples of |y| tell which one.
    """
    shape = list(torch.broadcast_shapes(x.shape, y.shape))
    x, y = (g.rescale(g.linear("expand", v, shape=shape)) for v in (x, y))
    size, _ = signed(g, y)
    sign = g.offset(g.scale(g.bit_to_ring(g.is_negative(y)), -2), 1)
    rest = x = g.mul(x, sign)
    whole: Value | None = None
    for _ in range(2):
        near = g.floor_or_above(divide(g, rest, size, positive=True))
        whole = near if whole is None else g.add(whole, near)
        rest = g.sub(rest, g.mul(near, size))
    sides = [g.is_negative(v) for v in (g.add(rest, size), rest, g.sub(rest, size))]
    correction = g.offset(total(g, [g.bit_to_ring(bit, invert=True) for bit in sides]), -2)
    return g.add(cast(Value, whole), correction), g.sub(rest, g.mul(correction, size)), x, sign


def _number(g: Builder, y) -> float | None:
    """A divisor that is one number of the program; None for another."""
    if isinstance(y, Value) and (y.secret or math.prod(y.shape) != 1):
        return None
    try:
        return float(g.known(y))
    except CannotLower:
        return None


def _tensor(g: Builder, x) -> Value:
    """A number as a public value without axes."""
    return x if isinstance(x, Value) else g.constant(torch.tensor(x))


@lowers(aten.remainder.Scalar, aten.remainder.Tensor, aten.remainder.Scalar_Tensor)
def remainder(g: Builder, x, y):
    """x - y floor(x / y), with the sign of y; exact as `quotient` is."""
    number = _number(g, y)
    if number is None or not isinstance(x, Value):
        _, rest, _, sign = quotient_by_secret(g, _tensor(g, x), y)
        return g.mul(rest, sign)
    if number < 0:
        return g.linear("neg", remainder(g, g.linear("neg", x), -number))
    return quotient(g, x, number)[1]


@lowers(aten.fmod.Scalar, aten.fmod.Tensor)
def fmod(g: Builder, x, y):
    """x - y trunc(x / y), with the sign of x; exact as `quotient` is."""
    number = _number(g, y)
    if number is None:
        return g.sub(g.rescale(x) if x.secret else x, g.mul(divide_rounded(g, x, y, "trunc"), g.rescale(y)))
    x, number = g.rescale(x), abs(number)
    return toward_zero(g, x, *quotient(g, x, number), number)[1]


@lowers(aten.div.Tensor_mode, aten.div.Scalar_mode, aten.floor_divide.default, aten.floor_divide.Scalar)
def divide_rounded(g: Builder, x, y, rounding_mode="floor"):
    """floor(x / y) or trunc(x / y); exact as `quotient` is."""
    if rounding_mode is None:
        return div(g, x, y)
    number = _number(g, y)
    if number is None:
        whole, rest, turned, _ = quotient_by_secret(g, _tensor(g, x), y)
        if rounding_mode == "floor":
            return whole
        left = g.bit_to_ring(g.is_negative(g.linear("neg", rest)))
        return g.add(whole, g.select(g.is_negative(turned), left))
    x = g.rescale(x if number > 0 else g.linear("neg", x))
    whole, rest = quotient(g, x, abs(number))
    return whole if rounding_mode == "floor" else toward_zero(g, x, whole, rest, abs(number))[0]
