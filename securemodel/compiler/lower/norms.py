"""Normalization by statistics of secret batches, groups and vectors; vector norms and distances."""

from __future__ import annotations

import math
from typing import cast

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.arithmetic import axes, mean, square, sum_
from securemodel.compiler.lower.extremes import amin
from securemodel.compiler.lower.layers import batch_norm_of_owner, shaped
from securemodel.compiler.lower.logic import nonzero
from securemodel.compiler.lower.normalization import (
    affine,
    amax,
    largest_normalized,
    normalized,
    rsqrt_of_mean,
    sum_of_squares,
    variance,
)
from securemodel.compiler.lower.positive import absolute, rsqrt, rsqrt_of_few, sqrt, times
from securemodel.compiler.lower.powers import power
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten


def _channels(g: Builder, x: Value, weight, bias) -> Value:
    """x scaled and shifted per channel."""
    shape = (x.shape[1],) + (1,) * (x.ndim - 2)
    weight, bias = (v if v is None else shaped(g, v, shape) for v in (weight, bias))
    return affine(g, x, weight, bias)


def by_statistics(g: Builder, x: Value, weight, bias, mean_: Value, var: Value, eps: float) -> Value:
    """Normalization by known statistics; where the variance is secret, variance + eps in [2^-10, 2^13)."""
    if not any(v.secret for v in (weight, bias, mean_, var) if v is not None):
        return batch_norm_of_owner(g, x, weight, bias, mean_, var, eps)
    shape = (x.shape[1],) + (1,) * (x.ndim - 2)
    if var.secret:
        scale = g.rescale(rsqrt_of_few(g, g.offset(var, eps)))
    else:
        scale = g.pointwise(torch.rsqrt, g.pointwise(torch.add, var, eps))
    scale = scale if weight is None else g.mul(scale, weight)
    bias = bias if bias is None else shaped(g, bias, shape)
    return affine(g, g.sub(x, shaped(g, mean_, shape)), shaped(g, scale, shape), bias)


@lowers(aten._native_batch_norm_legit_no_training.default)
def batch_norm(g: Builder, x, weight, bias, mean_, var, momentum, eps):
    """Normalization by known statistics, of one owner or secret; variance + eps in [2^-10, 2^13) where secret."""
    return by_statistics(g, x, weight, bias, mean_, var, eps), mean_, var  # torch's last two are empty, for a gradient


@lowers(aten.group_norm.default)
def group_norm(g: Builder, x, groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    """Normalization of groups of channels; sums of squares below 2^30."""
    grouped = g.reshape(x, (x.shape[0], groups, math.prod(x.shape[1:]) // groups))
    return _channels(g, g.reshape(normalized(g, grouped, [2], eps), x.shape), weight, bias)


@lowers(aten.instance_norm.default)
def instance_norm(g: Builder, x, weight, bias, mean_, var, use_input_stats, momentum, eps, cudnn_enabled):
    """Normalization of each channel of each row; sums of squares below 2^30."""
    if not use_input_stats:
        return by_statistics(g, x, weight, bias, mean_, var, eps)
    return _channels(g, normalized(g, x, list(range(2, x.ndim)), eps), weight, bias)


@lowers(aten.rms_norm.default)
def rms_norm(g: Builder, x, shape, weight=None, eps=None):
    """x / sqrt(mean of x^2 + eps) (Zhang and Sennrich 2019); sums of squares below 2^30."""
    dims = list(range(x.ndim - len(shape), x.ndim))
    x = g.rescale(x)
    total, count = sum_of_squares(g, x, dims), math.prod(x.shape[d] for d in dims)
    inverse, bits = rsqrt_of_mean(g, total, count, torch.finfo(torch.float32).eps if eps is None else eps)
    value = g.ldexp(g.mul(x, g.expand(inverse, x.shape)), -bits, largest_normalized(count))
    return affine(g, value, weight, None)


@lowers(aten.var_mean.correction)
def var_mean(g: Builder, x, dim=None, correction=1, keepdim=False):
    """Variance and mean over axes."""
    dims = axes(x, dim)
    var = variance(g, x, dims, 1 if correction is None else correction)
    shape = var.shape if keepdim else [s for i, s in enumerate(x.shape) if i not in dims]
    return g.reshape(var, shape), mean(g, x, dims, keepdim)


@lowers(aten.linalg_vector_norm.default)
def vector_norm(g: Builder, x, ord=2, dim=None, keepdim=False, dtype=None):
    """The norms of order 0, 1, 2, other positive numbers, infinity and minus infinity over axes.

    For finite orders above 1, the sum of powers must lie below 2^30.
    """
    if ord == 0:
        return sum_(g, nonzero(g, x), dim, keepdim)
    if ord == 2:
        return sqrt(g, sum_(g, square(g, x), dim, keepdim))
    sizes = absolute(g, x)
    if math.isinf(ord):
        return (amax if ord > 0 else amin)(g, sizes, axes(x, dim), keepdim)
    if ord < 0:
        raise CannotLower(f"a norm of order {ord}", "take a positive order, or minus infinity")
    return power(g, sum_(g, power(g, sizes, ord), dim, keepdim), 1.0 / ord)


def _unit(g: Builder, x: Value, dim: int, eps: float) -> Value:
    """Vectors divided by their length, by their owner where there is one."""
    if not x.secret:
        return g.float(torch.nn.functional.normalize, x, 2.0, dim, eps, shape=x.shape)
    x = g.rescale(x)
    return cast(Value, times(g, x, rsqrt(g, sum_(g, g.square(x), [dim], True))))


@lowers(aten.cosine_similarity.default)
def cosine_similarity(g: Builder, x, y, dim=1, eps=1e-8):
    """x y / (|x| |y|), for squared lengths below 2^30; what one party owns, it normalizes in the clear."""
    ndim = max(x.ndim, y.ndim)
    dim = dim % ndim - ndim
    return sum_(g, _product(g, _unit(g, x, dim, eps), _unit(g, y, dim, eps)), [dim])


def _product(g: Builder, x: Value, y: Value) -> Value:
    return g.mul(x, y) if x.secret else g.mul(y, x)


@lowers(aten.cdist.default, aten._cdist_forward.default)
def cdist(g: Builder, x, y, p=2.0, compute_mode=None):
    """Distances between all pairs of rows, on the domain of the norm of order p.

    Squares of Euclidean distances are |x|^2 + |y|^2 - 2 x y: exact in the ring, so never negative.
    """
    if p != 2:
        pairs = g.sub(_with_axis(g, x, x.ndim - 1), _with_axis(g, y, y.ndim - 2))
        return vector_norm(g, pairs, p, [-1])
    x, y = (v if v.secret else g.linear("reshape", v, shape=list(v.shape)) for v in (x, y))
    x, y = g.rescale(x), g.rescale(y)
    turned = g.linear("permute", y, dims=[*range(y.ndim - 2), y.ndim - 1, y.ndim - 2])
    product = g.scale(g.bilinear("matmul", x, turned), -2)
    lengths = [sum_(g, g.square(v), [-1]) for v in (x, y)]
    total = g.add(_with_axis(g, lengths[0], x.ndim - 1), _with_axis(g, lengths[1], y.ndim - 2))
    return sqrt(g, g.add(total, product))


def _with_axis(g: Builder, x: Value, dim: int) -> Value:
    return g.linear("reshape", x, shape=[*x.shape[:dim], 1, *x.shape[dim:]])


@lowers(aten.pdist.default)
def pdist(g: Builder, x, p=2.0):
    """Distances between the rows of one matrix, each pair once."""
    first, second = torch.triu_indices(x.shape[0], x.shape[0], 1).tolist()
    pairs = g.sub(g.linear("index", x, dim=0, index=first), g.linear("index", x, dim=0, index=second))
    return vector_norm(g, pairs, p, [1])
