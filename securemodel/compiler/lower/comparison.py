"""Comparisons: secret bits as 0 and 1."""

from __future__ import annotations

import math

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten


def infinity(g: Builder, y) -> int:
    """1 or -1 for a public number that is infinite everywhere, else 0."""
    if isinstance(y, Value):
        known = None if y.secret or y.integer else g.public(y)
        if known is None or not known.numel() or not bool((known == known.flatten()[0]).all()):
            return 0
        y = known.flatten()[0].item()
    return int(math.copysign(1, y)) if isinstance(y, float) and math.isinf(y) else 0


def difference(g: Builder, x, y, side: int = 0) -> Value:
    """x - y for values and numbers; the sign is right for infinite ones, too.

    `side`: for an infinite y of this sign, an x that stands for it is no smaller in magnitude.
    """
    if side and infinity(g, y) == side and isinstance(x, Value) and x.secret and g.may_be_infinite(x):
        return g.expand(g.offset(x, side * g.forbidden / 2), _shape(x, y))
    if isinstance(x, Value) and isinstance(y, Value):
        return g.sub(*(v if g.public(v) is None else g.bound(v) for v in (x, y)))
    if isinstance(y, Value):
        return g.linear("neg", difference(g, y, x))
    if isinstance(y, float) and math.isnan(y):
        raise CannotLower("comparison with NaN", "compare with a number")
    return g.offset(x, -y if abs(y) <= g.most else -math.copysign(g.edge, y))


def _shape(x: Value, y) -> tuple[int, ...]:
    return tuple(torch.broadcast_shapes(x.shape, y.shape if isinstance(y, Value) else ()))


def _less(g: Builder, x, y, invert: bool) -> Value:
    return g.bit_to_ring(g.is_negative(difference(g, x, y, 1)), invert=invert)


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
    return g.bit_to_ring(g.is_negative(g.linear("neg", difference(g, x, y, -1))))


@lowers(aten.le.Scalar, aten.le.Tensor)
def le(g: Builder, x, y):
    """x <= y."""
    return g.bit_to_ring(g.is_negative(g.linear("neg", difference(g, x, y, -1))), invert=True)
