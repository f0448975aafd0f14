"""Sums, products and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from protocols.names import PUBLIC
from securemodel.compiler.builder import SMALLER, Builder, CannotLower, Value
from securemodel.compiler.lower.masks import note_masked_rows
from securemodel.compiler.lower.positive import divide, times
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten


def finite(g: Builder, x: Value, flipped: bool = False) -> Value:
    """A float to add to scores: what stands for minus infinity, as masks have it, becomes g.forbidden.

    Weights and inputs themselves stay, unless the sum goes to a softmax: there, such a number is a mistake that their
    owner is told.
    """
    return x if g.is_placeholder(x) and not g.scores else g.finite(x, flipped)


def add_scaled(g: Builder, x, y, alpha=1, kind: str = "add"):
    """x + alpha y or x - alpha y for tensors and numbers."""
    if not isinstance(y, Value):
        return g.offset(x, y * alpha if kind == "add" else -y * alpha)
    if not isinstance(x, Value):
        return g.offset(g.linear("neg", y) if kind == "sub" else y, x)
    if alpha != 1:
        y = g.scale(y, alpha) if y.secret else g.pointwise(torch.mul, y, alpha)
    made = g.linear(kind, finite(g, x), finite(g, y, kind == "sub"))
    for mask in (x, y) if g.scores else ():
        if not mask.secret:
            flipped = kind == "sub" and mask is y
            note_masked_rows(g, made, g.pointwise(torch.neg, mask) if flipped else mask)
    return made


@lowers(aten.add.Tensor, aten.add.Scalar)
def add(g: Builder, x, y, alpha=1):
    """x + alpha y.

    Of booleans, whether one of them is true.
    """
    if isinstance(x, Value) and isinstance(y, Value) and x.boolean and y.boolean:
        return g.sub(g.add(x, y), g.mul(*((x, y) if x.secret else (y, x))))
    return add_scaled(g, x, y, alpha)


@lowers(aten.sub.Tensor, aten.sub.Scalar)
def sub(g: Builder, x, y, alpha=1):
    """x - alpha y."""
    return add_scaled(g, x, y, alpha, "sub")


@lowers(aten.rsub.Scalar, aten.rsub.Tensor)
def rsub(g: Builder, x, y, alpha=1):
    """y - alpha x."""
    if alpha != 1:
        x = g.scale(x, alpha)
    return g.offset(g.linear("neg", x), y) if not isinstance(y, Value) else g.sub(finite(g, y), finite(g, x, True))


@lowers(aten.neg.default, aten._neg_view.default)
def neg(g: Builder, x):
    """-x."""
    return g.linear("neg", x)


def uniform(g: Builder, x: Value) -> float | None:
    """The number that a public constant of the program has everywhere; None for everything else."""
    if x.owner != PUBLIC or not x.sized or not 0 < math.prod(x.shape) <= _MANY:
        return None
    try:
        known = g.known(x).double().flatten()
    except CannotLower:
        return None
    return known[0].item() if bool((known == known[0]).all()) else None


_MANY = 2**20


def scaled(g: Builder, x: Value, factor) -> Value:
    """Product with a number of the model's, or of an owner.

    A huge factor of whole numbers, as masks are, means infinity where they are not 0. Raises CannotLower for others.
    """
    if not isinstance(factor, Value):
        if x.integer and abs(factor) >= -g.least:
            factor = math.copysign(g.forbidden, factor)
        if not abs(factor) <= g.most:
            raise CannotLower(f"the factor {float(factor)}", SMALLER)
    return g.scale(x, factor)


def _by_number(g: Builder, x: Value, y: Value) -> Value | None:
    """x y for a y that is the same number everywhere."""
    number = None if y.integer else uniform(g, y)
    if number is None or not x.secret or math.isnan(number):
        return None
    return g.expand(scaled(g, x, number), torch.broadcast_shapes(x.shape, y.shape))


@lowers(aten.mul.Tensor, aten.mul.Scalar)
def mul(g: Builder, x, y):
    """Elementwise product."""
    if isinstance(x, Value) and isinstance(y, Value):
        made = _by_number(g, x, y) or _by_number(g, y, x) or times(g, x, y) or times(g, y, x)
        if made:
            return made
    if not isinstance(y, Value):
        return scaled(g, x, y)
    if not isinstance(x, Value):
        return scaled(g, y, x)
    if x.id == y.id:
        return g.square(x)
    x, y = (x, y) if x.secret else (y, x)
    return g.mul(x, g.finite(y) if x.integer else y)


@lowers(aten.div.Tensor, aten.div.Scalar)
def div(g: Builder, x, y):
    """Quotient; a divisor that one party owns is inverted by that party in the clear."""
    if not isinstance(y, Value):
        return scaled(g, x, 1.0 / y)
    if y.secret:
        return divide(g, x, y)
    return g.mul(x, g.pointwise(torch.reciprocal, y))


@lowers(aten.square.default)
def square(g: Builder, x):
    """x squared: half the preprocessing of a product."""
    return g.square(x)


def axes(x: Value, dim) -> list[int]:
    """The axes an argument names, counted from 0; all of them where it names none."""
    if dim is None or dim == []:
        return list(range(x.ndim))
    return sorted(d % x.ndim for d in ([dim] if isinstance(dim, int) else dim))


@lowers(aten.sum.default, aten.sum.dim_IntList)
def sum_(g: Builder, x, dim=None, keepdim=False, dtype=None):
    """Sum over axes; local."""
    return g.linear("sum", x, dims=axes(x, dim), keepdim=keepdim)


@lowers(aten.mean.default, aten.mean.dim)
def mean(g: Builder, x, dim=None, keepdim=False, dtype=None):
    """Mean over axes: a local sum, then a public factor (exact for powers of two)."""
    dims = axes(x, dim)
    total = g.linear("sum", x, dims=dims, keepdim=keepdim)
    return g.scale(total, 1.0 / math.prod(x.shape[d] for d in dims))


@lowers(aten.cumsum.default)
def cumsum(g: Builder, x, dim, dtype=None):
    """Running sum; local."""
    size = x.shape[dim % x.ndim]
    return g.linear("window_sum", x, dim=dim % x.ndim, starts=[0] * size, ends=list(range(1, size + 1)))


def running(g: Builder, combine: Callable[[Value, Value], Value], x: Value, dim: int) -> Value:
    """Each element with all before it, in log n rounds: after step k, it has the last 2^k."""
    dim, done = dim % x.ndim, 1
    while done < x.shape[dim]:
        size = x.shape[dim]
        new = combine(g.slice(x, dim, done, size), g.slice(x, dim, 0, size - done))
        x, done = g.linear("cat", g.slice(x, dim, 0, done), new, dim=dim), 2 * done
    return x
