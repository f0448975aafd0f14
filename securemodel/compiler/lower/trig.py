"""Sine, cosine and arc tangent.

Sine and cosine take whole turns away first: r = x - 2 pi k for k next to x / (2 pi). Any k within one of the quotient
will do, as the splines cover more than a turn on both sides: no comparison is needed.
"""

from __future__ import annotations

import math

import torch

from securemodel.compiler.approximations import Smooth
from securemodel.compiler.builder import Builder, Value
from securemodel.compiler.lower.positive import reciprocal_positive, signed
from securemodel.compiler.lower.registry import lowers
from securemodel.compiler.lower.smooth import spline

aten = torch.ops.aten

TURN = 2 * math.pi
SINE = Smooth("sin", torch.sin, -7.5, 7.5, 4, 2**-16)
COSINE = Smooth("cos", torch.cos, -7.5, 7.5, 4, 2**-16)
ARC_TANGENT = Smooth("atan", torch.atan, 0.0, 1.0, 7, 2**-23)


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
    return spline(g, SINE, _less_turns(g, x))


@lowers(aten.cos.default)
def cos(g: Builder, x):
    """Cosine for |x| <= 2^14."""
    return spline(g, COSINE, _less_turns(g, x))


@lowers(aten.atan.default)
def atan(g: Builder, x):
    """Arc tangent for |x| < 2^14: above 1, pi / 2 less that of 1 / x."""
    size, sign = signed(g, x)
    small = g.is_negative(g.offset(size, -1.0))
    larger = g.offset(g.select(small, g.offset(size, -1.0), invert=True), 1.0)
    inverse = g.rescale(reciprocal_positive(g, larger))
    inside = g.add(inverse, g.select(small, g.sub(size, inverse)))
    angle = spline(g, ARC_TANGENT, inside)
    above = g.offset(g.scale(angle, -1), math.pi / 2)
    return g.mul(g.add(above, g.select(small, g.sub(angle, above))), sign)
