"""Linear layers, matrix products, convolutions, normalization by known statistics."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from securemodel.compiler.builder import Builder, Value
from securemodel.compiler.lower.arithmetic import finite
from securemodel.compiler.lower.layout import t
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten


def transposed(g: Builder, w: Value) -> Value:
    """A matrix transposed, by its owner where there is one."""
    return t(g, w) if w.secret else g.float(torch.t, w, shape=w.shape[::-1])


def shaped(g: Builder, x: Value, shape: tuple[int, ...]) -> Value:
    """The same elements in another shape, by their owner where there is one."""
    return g.reshape(x, shape) if x.secret else g.float(torch.reshape, x, shape, shape=shape, integer=x.integer)


def _with_bias(g: Builder, out: Value, bias: Value | None, dims_after: int) -> Value:
    if bias is None:
        return out
    return g.add(out, shaped(g, bias, bias.shape + (1,) * dims_after) if dims_after else bias)


@lowers(aten.linear.default)
def linear(g: Builder, x, weight, bias=None):
    """x W^T + b."""
    return _with_bias(g, matmul(g, x, transposed(g, weight)), bias, 0)


@lowers(aten.addmm.default)
def addmm(g: Builder, bias, x, w, beta=1, alpha=1):
    """beta bias + alpha x w."""
    return scaled_sum(g, matmul(g, x, w), bias, beta, alpha)


def scaled_sum(g: Builder, product: Value, bias: Value, beta: float, alpha: float) -> Value:
    """beta bias + alpha product."""
    if beta != 1:
        bias = g.scale(bias, beta) if bias.secret else g.pointwise(torch.mul, bias, beta)
    return g.add(g.scale(product, alpha), bias)


@lowers(aten.addmv.default)
def addmv(g: Builder, bias, x, vector, beta=1, alpha=1):
    """beta bias + alpha x vector."""
    return scaled_sum(g, matmul(g, x, vector), bias, beta, alpha)


@lowers(aten.addbmm.default)
def addbmm(g: Builder, bias, x, y, beta=1, alpha=1):
    """beta bias + alpha times the sum of a batch of matrix products."""
    return scaled_sum(g, g.linear("sum", matmul(g, x, y), dims=[0], keepdim=False), bias, beta, alpha)


@lowers(aten.baddbmm.default)
def baddbmm(g: Builder, bias, x, y, beta=1, alpha=1):
    """beta bias + alpha x y for batches of matrices."""
    product = g.scale(g.bilinear("matmul", x, y), alpha)
    return g.add(product, g.scale(finite(g, bias), beta)) if beta else product


@lowers(aten.mm.default, aten.bmm.default, aten.matmul.default)
def matmul(g: Builder, x, y):
    """Matrix product; a vector is a row on the left and a column on the right."""
    rows = shaped(g, x, (1, *x.shape)) if x.ndim == 1 else x
    columns = shaped(g, y, (*y.shape, 1)) if y.ndim == 1 else y
    out = g.bilinear("matmul", rows, columns)
    shape = out.shape[:-2] + (() if x.ndim == 1 else out.shape[-2:-1]) + (() if y.ndim == 1 else out.shape[-1:])
    return g.reshape(out, shape)


@lowers(aten.bilinear.default)
def bilinear(g: Builder, x, y, weight, bias=None):
    """x W y for each matrix W of the weight."""
    outputs, rows, columns = weight.shape
    turned, flat = (rows, outputs, columns), (rows, outputs * columns)
    if weight.secret:
        weight = g.reshape(g.linear("permute", weight, dims=[1, 0, 2]), flat)
    else:
        weight = shaped(g, g.float(torch.permute, weight, (1, 0, 2), shape=turned), flat)
    halves = g.reshape(matmul(g, x, weight), (*x.shape[:-1], outputs, columns))
    product = g.mul(g.rescale(halves), g.reshape(y, (*y.shape[:-1], 1, columns)))
    return _with_bias(g, g.linear("sum", product, dims=[product.ndim - 1], keepdim=False), bias, 0)


def convolved(
    g: Builder, kind: str, x: Value, w: Value, bias: Value | None, dims: int, groups: int, axes: Mapping[str, object]
) -> Value:
    """A convolution of this kind of protocols.bilinear; `axes` has what is given once for all axes, or for each."""
    unbatched = x.ndim == dims + 1
    if unbatched:
        x = g.reshape(x, (1, *x.shape))
    lists = {name: each_axis(value, dims) for name, value in axes.items()}
    attrs = {name: value[0] for name, value in lists.items()} if dims == 1 else lists
    out = _with_bias(g, g.bilinear(kind, x, w, groups=groups, **attrs), bias, dims)
    return g.reshape(out, out.shape[1:]) if unbatched else out


def each_axis(value, dims: int) -> list[int]:
    """An argument given once for all axes, or for each."""
    value = [value] if isinstance(value, int) else list(value)
    return value * dims if len(value) == 1 else value


def _register_conv(dims: int) -> None:
    default, padded = getattr(aten, f"conv{dims}d").default, getattr(aten, f"conv{dims}d").padding
    turned = getattr(aten, f"conv_transpose{dims}d")
    turned = turned.default if dims == 1 else turned.input

    @lowers(default)
    def conv(g, x, w, bias=None, stride=1, padding=0, dilation=1, groups=1):
        """Convolution."""
        axes = {"stride": stride, "padding": padding, "dilation": dilation}
        return convolved(g, f"conv{dims}d", x, w, bias, dims, groups, axes)

    @lowers(padded)
    def conv_named_padding(g, x, w, bias=None, stride=1, padding="valid", dilation=1, groups=1):
        """Convolution with padding "same" or "valid"."""
        dilation = each_axis(dilation, dims)
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(dilation, w.shape[2:], strict=True)]
            pads = [side for n in reversed(total) for side in (n // 2, n - n // 2)]
            x = g.linear("pad", x, pads=pads)
        return conv(g, x, w, bias, stride, 0, dilation, groups)

    @lowers(turned)
    def conv_transpose(g, x, w, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        """Transposed convolution."""
        axes = {"stride": stride, "padding": padding, "dilation": dilation, "output_padding": output_padding}
        return convolved(g, f"conv_transpose{dims}d", x, w, bias, dims, groups, axes)


for _dims in (1, 2):
    _register_conv(_dims)


def batch_norm_of_owner(g: Builder, x, weight, bias, mean, var, eps: float) -> Value:
    """Normalization by statistics of one owner, who computes scale and shift in the clear."""
    shape = (x.shape[1],) + (1,) * (x.ndim - 2)
    scale = g.pointwise(torch.rsqrt, g.pointwise(torch.add, var, eps))
    if weight is not None:
        scale = g.pointwise(torch.mul, scale, weight)
    shift = g.pointwise(torch.neg, g.pointwise(torch.mul, mean, scale))
    if bias is not None:
        shift = g.pointwise(torch.add, shift, bias)
    scale, shift = (g.float(torch.reshape, v, shape, shape=shape) for v in (scale, shift))
    return g.add(g.mul(x, scale), shift)
