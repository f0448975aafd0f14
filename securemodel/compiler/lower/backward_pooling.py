"""Gradients of pooling and resizing: transposed sums, one axis at a time, and the ways of the largest values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from securemodel.compiler.builder import Builder, Value
from securemodel.compiler.lower.pooling import (
    axis_bins,
    axis_windows,
    different,
    divided,
    max_along,
    window_sum,
    window_taps,
)
from securemodel.compiler.lower.registry import RECOMPUTING, lowers
from securemodel.compiler.lower.windows import axis_matrix, linear_axis, resize_linear, times_matrix

aten = torch.ops.aten

Spans = list[tuple[int, int]]


def _turned(spans: Spans, size: int) -> Spans:
    """For each position of an axis, which of the windows that move along it have it."""
    return [(sum(end <= place for _, end in spans), sum(start <= place for start, _ in spans)) for place in range(size)]


def _spread(g: Builder, dy: Value, spans: list[Spans], counts: list[list[int]], sizes: Sequence[int]) -> Value:
    """The transposed of means over windows along the last axes."""
    first, dy = dy.ndim - len(spans), divided(g, dy, counts)
    for i, (axis, size) in enumerate(zip(spans, sizes, strict=True)):
        dy = window_sum(g, dy, first + i, _turned(axis, size))
    return dy


@lowers(aten.avg_pool2d_backward.default)
def avg_pool2d_backward(g: Builder, dy, x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override):
    """Each window's gradient to all that it is the mean of."""
    spans, counts = axis_windows(x.shape[-2:], kernel, stride, padding, ceil_mode, count_include_pad)
    if divisor_override:
        counts = [[1] * len(axis) for axis in counts]
        dy = g.scale(dy, 1.0 / divisor_override)
    return _spread(g, dy, spans, counts, x.shape[-2:])


@lowers(aten._adaptive_avg_pool2d_backward.default)
def adaptive_avg_pool2d_backward(g: Builder, dy, x):
    """Each bin's gradient to all that it is the mean of."""
    spans = [axis_bins(size, bins) for size, bins in zip(x.shape[-2:], dy.shape[-2:], strict=True)]
    return _spread(g, dy, spans, [[e - s for s, e in axis] for axis in spans], x.shape[-2:])


@lowers(aten.upsample_nearest2d_backward.default)
def upsample_nearest2d_backward(g: Builder, dy, size, input_size, scale_h=None, scale_w=None):
    """Sums over the copies of each element."""
    copies = aten.upsample_nearest2d(_numbered(input_size), size, scale_h, scale_w)
    for dim, places in ((2, copies[0, 0, :, 0]), (3, copies[0, 1, 0, :])):
        bounds = torch.searchsorted(places.contiguous(), torch.arange(input_size[dim] + 1.0)).tolist()
        dy = window_sum(g, dy, dim, list(itertools.pairwise(bounds)))
    return dy


def _numbered(size: Sequence[int]) -> torch.Tensor:
    """An image with the numbers of rows and columns as its two channels."""
    rows, columns = torch.arange(float(size[2])), torch.arange(float(size[3]))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")).unsqueeze(0)


@lowers(aten.upsample_bilinear2d.default)
def upsample_bilinear2d(g: Builder, x, size, align_corners, scale_h=None, scale_w=None):
    """Linear interpolation along each axis."""
    return resize_linear(g, x, list(size), align_corners, [scale_h, scale_w])


@lowers(aten.upsample_bilinear2d_backward.default)
def upsample_bilinear2d_backward(g: Builder, dy, size, input_size, align_corners, scale_h=None, scale_w=None):
    """The transposed of linear interpolation along each axis."""
    for dim, new, scale in zip((2, 3), size, (scale_h, scale_w), strict=True):
        matrix = axis_matrix(linear_axis(align_corners), input_size[dim], new, scale)
        dy = times_matrix(g, dy, dim, matrix.T.contiguous())
    return dy


# ---- the largest of each window
RECOMPUTING.add(aten.max_pool2d_with_indices_backward.default)


@lowers(aten.max_pool2d_with_indices_backward.default)
def max_pool2d_backward(g: Builder, dy, x, kernel, stride, padding, dilation, ceil_mode, indices):
    """Each window's gradient to the first of its largest values, by the forward's comparisons."""
    taps = window_taps(x.shape[-2:], kernel, stride, padding, dilation, ceil_mode)
    dims, values = (x.ndim - 1, x.ndim - 2), [x]
    for dim, axis in zip(dims, reversed(taps), strict=True):
        values.append(max_along(g, values[-1], dim, axis)[0])
    for dim, axis, before in zip(reversed(dims), taps, reversed(values[:-1]), strict=True):
        dy = _to_the_largest(g, dy, before, dim, axis)
    return dy


def _to_the_largest(g: Builder, dy: Value, x: Value, dim: int, taps: list[list[int]]) -> Value:
    """The gradients of maxima along one axis, back through the tournament to where the winners stood."""
    gradients = [g.rescale(dy)]
    for losers in reversed(max_along(g, x, dim, taps)[1]):
        spread = []
        for loses, gradient in zip(losers, gradients, strict=False):
            second = g.select(loses, gradient)
            spread += [g.sub(gradient, second), second]
        gradients = spread + gradients[len(losers) :]
    return _placed(g, gradients, different(taps), dim, x.shape[dim])


def _placed(g: Builder, parts: list[Value], taps: list[list[int]], dim: int, size: int) -> Value:
    """The sum of parts at the places of one axis that their elements come from."""
    joined = g.linear("cat", *parts, dim=dim) if len(parts) > 1 else parts[0]
    places = torch.tensor(taps).flatten()
    order = places.argsort(stable=True)
    if len(places.unique()) == len(places) == size:
        return g.linear("index", joined, dim=dim, index=order.tolist())
    bounds = torch.searchsorted(places[order], torch.arange(size + 1)).tolist()
    ordered = g.linear("index", joined, dim=dim, index=order.tolist())
    return g.linear("window_sum", ordered, dim=dim, starts=bounds[:-1], ends=bounds[1:])
