"""Comparisons: secret bits as 0 and 1."""

from __future__ import annotations

import math

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten


def difference(g: Builder, x, y) -> Value:
    """x - y for values and numbers; the sign is right for infinite ones, too."""
    if isinstance(x, Value) and isinstance(y, Value):
        return g.sub(*(v if g.public(v) is None else g.bound(v) for v in (x, y)))
    if isinstance(y, Value):
        return g.linear("neg", difference(g, y, x))
    if isinstance(y, float) and math.isnan(y):
        raise CannotLower("comparison with NaN", "compare with a number")
    return g.offset(x, -y if abs(y) <= g.most else -math.copysign(g.edge, y))


def _less(g: Builder, x, y, invert: bool) -> Value:
    return g.bit_to_ring(g.is_negative(difference(g, x, y)), invert=invert)


@lowers(aten.lt.Scalar, aten.lt.Tensor)
def lt(g: Builder, x, y):
    """x < y."""
    return _less(g, x, y, invert=False)


@lowers(aten.ge.Scalar, aten.ge.Tensor)
def ge(g: Builder, x, y):
    """x >= y."""
    return _less(g, x, y, invert=True)


@lowers(aten.gt.Scalar, aten.gt.Tensor)
def gt(g: Builder, x, y):
    """x > y, that is y - x < 0."""
    return g.bit_to_ring(g.is_negative(g.linear("neg", difference(g, x, y))))


@lowers(aten.le.Scalar, aten.le.Tensor)
def le(g: Builder, x, y):
    """x <= y."""
    return g.bit_to_ring(g.is_negative(g.linear("neg", difference(g, x, y))), invert=True)
