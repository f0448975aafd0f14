"""Convolutions as autograd writes them, with their gradients, and gradients of parts of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.layers import convolved, each_axis
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten


def _axes(x: Value) -> int:
    if x.ndim not in (3, 4, 5):
        raise CannotLower(f"a convolution over {x.ndim - 2} axes", "use one over 1, 2 or 3 axes")
    return x.ndim - 2


@lowers(aten.convolution.default)
def convolution(g: Builder, x, w, bias, stride, padding, dilation, transposed, output_padding, groups):
    """Convolution, also transposed; over three axes as a sum of those of planes."""
    axes = {"stride": stride, "padding": padding, "dilation": dilation}
    if transposed:
        axes["output_padding"] = output_padding
    if x.ndim == 5:
        return _of_volumes(g, x, w, bias, {name: each_axis(v, 3) for name, v in axes.items()}, groups, transposed)
    kind = f"conv{'_transpose' if transposed else ''}{_axes(x)}d"
    return convolved(g, kind, x, w, bias, _axes(x), groups, axes)


def _of_volumes(
    g: Builder, x: Value, w: Value, bias: Value | None, axes: dict[str, list[int]], groups: int, transposed: bool
) -> Value:
    """For each tap along the depth, one convolution of all planes that it reads, or that are written by it."""
    (step, *_), (pad, *_), (gap, *_) = (axes[name] for name in ("stride", "padding", "dilation"))
    depth, taps = x.shape[2], w.shape[2]
    inner = {name: v[1:] for name, v in axes.items()}
    if transposed:
        planes = (depth - 1) * step + gap * (taps - 1) + 1 + axes["output_padding"][0] - 2 * pad
    else:
        planes = (depth + 2 * pad - gap * (taps - 1) - 1) // step + 1
    zeros = g.linear("pad", x, pads=[0, 0, 0, 0, pad, pad]) if pad and not transposed else x
    total: Value | None = None
    for tap in range(taps):
        start = gap * tap
        read = x if transposed else g.slice(zeros, 2, start, start + (planes - 1) * step + 1, step)
        made = _of_planes(g, read, _plane(g, w, tap), inner, groups, transposed)
        if transposed:
            at = [divmod(plane + pad - start, step) for plane in range(planes)]
            places = [place if not rest and 0 <= place < depth else depth for place, rest in at]
            made = g.linear("index", g.linear("pad", made, pads=[0, 0, 0, 0, 0, 1]), dim=2, index=places)
        total = made if total is None else g.add(total, made)
    whole = cast(Value, total)
    if bias is None:
        return whole
    along = (bias.shape[0], 1, 1, 1)
    return g.add(whole, g.reshape(bias, along) if bias.secret else g.float(torch.reshape, bias, along, shape=along))


def _plane(g: Builder, w: Value, tap: int) -> Value:
    shape = (*w.shape[:2], *w.shape[3:])
    return g.reshape(g.slice(w, 2, tap, tap + 1), shape) if w.secret else g.float(torch.select, w, 2, tap, shape=shape)


def _of_planes(g: Builder, x: Value, w: Value, axes: dict[str, list[int]], groups: int, transposed: bool) -> Value:
    """The planes of x [N, C, D, H, W] convolved each, as [N, C', D, H', W']."""
    turned = g.linear("permute", x, dims=[0, 2, 1, 3, 4])
    images = g.linear("reshape", turned, shape=[turned.shape[0] * turned.shape[1], *turned.shape[2:]])
    made = convolved(g, f"conv{'_transpose' if transposed else ''}2d", images, w, None, 2, groups, axes)
    return g.linear("permute", g.reshape(made, [*turned.shape[:2], *made.shape[1:]]), dims=[0, 2, 1, 3, 4])


@lowers(aten.convolution_backward.default)
def convolution_backward(
    g: Builder, dy, x, w, bias_sizes, stride, padding, dilation, transposed, output_padding, groups, wanted
):
    """Gradients of a convolution: of its input, the transposed one; of its weight, one of the turned batch.

    The gradient by the bias is a sum.
    """
    dims = _axes(x)
    stride, padding, dilation = (each_axis(v, dims) for v in (stride, padding, dilation))
    axes = {"stride": stride, "padding": padding, "dilation": dilation}
    dx = dw = db = None
    if wanted[0] and transposed:
        dx = _without_bias(g, dy, w, groups, axes)
    elif wanted[0]:
        reached = [
            (dy.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (w.shape[2 + i] - 1) + 1
            for i in range(dims)
        ]
        rest = [size - least for size, least in zip(x.shape[2:], reached, strict=True)]
        dx = _without_bias(g, dy, w, groups, axes, rest)
    if wanted[1]:
        image, out = (dy, x) if transposed else (x, dy)
        dw = _by_weight(g, image, out, w.shape, groups, axes)
    if wanted[2]:
        db = g.linear("sum", dy, dims=[0, *range(2, dy.ndim)], keepdim=False)
    return dx, dw, db


def _without_bias(
    g: Builder, x: Value, w: Value, groups: int, axes: dict[str, list[int]], output_padding: list[int] | None = None
) -> Value:
    """A convolution, with `output_padding` a transposed one."""
    stride, padding, dilation = (axes[name] for name in ("stride", "padding", "dilation"))
    transposed = output_padding is not None
    return convolution(
        g, x, w, None, stride, padding, dilation, transposed, output_padding or [0] * len(stride), groups
    )


def _by_weight(g: Builder, x: Value, dy: Value, shape: Sequence[int], groups: int, axes: dict[str, list[int]]) -> Value:
    """The gradient by the weight of a convolution from x to what dy is the gradient of.

    dW[o, c, k] is the sum over n and i of dy[n, o, i] x[n, c, i stride + k dilation]: a convolution of the image x, whose
    rows are channels, by the kernel dy, with stride and dilation exchanged. What it has beyond the kernel's size is cut.
    """
    count, spatial = x.shape[0], list(range(2, x.ndim))
    split = g.linear("reshape", x, shape=[count, groups, x.shape[1] // groups, *x.shape[2:]])
    turned = g.linear("permute", split, dims=[2, 1, 0, *(d + 1 for d in spatial)])
    image = g.reshape(turned, [turned.shape[0], groups * count, *x.shape[2:]])
    kernel = g.linear("permute", dy, dims=[1, 0, *spatial])
    exchanged = {**axes, "stride": axes["dilation"], "dilation": axes["stride"]}
    made = _without_bias(g, image, kernel, groups, exchanged)
    for dim in spatial:
        if made.shape[dim] != shape[dim]:
            made = g.slice(made, dim, 0, shape[dim])
    return g.linear("permute", made, dims=[1, 0, *spatial])


def _among_zeros(g: Builder, dy: Value, dim: int, before: int, after: int) -> Value:
    return g.linear("pad", dy, pads=[0, 0] * (dy.ndim - 1 - dim) + [before, after])


@lowers(aten.select_backward.default)
def select_backward(g: Builder, dy, shape, dim, index):
    """A gradient at one position of an axis, zeros elsewhere."""
    dim, size = dim % len(shape), shape[dim]
    row = g.reshape(dy, [*shape[:dim], 1, *shape[dim + 1 :]])
    return _among_zeros(g, row, dim, index % size, size - 1 - index % size)


@lowers(aten.slice_backward.default)
def slice_backward(g: Builder, dy, shape, dim, start, end, step):
    """A gradient at the positions of a slice, zeros elsewhere."""
    dim %= len(shape)
    if step == 1:
        start = slice(start, end).indices(shape[dim])[0]
        return _among_zeros(g, dy, dim, start, shape[dim] - start - dy.shape[dim])
    place = torch.full((shape[dim],), dy.shape[dim])
    place[start:end:step] = torch.arange(dy.shape[dim])
    return g.linear("index", _among_zeros(g, dy, dim, 0, 1), dim=dim, index=place.tolist())
