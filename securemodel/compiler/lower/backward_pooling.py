"""Gradients of pooling and resizing: transposed sums, one axis at a time, and the ways of the largest values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

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
from securemodel.compiler.lower.windows import (
    axis_matrix,
    cubic_axis,
    linear_axis,
    resize_linear,
    times_matrix,
)

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


@lowers(aten.avg_pool2d_backward.default, aten.avg_pool3d_backward.default)
def avg_pool_backward(g: Builder, dy, x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override):
    """Each window's gradient to all that it is the mean of."""
    dims = len(kernel)
    spans, counts = axis_windows(x.shape[-dims:], kernel, stride, padding, ceil_mode, count_include_pad)
    if divisor_override:
        counts = [[1] * len(axis) for axis in counts]
        dy = g.scale(dy, 1.0 / divisor_override)
    return _spread(g, dy, spans, counts, x.shape[-dims:])


@lowers(aten._adaptive_avg_pool2d_backward.default)
def adaptive_avg_pool2d_backward(g: Builder, dy, x):
    """Each bin's gradient to all that it is the mean of."""
    return _of_bins(g, dy, x, 2)


@lowers(aten._adaptive_avg_pool3d_backward.default)
def adaptive_avg_pool3d_backward(g: Builder, dy, x):
    """The same of a volume."""
    return _of_bins(g, dy, x, 3)


def _of_bins(g: Builder, dy: Value, x: Value, dims: int) -> Value:
    spans = [axis_bins(size, bins) for size, bins in zip(x.shape[-dims:], dy.shape[-dims:], strict=True)]
    return _spread(g, dy, spans, [[e - s for s, e in axis] for axis in spans], x.shape[-dims:])


@lowers(*(getattr(aten, f"upsample_nearest{dims}d_backward").default for dims in (1, 2, 3)))
def upsample_nearest_backward(g: Builder, dy, size, input_size, *scales):
    """Sums over the copies of each element."""
    for dim, new, scale in zip(range(2, dy.ndim), size, scales or [None] * len(size), strict=True):
        numbers = torch.arange(float(input_size[dim])).view(1, 1, -1)
        dy = _added_up(g, dy, dim, aten.upsample_nearest1d(numbers, [new], scale).flatten(), input_size[dim])
    return dy


def _added_up(g: Builder, dy: Value, dim: int, places: torch.Tensor, size: int) -> Value:
    """Sums of what came from each position of an axis; `places` says from where, and never falls."""
    bounds = torch.searchsorted(places.contiguous(), torch.arange(size + 1, dtype=places.dtype)).tolist()
    return window_sum(g, dy, dim, list(itertools.pairwise(bounds)))


@lowers(*(getattr(aten, f"replication_pad{dims}d_backward").default for dims in (1, 2, 3)))
def replication_pad_backward(g: Builder, dy, x, padding):
    """The gradients of all copies of an element at an edge, added up."""
    for i in range(len(padding) // 2):
        dim, (before, after) = x.ndim - 1 - i, padding[2 * i : 2 * i + 2]
        size = x.shape[dim]
        places = torch.arange(-before, size + after).clamp(0, size - 1)
        dy = _added_up(g, dy, dim, places, size)
    return dy


_LINEAR = ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")


@lowers(*(getattr(aten, name).default for name in _LINEAR))
def upsample_linear(g: Builder, x, size, align_corners, *scales):
    """Linear interpolation along each axis."""
    return resize_linear(g, x, list(size), align_corners, scales or None)


@lowers(*(getattr(aten, f"{name}_backward").default for name in _LINEAR))
def upsample_linear_backward(g: Builder, dy, size, input_size, align_corners, *scales):
    """The transposed of linear interpolation along each axis."""
    return _resized_back(g, dy, linear_axis(align_corners), size, input_size, scales)


@lowers(aten.upsample_bicubic2d_backward.default)
def upsample_cubic_backward(g: Builder, dy, size, input_size, align_corners, *scales):
    """The transposed of cubic interpolation along each axis."""
    return _resized_back(g, dy, cubic_axis(align_corners), size, input_size, scales)


def _resized_back(g: Builder, dy: Value, one_axis: Callable, size, input_size, scales) -> Value:
    for dim, new, scale in zip(range(2, dy.ndim), size, scales or [None] * len(size), strict=True):
        matrix = axis_matrix(one_axis, input_size[dim], new, scale)
        dy = times_matrix(g, dy, dim, matrix.T.contiguous())
    return dy


# ---- the largest of each window
_OF_LARGEST = (aten.max_pool2d_with_indices_backward.default, aten.max_pool3d_with_indices_backward.default)
RECOMPUTING.update(_OF_LARGEST)


@lowers(*_OF_LARGEST)
def max_pool_backward(g: Builder, dy, x, kernel, stride, padding, dilation, ceil_mode, indices):
    """Each window's gradient to the first of its largest values, by the forward's comparisons."""
    taps = window_taps(x.shape[-len(kernel) :], kernel, stride, padding, dilation, ceil_mode)
    dims, values = [x.ndim - 1 - i for i in range(len(kernel))], [x]
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
