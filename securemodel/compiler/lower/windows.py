"""Resizing, unfolding and folding of images: public linear maps, one axis at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from securemodel.compiler.builder import Builder, Value
from securemodel.compiler.lower.indexing import along_axis
from securemodel.compiler.lower.layers import each_axis
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten

_GRID = 2.0**24  # weights are rounded to it: machines that differ in the last digits compile equal programs


def times_matrix(g: Builder, x: Value, dim: int, matrix: torch.Tensor) -> Value:
    """One axis times a public matrix of [size, new size]."""
    order = [d for d in range(x.ndim) if d != dim] + [dim]
    last = g.linear("permute", x, dims=order)
    made = g.bilinear("matmul", last, g.constant(matrix))
    return g.linear("permute", made, dims=torch.tensor(order).argsort().tolist())


def _resize(g: Builder, x: Value, one_axis: Callable, size, scales) -> Value:
    """Enlarges or shrinks the last axes: each is a matrix, which is what happens to the rows of the identity."""
    count = len(size if size is not None else scales)
    first = x.ndim - count
    for i in range(count):
        old, scale = x.shape[first + i], None if scales is None else scales[i]
        new = int(old * scales[i]) if size is None else size[i]
        x = times_matrix(g, x, first + i, axis_matrix(one_axis, old, new, scale))
    return x


def axis_matrix(one_axis: Callable, old: int, new: int, scale: float | None) -> torch.Tensor:
    """What resizes an axis: [old, new]."""
    return (one_axis(torch.eye(old, dtype=torch.float64), new, scale) * _GRID).round() / _GRID


def _as_images(rows: torch.Tensor) -> torch.Tensor:
    """Each row as a channel of an image that is two pixels wide; one would be taken for another memory format."""
    return rows.unsqueeze(0).unsqueeze(-1).repeat(1, 1, 1, 2)


@lowers(aten.upsample_linear1d.vec, aten.upsample_bilinear2d.vec, aten.upsample_trilinear3d.vec)
def resize_linear(g: Builder, x, size, align_corners, scales):
    """Linear interpolation along each axis."""
    return _resize(g, x, linear_axis(align_corners), size, scales)


def linear_axis(align_corners: bool) -> Callable:
    """Linear interpolation of rows to a new size."""
    return lambda rows, new, scale: aten.upsample_linear1d(rows.unsqueeze(0), [new], align_corners, scale)[0]


@lowers(aten.upsample_bicubic2d.vec)
def resize_cubic(g: Builder, x, size, align_corners, scales):
    """Cubic interpolation along each axis."""
    return _resize(g, x, cubic_axis(align_corners), size, scales)


def cubic_axis(align_corners: bool) -> Callable:
    """Cubic interpolation of rows to a new size."""

    def one_axis(rows, new, scale):
        return aten.upsample_bicubic2d(_as_images(rows), [new, 2], align_corners, scale, None)[0, :, :, 0]

    return one_axis


@lowers(aten._upsample_bilinear2d_aa.vec)
def resize_linear_smoothed(g: Builder, x, size, align_corners, scales):
    """Linear interpolation along each axis, over wider windows where it shrinks."""

    def one_axis(rows, new, scale):
        return aten._upsample_bilinear2d_aa(_as_images(rows), [new, 2], align_corners, scale, None)[0, :, :, 0]

    return _resize(g, x, one_axis, size, scales)


@lowers(aten._upsample_bicubic2d_aa.vec)
def resize_cubic_smoothed(g: Builder, x, size, align_corners, scales):
    """Cubic interpolation along each axis, over wider windows where it shrinks."""

    def one_axis(rows, new, scale):
        return aten._upsample_bicubic2d_aa(_as_images(rows), [new, 2], align_corners, scale, None)[0, :, :, 0]

    return _resize(g, x, one_axis, size, scales)


def _places(size: int, kernel: int, dilation: int, padding: int, stride: int) -> torch.Tensor:
    """[kernel, windows]: where each tap of each window reads an axis that is padded."""
    starts = torch.arange(0, size + 2 * padding - dilation * (kernel - 1), stride)
    return torch.arange(kernel).unsqueeze(1) * dilation + starts


def _taps(sizes: Sequence[int], kernel, dilation, padding, stride) -> list[torch.Tensor]:
    given = [each_axis(v, 2) for v in (kernel, dilation, padding, stride)]
    return [_places(size, *(v[i] for v in given)) for i, size in enumerate(sizes)]


@lowers(aten.im2col.default)
def im2col(g: Builder, x, kernel, dilation, padding, stride):
    """All windows of an image as columns."""
    rows, columns = _taps(x.shape[-2:], kernel, dilation, padding, stride)
    high, wide = each_axis(padding, 2)
    padded = g.linear("pad", g.reshape(x, (-1, *x.shape[-3:])), pads=[wide, wide, high, high])
    taken = along_axis(g, along_axis(g, padded, 3, columns), 2, rows)  # batch, channel, tap, row, tap, column
    ordered = g.linear("permute", taken, dims=[0, 1, 2, 4, 3, 5])
    shape = (x.shape[-3] * rows.shape[0] * columns.shape[0], rows.shape[1] * columns.shape[1])
    return g.reshape(ordered, (*x.shape[:-3], *shape))


@lowers(aten.col2im.default)
def col2im(g: Builder, x, size, kernel, dilation, padding, stride):
    """Columns added up into the windows of an image they come from."""
    rows, columns = _taps(size, kernel, dilation, padding, stride)
    channels = x.shape[-2] // (rows.shape[0] * columns.shape[0])
    split = g.reshape(x, (-1, channels, rows.shape[0], columns.shape[0], rows.shape[1], columns.shape[1]))
    ordered = g.linear("permute", split, dims=[0, 1, 2, 4, 3, 5])
    out = g.reshape(ordered, (ordered.shape[0], channels, rows.numel(), columns.numel()))
    pads = each_axis(padding, 2)
    for dim, places, length, pad in ((2, rows, size[0], pads[0]), (3, columns, size[1], pads[1])):
        back = torch.nn.functional.one_hot(places.flatten(), length + 2 * pad)
        out = times_matrix(g, out, dim, back[:, pad : pad + length].contiguous())
    return g.reshape(out, (*x.shape[:-2], channels, *size))
