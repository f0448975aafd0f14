"""Pooling: maxima by tournaments along one axis at a time, averages by local sums."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from securemodel.compiler.builder import Builder, Value
from securemodel.compiler.lower.layers import each_axis, shaped
from securemodel.compiler.lower.positions import distinct, inside, writers_of
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten


def _out_size(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> int:
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (-(-span // stride) if ceil else span // stride) + 1
    if ceil and (out - 1) * stride >= size + padding:
        out -= 1  # a window that starts in the right padding does not count
    return out


def axis_taps(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> list[list[int]]:
    """For each tap of the window, the input position it reads at each output; outside taps repeat an inside one."""
    taps: list[list[int]] = [[] for _ in range(kernel)]
    for out in range(_out_size(size, kernel, stride, padding, dilation, ceil)):
        places = [out * stride - padding + k * dilation for k in range(kernel)]
        inside = [p for p in places if 0 <= p < size]
        for tap, place in zip(taps, places, strict=True):
            tap.append(place if 0 <= place < size else inside[0])
    return taps


def _take(g: Builder, x: Value, dim: int, index: list[int]) -> Value:
    """Positions of one axis, as a strided slice where they are evenly spaced."""
    step = index[1] - index[0] if len(index) > 1 else 1
    if step > 0 and index == list(range(index[0], index[-1] + 1, step)):
        return g.slice(x, dim, index[0], index[-1] + 1, step)
    return g.linear("index", x, dim=dim, index=index)


def max_along(g: Builder, x: Value, dim: int, taps: list[list[int]]) -> tuple[Value, list[list[Value]]]:
    """(maximum over the taps of a window along one axis, and of each level of the tournament, who loses to its neighbor).

    Taps that are the same at all outputs play once; of equal values, the first wins.
    """
    players, levels = [_take(g, x, dim, tap) for tap in different(taps)], []
    while len(players) > 1:
        pairs = list(zip(players[::2], players[1::2], strict=False))
        levels.append([g.is_negative(g.sub(a, b)) for a, b in pairs])
        players = [g.maximum(a, b) for a, b in pairs] + ([players[-1]] if len(players) % 2 else [])
    return players[0], levels


def _with_place(g: Builder, x: Value, axes: list[list[list[int]]], apart: bool) -> tuple[Value, Value]:
    """(maxima over the taps of windows along the last axes, where in these axes, counted row by row, they stand).

    `apart`: no two windows share an element, so that places are distinct.
    """
    first = x.ndim - len(axes)
    count = math.prod(x.shape[first:])
    rows = [x, g.integers(torch.arange(count).reshape(x.shape[first:]).expand(x.shape))]
    for i in reversed(range(len(axes))):
        players = [[_take(g, row, first + i, tap) for row in rows] for tap in different(axes[i])]
        while len(players) > 1:
            left = players[-1:] if len(players) % 2 else []
            players = [_winner(g, *pair) for pair in zip(players[::2], players[1::2], strict=False)] + left
        rows = players[0]
    values, places = rows
    return values, distinct(g, places) if apart else places


def _winner(g: Builder, first: list[Value], second: list[Value]) -> list[Value]:
    """The larger value with its place, the first of equals."""
    loses = g.is_negative(g.sub(first[0], second[0]))
    return [g.add(b, g.select(loses, g.sub(a, b), invert=True)) for a, b in zip(first, second, strict=True)]


def different(taps: list[list[int]]) -> list[list[int]]:
    """Each tap once."""
    return [list(tap) for tap in dict.fromkeys(map(tuple, taps))]


def window_taps(sizes: Sequence[int], kernel, stride, padding, dilation, ceil: bool) -> list[list[list[int]]]:
    """For each of the last axes, what the taps of windows read."""
    given = [each_axis(v, len(sizes)) for v in (kernel, stride or kernel, padding, dilation)]
    axes = zip(sizes, *given, strict=True)
    return [axis_taps(size, taps, step, pad, gap, ceil) for size, taps, step, pad, gap in axes]


def _max_pool(g: Builder, x: Value, kernel, stride, padding, dilation, ceil: bool, dims: int) -> Value:
    taps = window_taps(x.shape[x.ndim - dims :], kernel, stride, padding, dilation, ceil)
    for i in reversed(range(dims)):
        x = max_along(g, x, x.ndim - dims + i, taps[i])[0]
    return x


@lowers(aten.max_pool2d.default)
def max_pool2d(g: Builder, x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    """Largest value of each window: first along rows, then along columns, which saves comparisons."""
    return _max_pool(g, x, kernel, stride, padding, dilation, ceil_mode, 2)


@lowers(aten.max_pool1d.default)
def max_pool1d(g: Builder, x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    """Largest value of each window of a sequence."""
    return _max_pool(g, x, kernel, stride, padding, dilation, ceil_mode, 1)


@lowers(aten.max_pool3d.default)
def max_pool3d(g: Builder, x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    """Largest value of each window of a volume."""
    return _max_pool(g, x, kernel, stride, padding, dilation, ceil_mode, 3)


@lowers(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)
def max_pool_with_indices(g: Builder, x, kernel, stride=None, padding=0, dilation=1, ceil_mode=False):
    """Max pooling, and where in the input the values stand, the first of equals."""
    dims = len(kernel)
    steps = zip(each_axis(stride or kernel, dims), each_axis(kernel, dims), each_axis(dilation, dims), strict=True)
    apart = all(step > gap * (taps - 1) for step, taps, gap in steps)
    taps = window_taps(x.shape[x.ndim - dims :], kernel, stride, padding, dilation, ceil_mode)
    return _with_place(g, x, taps, apart)


def _adaptive_max_pool(g: Builder, x: Value, size: list[int]) -> tuple[Value, Value]:
    axes = []
    for bins, length in zip(size, x.shape[x.ndim - len(size) :], strict=True):
        spans = axis_bins(length, bins)
        width = max(stop - start for start, stop in spans)
        axes.append([[min(start + k, stop - 1) for start, stop in spans] for k in range(width)])
    apart = all(length % bins == 0 for bins, length in zip(size, x.shape[x.ndim - len(size) :], strict=True))
    return _with_place(g, x, axes, apart)


@lowers(aten.adaptive_max_pool2d.default)
def adaptive_max_pool2d(g: Builder, x, size):
    """Largest value of each bin, and where it stands."""
    return _adaptive_max_pool(g, x, each_axis(size, 2))


@lowers(aten.adaptive_max_pool3d.default)
def adaptive_max_pool3d(g: Builder, x, size):
    """Largest value of each bin of a volume, and where it stands."""
    return _adaptive_max_pool(g, x, each_axis(size, 3))


@lowers(aten.max_unpool2d.default, aten.max_unpool3d.default)
def max_unpool(g: Builder, x, index, size, *rest):
    """The values at their places of a larger image of zeros, the last one where two meet."""
    kept = x.shape[: x.ndim - len(size)]
    count, lines = math.prod(size), (*kept, math.prod(x.shape[len(kept) :]))
    places = shaped(g, index, lines)
    if ("distinct", index.id) in g.notes:
        distinct(g, places)
    writers = writers_of(g, inside(g, places, count), count)[0]
    return g.reshape(g.bilinear("matmul", writers, shaped(g, x, (*lines, 1))), (*kept, *size))


def window_sum(g: Builder, x: Value, dim: int, spans: list[tuple[int, int]]) -> Value:
    """Sums over ranges of one axis."""
    if spans == [(0, x.shape[dim])]:
        return g.linear("sum", x, dims=[dim], keepdim=True)
    starts, ends = [s for s, _ in spans], [e for _, e in spans]
    return g.linear("window_sum", x, dim=dim, starts=starts, ends=ends)


def _average(g: Builder, x: Value, spans: list[list[tuple[int, int]]], counts: list[list[int]]) -> Value:
    """Sums over windows along the last axes, divided by the product of the axes' counts."""
    for i, axis_spans in enumerate(spans):
        x = window_sum(g, x, x.ndim - len(spans) + i, axis_spans)
    return divided(g, x, counts)


def divided(g: Builder, x: Value, counts: list[list[int]]) -> Value:
    """The last axes divided by the product of their counts."""
    divisor = torch.ones(())
    for axis in counts:
        divisor = divisor.unsqueeze(-1) * torch.tensor(axis, dtype=torch.float64)
    flat = divisor.flatten()
    if bool((flat == flat[0]).all()):
        return g.scale(x, 1.0 / flat[0].item())
    return g.mul(g.rescale(x), g.constant(1.0 / divisor))


def axis_windows(
    sizes: Sequence[int], kernel, stride, padding, ceil: bool, count_pad: bool
) -> tuple[list[list[tuple[int, int]]], list[list[int]]]:
    """For each of the last axes, the ranges of windows, and by what their sums are divided."""
    kernel, stride, padding = (each_axis(v, len(sizes)) for v in (kernel, stride or kernel, padding))
    spans, counts = [], []
    for i, (size, pad) in enumerate(zip(sizes, padding, strict=True)):
        starts = [o * stride[i] - pad for o in range(_out_size(size, kernel[i], stride[i], pad, 1, ceil))]
        stops = [min(s + kernel[i], size + pad) for s in starts]
        spans.append([(max(s, 0), min(e, size)) for s, e in zip(starts, stops, strict=True)])
        counts.append([e - s for s, e in (zip(starts, stops, strict=True) if count_pad else spans[-1])])
    return spans, counts


def _avg_pool(g: Builder, x: Value, kernel, stride, padding, ceil: bool, count_pad: bool, divisor, dims: int) -> Value:
    spans, counts = axis_windows(x.shape[x.ndim - dims :], kernel, stride, padding, ceil, count_pad)
    if divisor:
        counts = [[1] * len(c) for c in counts]
        return g.scale(_average(g, x, spans, counts), 1.0 / divisor)
    return _average(g, x, spans, counts)


@lowers(aten.avg_pool2d.default)
def avg_pool2d(g, x, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
    """Mean of each window."""
    return _avg_pool(g, x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override, 2)


@lowers(aten.avg_pool3d.default)
def avg_pool3d(g, x, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None):
    """Mean of each window of a volume."""
    return _avg_pool(g, x, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override, 3)


@lowers(aten.avg_pool1d.default)
def avg_pool1d(g, x, kernel, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    """Mean of each window of a sequence."""
    return _avg_pool(g, x, kernel, stride, padding, ceil_mode, count_include_pad, None, 1)


def axis_bins(size: int, bins: int) -> list[tuple[int, int]]:
    """The range of each of a number of bins of one axis."""
    return [(i * size // bins, math.ceil((i + 1) * size / bins)) for i in range(bins)]


def _adaptive(g: Builder, x: Value, sizes: list[int]) -> Value:
    spans = [axis_bins(x.shape[x.ndim - len(sizes) + i], n) for i, n in enumerate(sizes)]
    return _average(g, x, spans, [[e - s for s, e in axis] for axis in spans])


@lowers(aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default)
def adaptive_avg_pool2d(g: Builder, x, size):
    """Mean of each of a given number of bins."""
    return _adaptive(g, x, each_axis(size, 2))


@lowers(aten.adaptive_avg_pool1d.default)
def adaptive_avg_pool1d(g: Builder, x, size):
    """Mean of each of a given number of bins of a sequence."""
    return _adaptive(g, x, each_axis(size, 1))


@lowers(aten._adaptive_avg_pool3d.default)
def adaptive_avg_pool3d(g: Builder, x, size):
    """Mean of each of a given number of bins of a volume."""
    return _adaptive(g, x, each_axis(size, 3))
