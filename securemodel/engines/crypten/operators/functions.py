"""Activations, smooth functions, normalization and attention."""

from __future__ import annotations

import math

import torch

from securemodel.compiler.builder import CannotLower
from securemodel.engines.crypten.operators.arithmetic import FORBIDDEN, mean
from securemodel.engines.crypten.operators.layout import on_shares, with_share
from securemodel.engines.crypten.operators.registry import runs

aten = torch.ops.aten


@runs(aten.relu.default)
def relu(x):
    """max(x, 0)."""
    return x.relu()


@runs(aten.leaky_relu.default)
def leaky_relu(x, slope=0.01):
    """slope x + (1 - slope) relu(x)."""
    return x * slope + x.relu() * (1 - slope)


@runs(aten.prelu.default, aten._prelu_kernel.default)
def prelu(x, weight):
    """relu(x) + w (x - relu(x)), with one slope or one per channel."""
    if weight.dim() == 1 and x.dim() > 1:
        weight = with_share(weight, weight.share.reshape(-1, *[1] * (x.dim() - 2)))
    positive = x.relu()
    return positive + (x - positive) * weight


@runs(aten.clamp.default, aten.hardtanh.default)
def clamp(x, low=None, high=None):
    """Clipping to public bounds."""
    if low is None:
        return clamp_max(x, high)
    return clamp_min(x, low) if high is None else x.hardtanh(low, high)


@runs(aten.clamp_min.default)
def clamp_min(x, low):
    """max(x, low)."""
    return (x - low).relu() + low


@runs(aten.clamp_max.default)
def clamp_max(x, high):
    """min(x, high)."""
    return x - (x - high).relu()


@runs(aten.relu6.default)
def relu6(x):
    """Clipping to [0, 6]."""
    return x.hardtanh(0, 6)


@runs(aten.hardsigmoid.default)
def hardsigmoid(x):
    """(x + 3) / 6, clipped to [0, 1]."""
    return (x + 3).hardtanh(0, 6).div(6)


@runs(aten.hardswish.default)
def hardswish(x):
    """x hardsigmoid(x)."""
    return x * hardsigmoid(x)


@runs(aten.elu.default)
def elu(x, alpha=1.0, scale=1.0, input_scale=1.0):
    """x above 0, alpha (e^x - 1) below."""
    positive = x.relu()
    return (positive + (((x - positive) * input_scale).exp() - 1) * alpha) * scale


def _register(target, name: str) -> None:
    @runs(target)
    def function(x):
        return getattr(x, name)()


for _target, _name in {
    aten.exp.default: "exp",
    aten.log.default: "log",
    aten.sqrt.default: "sqrt",
    aten.rsqrt.default: "inv_sqrt",
    aten.reciprocal.default: "reciprocal",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.cos.default: "cos",
    aten.sin.default: "sin",
}.items():
    _register(_target, _name)


@runs(aten.silu.default)
def silu(x):
    """x sigmoid(x)."""
    return x * x.sigmoid()


def _normal_cdf(x):
    """Probability that a normal variable is below x, by a sigmoid of an odd cubic.

    Off by at most 5e-4, besides the error of CrypTen's sigmoid (Hendrycks and Gimpel 2016, section 2). Clipped where
    the probability is 0 or 1, as CrypTen's sigmoid is wrong beyond 512.
    """
    x, slope = x.hardtanh(-8, 8), 2 * math.sqrt(2 / math.pi)
    return (x * (x.square() * (0.044715 * slope) + slope)).sigmoid()


@runs(aten.gelu.default)
def gelu(x, approximate="none"):
    """x times the normal distribution function; both forms of torch are taken as the one by tanh."""
    return x * _normal_cdf(x)


@runs(aten.erf.default)
def erf(x):
    """2 cdf(x sqrt(2)) - 1. CrypTen's own erf is not used: its powers above 4 are wrong."""
    return _normal_cdf(x * math.sqrt(2)) * 2 - 1


@runs(aten.softmax.int, aten._softmax.default)
def softmax(x, dim, dtype=None):
    """e^(x - max) over the sum of them."""
    return x.softmax(dim % x.dim())


@runs(aten.log_softmax.int, aten._log_softmax.default)
def log_softmax(x, dim, dtype=None):
    """x - max - log of the sum of e^(x - max)."""
    return x.log_softmax(dim % x.dim())


def _normalized(x, shape, weight, bias, eps):
    """(normalized, mean, 1 / deviation) over the last axes."""
    axes = list(range(-len(shape), 0))
    middle = mean(x, axes, True)
    centered = x - middle
    scale = (mean(centered.square(), axes, True) + eps).inv_sqrt()
    out = centered * scale
    out = out if weight is None else out * weight
    return out if bias is None else out + bias, middle, scale


@runs(aten.layer_norm.default)
def layer_norm(x, shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    """Normalization by the mean and the variance of the last axes; variances from 0.1 to 100."""
    return _normalized(x, shape, weight, bias, eps)[0]


@runs(aten.native_layer_norm.default)
def native_layer_norm(x, shape, weight, bias, eps):
    """layer_norm, with the mean and the reciprocal deviation."""
    return _normalized(x, shape, weight, bias, eps)


def _plain_attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False) -> None:
    if enable_gqa or dropout_p:
        raise CannotLower("grouped queries and dropout in attention", "repeat the keys; call model.eval()")


@runs(aten.scaled_dot_product_attention.default, check=_plain_attention)
def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    """softmax(q k^T scale + mask) v (Vaswani et al. 2017, section 3.2.1); the mask is one to add."""
    scores = q.matmul(on_shares(aten.transpose.int, k, -2, -1)) * (scale or 1.0 / math.sqrt(q.size(-1)))
    if is_causal:
        scores = scores + torch.full(scores.size()[-2:], FORBIDDEN).triu(1)
    if attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(scores.dim() - 1).matmul(v)
