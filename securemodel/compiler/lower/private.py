"""Gradients for differential privacy: cut to a public norm whatever they were, then added to the parties' noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from securemodel.compiler.builder import Builder, Value
from securemodel.compiler.lower.positive import rsqrt_of_few
from securemodel.compiler.lower.registry import lowers

LEAST_NORM, MOST_NORM = 2.0**-6, 2.0**6
_SQUARES = 29  # bits of the largest sum of squares: with 32 fractional bits it fits the ring
_RATIO = 33  # bits of the largest sum of squares beside the norm's power of two: rsqrt reads up to 2^34
_SHIFT = 12  # bits by which the factor is larger than it is: it may be as small as 2^-17, and has 16 fractional bits
_REST = 35  # bits of a truncated ring element, which is below 2^49 whatever the element was, and the limit
_INEXACT = 2.0**-9
"""The relative error of the factor."""


@dataclass(frozen=True)
class Bounds:
    """Public numbers for a vector of `count` elements: each is cut to `limit`, then the vector to the norm `target`.

    With all errors of fixed point the result has a norm of at most max_norm.
    """

    limit: float
    target: float
    exponent: int

    @classmethod
    def of(cls, count: int, max_norm: float) -> Bounds:
        target = (max_norm - math.sqrt(count) * 2.0**-31) / (1 + _INEXACT)
        exponent = math.floor(math.log2(target))
        limit = math.sqrt(2.0 ** min(_SQUARES, _RATIO + 2 * exponent) / count)
        return cls(math.floor(limit * 256) / 256, target, exponent)


_LIBRARY = torch.library.Library("securemodel_training", "FRAGMENT")
_LIBRARY.define("private_gradient(Tensor gradient, Tensor[] noise, float max_norm) -> Tensor")


def _in_float(gradient: torch.Tensor, noise: Sequence[torch.Tensor], max_norm: float) -> torch.Tensor:
    bounds = Bounds.of(gradient.numel(), max_norm)
    wide = gradient.double().clamp(-bounds.limit, bounds.limit)
    out = wide * (bounds.target / wide.norm().clamp(min=bounds.target))
    for drawn in noise:
        out = out + drawn
    return out.to(gradient.dtype)


_LIBRARY.impl("private_gradient", _in_float, "CompositeExplicitAutograd")
PRIVATE = torch.ops.securemodel_training.private_gradient.default
"""A gradient as one vector, cut to a norm of at most `max_norm`, and the noise of all parties."""


@lowers(PRIVATE)
def private_gradient(g: Builder, gradient: Value, noise: Sequence[Value], max_norm: float) -> Value:
    """min(1, target / |x|) x + noise, where x is the gradient with each element cut to the limit."""
    bounds = Bounds.of(gradient.shape[0], max_norm)
    x = _within(g, g.rescale(gradient, bounded=True), bounds.limit)
    out = g.rescale(_cut(g, x, bounds), double=True)
    for drawn in noise:  # each on the grid of what it is added to, so that none of its digits stay bare
        out = g.add(out, drawn)
    return out


def _within(g: Builder, x: Value, limit: float) -> Value:
    """Each element cut to [-limit, limit], for truncated ring elements: no sum here wraps."""
    low, high = g.offset(x, limit), g.offset(x, -limit)
    below = g.is_negative(low, _REST)
    inside_of_high = g.is_negative(high, _REST)
    edges = g.scale(g.sub(g.bit_to_ring(inside_of_high, invert=True), g.bit_to_ring(below)), limit)
    return g.add(g.select(g.either(below, inside_of_high), x), edges)


def _cut(g: Builder, x: Value, bounds: Bounds) -> Value:
    """x, or as much of it as has the norm `target`; with more fractional bits than others."""
    squares = g.linear("sum", g.square(x), dims=[0], keepdim=True)
    more = g.offset(squares, -(bounds.target**2))
    squares = g.sub(squares, g.select(g.is_negative(more), more))  # at least the square of the target
    part = g.ldexp(squares, -20 - 2 * bounds.exponent)
    factor = bounds.target * 2.0 ** (_SHIFT - 10 - bounds.exponent)
    inverse = g.rescale(rsqrt_of_few(g, part, factor))
    return g.ldexp(g.mul(x, g.expand(inverse, x.shape)), -_SHIFT)
