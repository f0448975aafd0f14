"""Matrix products, convolutions and pooling."""

from __future__ import annotations

import torch

from securemodel.compiler.builder import CannotLower
from securemodel.compiler.lower.layers import each_axis
from securemodel.engines.crypten.operators.layout import on_shares, with_share
from securemodel.engines.crypten.operators.registry import runs

aten = torch.ops.aten

LOWEST = -(2.0**14)
"""What max pooling pads with; values are to be above it."""


@runs(aten.linear.default)
def linear(x, weight, bias=None):
    """x W^T + b."""
    out = x.matmul(on_shares(aten.t.default, weight))
    return out if bias is None else out + bias


def _no_factors(bias, x, w, beta=1, alpha=1) -> None:
    if beta != 1 or alpha != 1:
        raise CannotLower("addmm with factors", "write the product and the sum apart")


@runs(aten.addmm.default, check=_no_factors)
def addmm(bias, x, w, beta=1, alpha=1):
    """bias + x w."""
    return x.matmul(w) + bias


@runs(aten.mm.default, aten.bmm.default, aten.matmul.default)
def matmul(x, y):
    """Matrix product."""
    return x.matmul(y)


def _pair(value, dims: int) -> tuple[int, ...]:
    return tuple(each_axis(value, dims))


def _with_bias(out, bias, dims: int):
    return out if bias is None else out + with_share(bias, bias.share.reshape(-1, *[1] * dims))


def _register_conv(dims: int) -> None:
    conv_op, turned = getattr(aten, f"conv{dims}d"), getattr(aten, f"conv_transpose{dims}d")

    @runs(conv_op.default)
    def conv(x, w, bias=None, stride=1, padding=0, dilation=1, groups=1):
        """Convolution."""
        attrs = {"stride": stride, "padding": padding, "dilation": dilation}
        attrs = {name: _pair(value, dims) for name, value in attrs.items()}
        return _with_bias(getattr(x, f"conv{dims}d")(w, groups=groups, **attrs), bias, dims)

    @runs(conv_op.padding)
    def conv_named_padding(x, w, bias=None, stride=1, padding="valid", dilation=1, groups=1):
        """Convolution with padding "same" or "valid"."""
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(each_axis(dilation, dims), w.size()[2:], strict=True)]
            x = on_shares(aten.pad.default, x, [side for n in reversed(total) for side in (n // 2, n - n // 2)])
        return conv(x, w, bias, stride, 0, dilation, groups)

    @runs(turned.default if dims == 1 else turned.input)
    def conv_transpose(x, w, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        """Transposed convolution."""
        attrs = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
        attrs = {name: _pair(value, dims) for name, value in attrs.items()}
        return _with_bias(getattr(x, f"conv_transpose{dims}d")(w, groups=groups, **attrs), bias, dims)


for _dims in (1, 2):
    _register_conv(_dims)


def _max_limits(x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False) -> None:
    if ceil_mode:
        raise CannotLower("CrypTen's pooling has no ceil_mode", "pad the input instead")


@runs(aten.max_pool2d.default, check=_max_limits)
def max_pool2d(x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    """Largest value of each window.

    The padding is done here: CrypTen's own exchanges the two axes, and pads with a number that depends on how many
    parties there are.
    """
    kernel, (rows, columns) = _pair(kernel, 2), _pair(padding, 2)
    if rows or columns:
        x = x.pad([columns, columns, rows, rows], value=LOWEST)
    return x.max_pool2d(kernel, stride=_pair(stride or kernel, 2), dilation=_pair(dilation, 2))


@runs(aten.max_pool1d.default, check=_max_limits)
def max_pool1d(x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    """Largest value of each window of a sequence, as an image of one row."""
    kernel, padding, dilation = ((n, *_pair(v, 1)) for n, v in ((1, kernel), (0, padding), (1, dilation)))
    stride = (1, *_pair(stride, 1)) if stride else kernel
    return _of_one_row(x, lambda image: max_pool2d(image, kernel, stride, padding, dilation))


def _of_one_row(x, pool):
    return on_shares(aten.squeeze.dim, pool(on_shares(aten.unsqueeze.default, x, -2)), -2)


def _average_limits(x, kernel, stride=None, padding=0, ceil=False, count_pad=True, divisor=None) -> None:
    if ceil or divisor or (not count_pad and any(each_axis(padding, 2))):
        raise CannotLower(
            "CrypTen's average pooling has no ceil_mode, divisor_override or count_include_pad=False",
            "leave them out, or pad the input",
        )


@runs(aten.avg_pool2d.default, check=_average_limits)
def avg_pool2d(x, kernel, stride=None, padding=0, ceil=False, count_pad=True, divisor=None):
    """Mean of each window."""
    kernel = _pair(kernel, 2)
    return x.avg_pool2d(kernel, stride=_pair(stride or kernel, 2), padding=_pair(padding, 2))


@runs(aten.avg_pool1d.default, check=_average_limits)
def avg_pool1d(x, kernel, stride=None, padding=0, ceil=False, count_pad=True):
    """Mean of each window of a sequence, as an image of one row."""
    kernel, padding = (1, *_pair(kernel, 1)), (0, *_pair(padding, 1))
    stride = (1, *_pair(stride, 1)) if stride else kernel
    return _of_one_row(x, lambda image: avg_pool2d(image, kernel, stride, padding))


@runs(aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default)
def adaptive_avg_pool2d(x, size):
    """Mean of each of a given number of bins."""
    return x.adaptive_avg_pool2d(_pair(size, 2))


@runs(aten.adaptive_avg_pool1d.default)
def adaptive_avg_pool1d(x, size):
    """Mean of each of a given number of bins of a sequence."""
    return _of_one_row(x, lambda image: adaptive_avg_pool2d(image, (1, *_pair(size, 1))))
