"""Sums, products, comparisons and extremes."""

from __future__ import annotations

import math

import torch

from securemodel.compiler.builder import CannotLower
from securemodel.engines.crypten.operators.layout import on_shares
from securemodel.engines.crypten.operators.registry import runs

aten = torch.ops.aten

FORBIDDEN = -128.0
"""Stands for minus infinity: e^-128 is 0 at any scale, and CrypTen's exp is wrong below -512."""
ENDLESS = 2.0**24
"""From this size on, a number filled in under a mask (torch.finfo's least, say) stands for infinity."""


@runs(aten.add.Tensor, aten.add.Scalar)
def add(x, y, alpha=1):
    """x + alpha y."""
    return x + (y if alpha == 1 else y * alpha)


@runs(aten.sub.Tensor, aten.sub.Scalar)
def sub(x, y, alpha=1):
    """x - alpha y."""
    return x - (y if alpha == 1 else y * alpha)


@runs(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(x, y, alpha=1):
    """y - alpha x."""
    return -x + y if alpha == 1 else -(x * alpha) + y


@runs(aten.mul.Tensor, aten.mul.Scalar)
def mul(x, y):
    """Elementwise product."""
    return x.square() if x is y else x * y


@runs(aten.square.default)
def square(x):
    """x squared."""
    return x.square()


@runs(aten.div.Tensor, aten.div.Scalar)
def div(x, y):
    """Quotient; CrypTen multiplies by the reciprocal unless the divisor is a whole number."""
    return x.div(y)


def _small_power(x, exponent) -> None:
    if exponent != int(exponent) or not 1 <= exponent <= 64:
        raise CannotLower(f"the power {exponent} is not a whole number from 1 to 64", "use a polynomial")


@runs(aten.pow.Tensor_Scalar, check=_small_power)
def power(x, exponent):
    """x to a whole power, by squaring. CrypTen's own pow(x, 5) is x^6: it is not used."""
    exponent, result, base = int(exponent), None, x
    while exponent:
        if exponent & 1:
            result = base if result is None else result * base
        exponent >>= 1
        base = base.square() if exponent else base
    return result


def _count(x, dims) -> int:
    dims = range(x.dim()) if dims in (None, []) else [dims] if isinstance(dims, int) else dims
    return math.prod(x.size(d) for d in dims)


@runs(aten.mean.default, aten.mean.dim)
def mean(x, dims=None, keepdim=False, dtype=None):
    """Mean over axes."""
    return on_shares(aten.sum.dim_IntList, x, dims, keepdim).div(_count(x, dims))


@runs(aten.var.correction, aten.var.dim)
def variance(x, dims=None, unbiased=True, keepdim=False, *, correction=None):
    """Mean square distance from the mean, over one less than the count unless told otherwise."""
    squares = (x - mean(x, dims, True)).square()
    lost = int(unbiased) if correction is None else correction
    return on_shares(aten.sum.dim_IntList, squares, dims, keepdim).div(_count(x, dims) - lost)


def _register_comparison(name: str) -> None:
    @runs(getattr(aten, name).Tensor, getattr(aten, name).Scalar)
    def compare(x, y):
        return getattr(x, name)(y)


for _name in ("gt", "ge", "lt", "le", "eq", "ne"):
    _register_comparison(_name)


@runs(aten.abs.default)
def absolute(x):
    """|x|."""
    return x.abs()


@runs(aten.sign.default)
def sign(x):
    """-1, 0 or 1. CrypTen's own sign(0) is 1: it is not used."""
    return x.gt(0) - x.lt(0)


@runs(aten.where.self)
def where(condition, x, y):
    """x where a condition holds, else y."""
    return y + (x - y) * condition


@runs(aten.masked_fill.Scalar)
def masked_fill(x, mask, value):
    """x, with a public number where a mask is set; infinity becomes 128."""
    value = math.copysign(FORBIDDEN, value) if abs(value) >= ENDLESS else value
    return x + (-x + value) * mask


@runs(aten.maximum.default)
def maximum(x, y):
    """The larger of two."""
    return y + (x - y).relu()


@runs(aten.minimum.default)
def minimum(x, y):
    """The smaller of two."""
    return x - (x - y).relu()


@runs(aten.amax.default)
def amax(x, dims=(), keepdim=False):
    """Largest value along axes."""
    dims = [d % x.dim() for d in (dims or range(x.dim()))]
    for dim in dims:
        x = x.max(dim, keepdim=True)[0] if x.size(dim) > 1 else x
    return x if keepdim else on_shares(aten.squeeze.dims, x, dims)


@runs(aten.amin.default)
def amin(x, dims=(), keepdim=False):
    """Smallest value along axes."""
    return -amax(-x, dims, keepdim)


@runs(aten.max.dim)
def max_along(x, dim, keepdim=False):
    """Largest value along an axis, and its index."""
    return amax(x, [dim], keepdim), argmax(x, dim, keepdim)


def _along_an_axis(x, dim=None, keepdim=False) -> None:
    if dim is None and keepdim:
        raise CannotLower("the index in the whole tensor with all axes kept", "give dim, or leave out keepdim")


@runs(aten.argmax.default, check=_along_an_axis)
def argmax(x, dim=None, keepdim=False):
    """Index of the largest value; of equals, CrypTen takes one at random."""
    return x.argmax(dim, keepdim=keepdim, one_hot=False)


@runs(aten.argmin.default, check=_along_an_axis)
def argmin(x, dim=None, keepdim=False):
    """Index of the smallest value; of equals, CrypTen takes one at random."""
    return argmax(-x, dim, keepdim)
