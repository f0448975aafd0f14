"""Sine, cosine, tangent and their inverses.

Sine and cosine take whole turns away first: r = x - 2 pi k for k next to x / (2 pi). Any k within one of the quotient
will do, as the splines cover more than a turn on both sides: no comparison is needed.
"""

from __future__ import annotations

import math

import torch

from securemodel.compiler.approximations import Smooth
from securemodel.compiler.builder import Builder, Value
from securemodel.compiler.lower.positive import divide, reciprocal_positive, signed, sqrt
from securemodel.compiler.lower.registry import Accuracy, lowers
from securemodel.compiler.lower.smooth import spline, table_of

aten = torch.ops.aten

TURN = 2 * math.pi
SINE = Smooth("sin", torch.sin, -7.5, 7.5, 4, 2**-16)
COSINE = Smooth("cos", torch.cos, -7.5, 7.5, 4, 2**-16)
ARC_TANGENT = Smooth("atan", torch.atan, 0.0, 1.0, 7, 2**-23)
ARC_SINE = Smooth("asin", torch.asin, 0.0, 0.5, 7, 2**-22)


def _less_turns(g: Builder, x: Value) -> Value:
    """x less whole turns, in [-7.5, 7.5] for |x| <= 2^14.

    2 pi is taken in two parts, one on the grid and the rest 2^15 times enlarged, as k is up to 2^12.
    """
    g.domain(x, -(2.0**14), 2.0**14, "sin and cos")
    x, unit = g.rescale(x), 2.0**-g.frac_bits
    turns = g.floor_or_above(g.scale(x, 1 / TURN))
    coarse = round(TURN / unit) * unit
    fine = g.scale(g.scale(turns, (TURN - coarse) * 2**15), 2.0**-15)
    return g.rescale(g.sub(g.sub(x, g.scale(turns, coarse)), fine))


@lowers(aten.sin.default)
def sin(g: Builder, x):
    """Sine for |x| <= 2^14."""
    return spline(g, table_of(g, SINE), _less_turns(g, x))


@lowers(aten.cos.default)
def cos(g: Builder, x):
    """Cosine for |x| <= 2^14."""
    return spline(g, table_of(g, COSINE), _less_turns(g, x))


@lowers(aten.atan.default)
def atan(g: Builder, x):
    """Arc tangent for |x| < 2^14: above 1, pi / 2 less that of 1 / x."""
    size, sign = signed(g, x)
    small = g.is_negative(g.offset(size, -1.0))
    larger = g.offset(g.select(small, g.offset(size, -1.0), invert=True), 1.0)
    inverse = g.rescale(reciprocal_positive(g, larger))
    inside = g.add(inverse, g.select(small, g.sub(size, inverse)))
    angle = spline(g, table_of(g, ARC_TANGENT), inside)
    above = g.offset(g.scale(angle, -1), math.pi / 2)
    return g.mul(g.add(above, g.select(small, g.sub(angle, above))), sign)


@lowers(aten.tan.default, accuracy=Accuracy(2.0**-12, relative=2.0**-8, domain="abs(x) ≤ 2^14, abs(tan(x)) ≤ 32"))
def tan(g: Builder, x):
    """Tangent: sine by cosine."""
    turned = _less_turns(g, x)
    return divide(g, spline(g, table_of(g, SINE), turned), spline(g, table_of(g, COSINE), turned))


def _chosen(g: Builder, bit: Value, this: Value, that: Value) -> Value:
    """this where the bit is set, that elsewhere."""
    return g.add(that, g.select(bit, g.sub(this, that)))


def _less_from(g: Builder, angle: float, x: Value) -> Value:
    return g.offset(g.linear("neg", x), angle)


@lowers(aten.asin.default, accuracy=Accuracy(2.0**-12, domain="abs(x) ≤ 1"))
def asin(g: Builder, x):
    """Arc sine: above 1/2, pi / 2 less twice that of the root of (1 - x) / 2."""
    size, sign = signed(g, x)
    g.domain(size, 0.0, 1.0 + 2.0**-g.frac_bits, "asin and acos")
    small = g.is_negative(g.offset(size, -0.5))
    half = g.rescale(sqrt(g, g.scale(_less_from(g, 1.0, size), 0.5)))
    angle = spline(g, table_of(g, ARC_SINE), _chosen(g, small, size, half))
    return g.mul(_chosen(g, small, angle, _less_from(g, math.pi / 2, g.scale(angle, 2.0))), sign)


@lowers(aten.acos.default, accuracy=Accuracy(2.0**-12, domain="abs(x) ≤ 1"))
def acos(g: Builder, x):
    """Arc cosine: pi / 2 less the arc sine."""
    return _less_from(g, math.pi / 2, g.rescale(asin(g, x)))


_FAR = "2^-16 ≤ max(abs(x), abs(y)) < 2^30, and 0, 0"


@lowers(aten.atan2.default, accuracy=Accuracy(2.0**-11, domain=_FAR))
def atan2(g: Builder, y, x):
    """The angle of the point (x, y), in (-pi, pi]: the arc tangent of the smaller coordinate by the larger one."""
    shape = torch.broadcast_shapes(x.shape, y.shape)
    x, y = (g.linear("expand", v, shape=list(shape)) for v in (x, y))
    left, (width, _), (height, up) = g.is_negative(x), signed(g, x), signed(g, y)
    more = g.sub(height, width)
    steep = g.is_negative(g.linear("neg", more))
    larger = g.add(width, g.select(steep, more))
    angle = spline(
        g, table_of(g, ARC_TANGENT), g.rescale(divide(g, g.sub(g.add(width, height), larger), larger, positive=True))
    )
    angle = _chosen(g, steep, _less_from(g, math.pi / 2, angle), angle)
    return g.mul(_chosen(g, left, _less_from(g, math.pi, angle), angle), up)


@lowers(aten.angle.default)
def angle(g: Builder, x):
    """The angle of a real number: pi below zero, 0 elsewhere."""
    return g.scale(g.bit_to_ring(g.is_negative(x)), math.pi)
