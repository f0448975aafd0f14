"""Softmax and normalization by statistics of secret values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from securemodel.compiler.builder import Builder, Value
from securemodel.compiler.lower.arithmetic import axes, mean
from securemodel.compiler.lower.positive import by_powers, has_products, powers_of_16, root_of_few
from securemodel.compiler.lower.registry import lowers
from securemodel.compiler.lower.smooth import smooth
from securemodel.compiler.lower.tournament import largest

aten = torch.ops.aten


def _shifted(g: Builder, x: Value, dim: int) -> Value:
    x = x if g.exact else g.rescale(x)  # exact comparisons see all digits
    return g.sub(x, g.expand(largest(g, x, dim), x.shape))


def _unscaled(g: Builder, x: Value) -> tuple[Value, float]:
    """(v, factor) with x = factor v: the largest of x is where that of v is, so that v alone need be truncated."""
    v, factor, added = g.notes.get(("affine", x.id), (x, 1.0, 0.0))
    return (v, factor) if not (g.exact or added) else (x, 1.0)


@lowers(aten._softmax.default, aten.softmax.int)
def softmax(g: Builder, x, dim, half_to_float=False):
    """exp(x - max) / sum of them; where a mask forbids a whole row, what PyTorch gives there, and 0 for its NaN."""
    dim %= x.ndim
    if dim == x.ndim - 1 and (rows := g.notes.get(("masked rows", x.id))):
        sink, fill = rows
        wide = softmax(g, g.linear("cat", x, sink, dim=dim), dim)
        out = g.add(g.slice(wide, dim, 0, x.shape[dim]), fill)
        g.notes["softmax of", out.id] = x, dim
        return out
    powers, inverse, bits = exponentials(g, x, dim)
    out = g.rescale(g.ldexp(g.mul(powers, g.expand(inverse, powers.shape)), -bits))
    g.notes["softmax of", out.id] = x, dim
    return out


def exponentials(g: Builder, x: Value, dim: int) -> tuple[Value, Value, int]:
    """(p, w, bits) with softmax(x) = p w 2^-bits: p = exp(x - max), and w 2^-bits is 1 / its sum, of size one along the axis."""
    count = x.shape[dim]
    v, factor = _unscaled(g, x)
    powers = smooth(g, "exp_below_zero", _shifted(g, v, dim), factor)
    total = g.linear("sum", powers, dims=[dim], keepdim=True)
    bits = min(math.ceil(math.log2(count)), 13)  # 2^bits / total has more significant bits than 1 / total
    sizes = powers_of_16(count)
    return powers, by_powers(g, "reciprocal_1_16", total, sizes, [(2.0 ** (bits - 4 * i), 0.0) for i in sizes]), bits


@lowers(aten._safe_softmax.default)
def safe_softmax(g: Builder, x, dim, dtype=None):
    """Softmax, and 0 where all scores are minus infinity."""
    dim %= x.ndim
    x = x if g.exact else g.rescale(x)
    forbidden = g.is_negative(g.offset(largest(g, x, dim), -g.forbidden / 2))
    out = softmax(g, x, dim)
    return g.mul(out, g.expand(g.bit_to_ring(forbidden, invert=True), out.shape))


@lowers(aten.nan_to_num.default)
def nan_to_num(g: Builder, x, nan=None, posinf=None, neginf=None):
    """The value itself, as there is no NaN, with numbers for what stands for infinity; of a softmax, 0 for rows without any.

    Such rows are those whose scores are all minus infinity.
    """
    scores = g.notes.get(("softmax of", x.id))
    if scores and not nan:
        return safe_softmax(g, *scores)
    for number, side in ((posinf, 1), (neginf, -1)):
        if number is not None and g.may_be_infinite(x):
            there = g.is_negative(g.scale(g.offset(x, side * g.forbidden / 2), -side))
            x = g.add(x, g.select(there, g.offset(g.linear("neg", x), number)))
    return x


def _log_of_sum(g: Builder, total: Value, count: int) -> Value:
    powers = powers_of_16(count)
    return by_powers(g, "log_1_16", total, powers, [(1.0, 4 * i * math.log(2.0)) for i in powers])


@lowers(aten._log_softmax.default, aten.log_softmax.int)
def log_softmax(g: Builder, x, dim, half_to_float=False):
    """x - max - log(sum of exp(x - max))."""
    dim %= x.ndim
    below = _shifted(g, x, dim)
    total = g.linear("sum", smooth(g, "exp_below_zero", below), dims=[dim], keepdim=True)
    out = g.sub(below, g.expand(_log_of_sum(g, total, x.shape[dim]), below.shape))
    g.notes["log_softmax of", out.id] = x
    return out


@lowers(aten.logsumexp.default)
def logsumexp(g: Builder, x, dim, keepdim=False):
    """max + log(sum of exp(x - max)) along axes."""
    dims = axes(x, dim)
    if len(dims) > 1:
        rest = [d for d in range(x.ndim) if d not in dims]
        together = g.linear("permute", x, dims=rest + dims)
        flat = [*(x.shape[d] for d in rest), math.prod(x.shape[d] for d in dims)]
        out = logsumexp(g, g.reshape(together, flat), -1)
        return g.reshape(out, [1 if d in dims else s for d, s in enumerate(x.shape) if keepdim or d not in dims])
    dim, x = dims[0], g.rescale(x)
    top = largest(g, x, dim)
    powers = smooth(g, "exp_below_zero", g.sub(x, g.expand(top, x.shape)))
    out = g.add(top, _log_of_sum(g, g.linear("sum", powers, dims=[dim], keepdim=True), x.shape[dim]))
    return out if keepdim else g.reshape(out, [s for i, s in enumerate(x.shape) if i != dim])


def deviations(g: Builder, x: Value, dims: list[int]) -> tuple[Value, Value, int]:
    """(x minus its mean, the sum of the squares of that, how many they are) over axes, which stay with size one."""
    centered = _centered(g, x, dims)
    total = g.linear("sum", g.square(g.rescale(centered)), dims=dims, keepdim=True)
    return centered, total, math.prod(x.shape[d] for d in dims)


def _centered(g: Builder, x: Value, dims: list[int]) -> Value:
    x = g.rescale(x)
    return g.sub(x, g.expand(g.rescale(mean(g, x, dims, True)), x.shape))


def variance(g: Builder, x: Value, dims: list[int], correction: float = 0) -> Value:
    """The variance over axes, which stay with size one."""
    _, total, count = deviations(g, x, dims)
    return g.scale(total, 1.0 / (count - correction))


@dataclass(frozen=True)
class Normalized:
    """Normalized values with their statistics over axes, which stay with size one.

    `inverse` is the inverse deviation times 2^bits: it has so many more fractional bits. `squares`: the sum of squares
    of differences to the mean.
    """

    value: Value
    mean: Value
    inverse: Value
    bits: int
    squares: Value


def statistics(g: Builder, x: Value, dims: list[int], eps: float) -> Normalized:
    """(x - mean) / sqrt(variance + eps) over axes, with what it is made of."""
    centered, total, count = deviations(g, x, dims)
    inverse, bits = rsqrt_of_mean(g, total, count, eps)
    value = g.ldexp(g.mul(centered, g.expand(inverse, centered.shape)), -bits)
    return Normalized(value, mean(g, g.rescale(x), dims, True), inverse, bits, total)


def normalized(g: Builder, x: Value, dims: list[int], eps: float) -> Value:
    """(x - mean) / sqrt(variance + eps) over the last axes.

    Where products gave x more fractional bits than the program's, n x - sum x is made without error, and the power of two
    next to n stands for n until the end: the mean takes no round, and x is rounded once. That takes n (x - mean) < 2^30.
    What somebody owns is normalized by its owner.
    """
    if not x.secret:
        return g.float(torch.nn.functional.layer_norm, x, [x.shape[d] for d in dims], eps=eps, shape=x.shape)
    count = math.prod(x.shape[d] for d in dims)
    if not has_products(g, x) or count >= _FEW:
        centered, ratio = _centered(g, x, dims), 1.0
    else:
        x, bits = g.rescale(x, double=True), (count - 1).bit_length()
        total = g.linear("sum", x, dims=dims, keepdim=True)
        centered, ratio = g.sub(g.scale(x, count), g.expand(total, x.shape)), count / 2**bits
        centered = g.rescale(g.ldexp(centered, -bits))
    inverse, more = rsqrt_of_mean(g, sum_of_squares(g, centered, dims), count, eps * ratio**2)
    return g.ldexp(g.mul(centered, g.expand(inverse, centered.shape)), -more, largest_normalized(count))


_FEW = 1 << 15


def sum_of_squares(g: Builder, x: Value, dims: list[int]) -> Value:
    """Over the last axes, which stay with size one: as products of rows with themselves, for which one number is dealt."""
    rows, count = [s for d, s in enumerate(x.shape) if d not in dims], math.prod(x.shape[d] for d in dims)
    total = g.bilinear("matmul", g.reshape(x, (*rows, 1, count)), g.reshape(x, (*rows, count, 1)))
    return g.reshape(total, [1 if d in dims else s for d, s in enumerate(x.shape)])


def rsqrt_of_mean(g: Builder, total: Value, count: int, eps: float) -> tuple[Value, int]:
    """(w, bits) with (total / count + eps)^(-1/2) = w 2^-bits, for a sum of squares."""
    return root_of_few(g, g.offset(total, count * eps), -1, math.sqrt(count), count * eps)


def largest_normalized(count: int) -> float:
    """What no number is above in magnitude that is divided by the root of the mean of its square and of others, `count`
    together, with something added.

    c^2 is at most the sum of squares, so that c (sum / n)^(-1/2) is at most n^(1/2); the root is right to 2^-9 of itself.
    """
    return math.sqrt(count) * (1 + 2.0**-8)


def affine(g: Builder, x: Value, weight, bias) -> Value:
    """x weight + bias, where they are given."""
    if weight is not None:
        x = g.mul(g.rescale(x) if x.secret else x, weight)
    return x if bias is None else g.add(x, bias)


@lowers(aten.layer_norm.default)
def layer_norm(g: Builder, x, shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    """Layer normalization; sums of squares below 2^30."""
    dims = list(range(x.ndim - len(shape), x.ndim))
    return affine(g, normalized(g, x, dims, eps), weight, bias)


@lowers(aten.var.correction)
def var(g: Builder, x, dim=None, correction=1, keepdim=False):
    """Variance over axes."""
    dims = list(range(x.ndim)) if not dim else [d % x.ndim for d in dim]
    out = variance(g, x, dims, 1 if correction is None else correction)
    return out if keepdim else g.reshape(out, [s for i, s in enumerate(x.shape) if i not in dims])


@lowers(aten.var.dim)
def var_unbiased(g: Builder, x, dim=None, unbiased=True, keepdim=False):
    """Variance over axes, in the older form."""
    return var(g, x, dim, 1 if unbiased else 0, keepdim)


@lowers(aten.amax.default)
def amax(g: Builder, x, dim=(), keepdim=False):
    """Largest value along axes."""
    dims = list(range(x.ndim)) if not dim else [d % x.ndim for d in dim]
    out = x
    for d in dims:
        out = largest(g, out, d)
    return out if keepdim else g.reshape(out, [s for i, s in enumerate(x.shape) if i not in dims])
