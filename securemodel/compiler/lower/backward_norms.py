"""Normalization by the statistics of a batch in training, and gradients of normalization.

With x' = (x - mean) r and r = (variance + eps)^(-1/2) over n elements, and t the gradient by x',
    dx = r (t - (sum t + x' sum t x') / n)
(Ioffe and Szegedy 2015). The mean of t is the same at all n elements, and what reads dx adds them up: so an error of
it would count n times. The sums are exact, and n t - sum t - x' sum t x' is rounded once, after the division by n.
"""

from __future__ import annotations

import math

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.layers import shaped
from securemodel.compiler.lower.normalization import Normalized, affine, statistics
from securemodel.compiler.lower.registry import decomposes, lowers

aten = torch.ops.aten


def by_normalized(g: Builder, t: Value, of: Normalized, dims: list[int], factor: Value | None = None):
    """(dx, sum of t, sum of t x') for the gradient t by x'; `factor` is one of dx, for each mean."""
    t = g.rescale(t)
    normal, count = g.rescale(of.value), math.prod(of.value.shape[d] for d in dims)
    sums = g.linear("sum", t, dims=dims, keepdim=True)
    products = g.linear("sum", g.mul(t, normal), dims=dims, keepdim=True)
    exponent = count.bit_length() - 1
    part = g.add(g.mul(normal, g.expand(g.rescale(products), normal.shape)), g.expand(sums, normal.shape))
    u = g.rescale(g.ldexp(g.sub(g.scale(t, count), part), -exponent))
    scale = g.scale(of.inverse, 2.0**exponent / count)
    if factor is not None:
        scale = g.mul(g.rescale(scale), factor)
    return g.ldexp(g.mul(u, g.expand(g.rescale(scale), u.shape)), -of.bits), sums, products


def _of(g: Builder, inverse: Value) -> Normalized:
    known = g.notes.get(("normalized", inverse.id))
    if known is None:
        raise CannotLower("the gradient of a norm that the same program does not compute", "compute both in one step")
    return known


# ---- batch norm
def _channel_shape(x: Value) -> tuple[int, ...]:
    return (x.shape[1],) + (1,) * (x.ndim - 2)


def _batch(g: Builder, x: Value, weight, bias, eps: float) -> tuple[Value, Value, Value, Normalized]:
    """(result, mean, inverse deviation, what the gradient reads)."""
    dims = [d for d in range(x.ndim) if d != 1]
    of = statistics(g, x, dims, eps)
    weight, bias = (v if v is None else shaped(g, v, _channel_shape(x)) for v in (weight, bias))
    inverse = g.reshape(g.ldexp(of.inverse, -of.bits), [x.shape[1]])
    g.notes["normalized", inverse.id] = of
    return affine(g, of.value, weight, bias), g.reshape(of.mean, [x.shape[1]]), inverse, of


@lowers(aten._native_batch_norm_legit.no_stats)
def batch_norm_of_batch(g: Builder, x, weight, bias, training, momentum, eps):
    """Normalization of each channel by the batch's own statistics; sums of squares below 2^30."""
    return _batch(g, x, weight, bias, eps)[:3]


@lowers(aten._native_batch_norm_legit_functional.default)
def batch_norm_in_training(g: Builder, x, weight, bias, running_mean, running_var, training, momentum, eps):
    """Normalization of each channel by the batch's own statistics, with the running ones after it."""
    out, mean, inverse, of = _batch(g, x, weight, bias, eps)
    count = math.prod(x.shape) // x.shape[1]
    var = g.scale(g.reshape(of.squares, [x.shape[1]]), momentum / max(count - 1, 1))
    means = g.add(g.scale(running_mean, 1 - momentum), g.scale(mean, momentum))
    return out, mean, inverse, means, g.add(g.scale(running_var, 1 - momentum), var)


@lowers(aten.native_batch_norm_backward.default)
def batch_norm_backward(g: Builder, dy, x, weight, running_mean, running_var, mean, inverse, training, eps, wanted):
    """Gradients of a batch norm by its input, its weight and its bias."""
    if not training:
        raise CannotLower("a batch norm in evaluation mode within a training step", "call model.train()")
    dims = [d for d in range(x.ndim) if d != 1]
    weight = weight if weight is None else shaped(g, weight, (1, *_channel_shape(x)))
    dx, sums, products = by_normalized(g, dy, _of(g, inverse), dims, weight)
    return tuple(
        v if want else None
        for v, want in zip((dx, g.reshape(products, [x.shape[1]]), g.reshape(sums, [x.shape[1]])), wanted, strict=True)
    )


# ---- layer norm
@lowers(aten.native_layer_norm.default)
def native_layer_norm(g: Builder, x, shape, weight, bias, eps):
    """Layer normalization; sums of squares below 2^30."""
    of = statistics(g, x, list(range(x.ndim - len(shape), x.ndim)), eps)
    inverse = g.ldexp(of.inverse, -of.bits)
    g.notes["normalized", inverse.id] = of
    return affine(g, of.value, weight, bias), of.mean, inverse


@lowers(aten.native_layer_norm_backward.default)
def layer_norm_backward(g: Builder, dy, x, shape, mean, inverse, weight, bias, wanted):
    """Gradients of a layer norm by its input, its weight and its bias."""
    of, dy = _of(g, inverse), g.rescale(dy)
    first = x.ndim - len(shape)
    t = dy if weight is None else g.mul(dy, weight)
    dx = by_normalized(g, t, of, list(range(first, x.ndim)))[0] if wanted[0] else None
    return dx, *_by_affine(g, dy, of.value, list(range(first)), wanted)


def _by_affine(g: Builder, dy: Value, normal: Value, dims: list[int], wanted) -> tuple[Value | None, Value | None]:
    dw = g.linear("sum", g.mul(dy, g.rescale(normal)), dims=dims, keepdim=False) if wanted[1] else None
    return dw, g.linear("sum", dy, dims=dims, keepdim=False) if wanted[2] else None


# ---- group norm
@lowers(aten.native_group_norm.default)
def native_group_norm(g: Builder, x, weight, bias, rows, channels, size, groups, eps):
    """Normalization of groups of channels; sums of squares below 2^30."""
    of = statistics(g, g.reshape(x, [rows, groups, channels // groups * size]), [2], eps)
    weight, bias = (v if v is None else shaped(g, v, (channels,) + (1,) * (x.ndim - 2)) for v in (weight, bias))
    inverse = g.reshape(g.ldexp(of.inverse, -of.bits), [rows, groups])
    g.notes["normalized", inverse.id] = of
    return affine(g, g.reshape(of.value, x.shape), weight, bias), g.reshape(of.mean, [rows, groups]), inverse


@lowers(aten.native_group_norm_backward.default)
def group_norm_backward(g: Builder, dy, x, mean, inverse, weight, rows, channels, size, groups, wanted):
    """Gradients of a group norm by its input, its weight and its bias."""
    of, dy = _of(g, inverse), g.rescale(dy)
    dx = None
    if wanted[0]:
        t = dy if weight is None else g.mul(dy, shaped(g, weight, (channels,) + (1,) * (x.ndim - 2)))
        t = g.reshape(t, of.value.shape)
        dx = g.reshape(by_normalized(g, t, of, [2])[0], x.shape)
    return dx, *_by_affine(g, dy, g.reshape(of.value, x.shape), [d for d in range(x.ndim) if d != 1], wanted)


@decomposes(aten._weight_norm_interface_backward.default)
def weight_norm_backward(grad, v, g, norms, dim):
    """Of w = g u with u = v / |v|:  dg = sum(dw u),  dv = g / |v| (dw - u dg)."""
    axes = [d for d in range(v.ndim) if d != dim % v.ndim]
    inverse = 1 / norms
    unit = v * inverse
    along = (grad * unit).sum(axes, keepdim=True)
    return g * inverse * (grad - unit * along), along


@decomposes(aten._cdist_backward.default)
def cdist_backward(dy, x, y, p, distance):
    """Of a distance of order p by x: sign(x - y) |x - y|^(p - 1) over its power p - 1; zero where it is zero."""
    pairs = x.unsqueeze(-2) - y.unsqueeze(-3)
    if p == 1:
        return (dy.unsqueeze(-1) * pairs.sign()).sum(-2)
    if p == math.inf:
        return (dy.unsqueeze(-1) * pairs.sign() * (pairs.abs() == distance.unsqueeze(-1))).sum(-2)
    share = dy / torch.where(distance > 0, distance, 1.0) ** (p - 1)
    powers = pairs if p == 2 else pairs.sign() * pairs.abs() ** (p - 1)
    return (share.unsqueeze(-1) * powers).sum(-2)
