"""Operators that move elements: all local, on any form of a secret."""

from __future__ import annotations

import math
import operator

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten


@lowers(
    aten.clone.default,
    aten.alias.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.lift_fresh_copy.default,
)
def same(g: Builder, x, *args, **kwargs):
    """The value itself (dropout at evaluation included)."""
    if len(args) > 1 and args[1] is True:
        raise CannotLower("dropout in training mode", "call model.eval() before compiling")
    return x


@lowers(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def view(g: Builder, x, shape):
    """The same elements in another shape."""
    known = 1
    for size in shape:
        known *= size if size != -1 else 1
    total = 1
    for size in x.shape:
        total *= size
    return g.reshape(x, [total // known if size == -1 else size for size in shape])


@lowers(aten.permute.default)
def permute(g: Builder, x, dims):
    """Axes in another order."""
    return g.linear("permute", x, dims=[d % x.ndim for d in dims])


@lowers(aten.transpose.int)
def transpose(g: Builder, x, a, b):
    """Two axes exchanged."""
    dims = list(range(x.ndim))
    dims[a], dims[b] = dims[b % x.ndim], dims[a % x.ndim]
    return g.linear("permute", x, dims=dims)


@lowers(aten.t.default)
def t(g: Builder, x):
    """Matrix transpose."""
    return x if x.ndim < 2 else g.linear("permute", x, dims=[1, 0])


@lowers(aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
def squeeze(g: Builder, x, dim=None):
    """Axes of size one removed."""
    dims = range(x.ndim) if dim is None else [d % x.ndim for d in ([dim] if isinstance(dim, int) else dim)]
    return g.reshape(x, [s for i, s in enumerate(x.shape) if s != 1 or i not in dims])


@lowers(aten.unsqueeze.default)
def unsqueeze(g: Builder, x, dim):
    """A new axis of size one."""
    shape = list(x.shape)
    shape.insert(dim % (x.ndim + 1), 1)
    return g.reshape(x, shape)


@lowers(aten.expand.default)
def expand(g: Builder, x, size, implicit=False):
    """Axes of size one repeated."""
    padded = (1,) * (len(size) - x.ndim) + x.shape
    return g.expand(x, [have if want == -1 else want for want, have in zip(size, padded, strict=True)])


@lowers(aten.repeat.default)
def repeat(g: Builder, x, repeats):
    """The tensor tiled along its axes."""
    x = g.reshape(x, (1,) * (len(repeats) - x.ndim) + x.shape)
    for dim, count in enumerate(repeats):
        if count != 1:
            x = g.linear("cat", *[x] * count, dim=dim)
    return x


@lowers(aten.slice.Tensor)
def slice_(g: Builder, x, dim=0, start=None, end=None, step=1):
    """x[start:end:step] along one axis."""
    start, stop, step = slice(start, end, step).indices(x.shape[dim])
    return g.slice(x, dim % x.ndim, start, max(start, stop), step)


def select(g: Builder, x: Value, dim: int, index: int) -> Value:
    """One position of one axis."""
    dim, shape = dim % x.ndim, list(x.shape)
    index %= shape.pop(dim)
    return g.reshape(g.slice(x, dim, index, index + 1), shape)


@lowers(aten.narrow.default)
def narrow(g: Builder, x, dim, start, length):
    """A range of one axis."""
    return g.slice(x, dim % x.ndim, start, start + length)


@lowers(aten.split.Tensor)
def split(g: Builder, x, size, dim=0):
    """Pieces of equal size."""
    dim = dim % x.ndim
    return tuple(g.slice(x, dim, i, min(i + size, x.shape[dim])) for i in range(0, x.shape[dim], size))


@lowers(aten.split_with_sizes.default)
def split_with_sizes(g: Builder, x, sizes, dim=0):
    """Pieces of given sizes."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return tuple(g.slice(x, dim % x.ndim, end - size, end) for end, size in zip(ends, sizes, strict=True))


@lowers(aten.unbind.int)
def unbind(g: Builder, x, dim=0):
    """All positions of one axis."""
    return tuple(select(g, x, dim, i) for i in range(x.shape[dim]))


@lowers(operator.getitem)
def getitem(g: Builder, values, index):
    """One of several results."""
    return values[index]


@lowers(aten.cat.default)
def cat(g: Builder, tensors, dim=0):
    """Tensors joined along an axis; what an owner has among them may be minus infinity, as in masks."""
    tensors = [t if g.is_placeholder(t) else g.finite(t) for t in tensors if t.shape != (0,)]
    made = g.linear("cat", *tensors, dim=dim % tensors[0].ndim)
    if dim == 0:
        g.notes["parts", made.id] = tensors
    return made


@lowers(aten.stack.default)
def stack(g: Builder, tensors, dim=0):
    """Tensors joined along a new axis."""
    return g.linear("cat", *[unsqueeze(g, t, dim) for t in tensors], dim=dim % (tensors[0].ndim + 1))


@lowers(aten.flip.default)
def flip(g: Builder, x, dims):
    """Axes reversed."""
    return g.linear("flip", x, dims=[d % x.ndim for d in dims])


@lowers(aten.roll.default)
def roll(g: Builder, x, shifts, dims=()):
    """Axes rotated."""
    if not dims:
        return g.reshape(roll(g, g.reshape(x, [-1]), shifts, [0]), x.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        size = x.shape[dim]
        x = g.linear("index", x, dim=dim % x.ndim, index=[(i - shift) % size for i in range(size)])
    return x


@lowers(aten.constant_pad_nd.default)
def constant_pad(g: Builder, x, pads, value=0):
    """Padding with a public number."""
    infinite = not abs(value) <= g.most
    value = math.copysign(g.forbidden, value) if infinite else value
    if value == 0:
        return g.linear("pad", x, pads=list(pads))
    made = g.offset(g.linear("pad", g.offset(x, -value), pads=list(pads)), value)
    return g.infinite(made) if infinite else made


@lowers(aten.pad.default)
def pad(g: Builder, x, pads, mode="constant", value=None):
    """Padding with a number, or by repeating or mirroring the border."""
    if mode == "constant":
        return constant_pad(g, x, pads, value or 0)
    for i in range(len(pads) // 2):
        dim, size = x.ndim - 1 - i, x.shape[x.ndim - 1 - i]
        positions = torch.arange(-pads[2 * i], size + pads[2 * i + 1])
        if mode == "replicate":
            positions = positions.clamp(0, size - 1)
        elif mode == "reflect":
            positions = (size - 1) - ((size - 1) - positions.abs()).abs()
        elif mode == "circular":
            positions = positions % size
        else:
            raise CannotLower(f"padding mode {mode!r}", "use constant, reflect, replicate or circular")
        x = g.linear("index", x, dim=dim, index=positions.tolist())
    return x


@lowers(aten.reflection_pad1d.default, aten.reflection_pad2d.default)
def reflection_pad(g: Builder, x, pads):
    """Padding by mirroring."""
    return pad(g, x, pads, "reflect")


@lowers(aten.replication_pad1d.default, aten.replication_pad2d.default)
def replication_pad(g: Builder, x, pads):
    """Padding by repeating the border."""
    return pad(g, x, pads, "replicate")


def _nearest(g: Builder, x: Value, sizes: list[int], scales) -> Value:
    first = x.ndim - len(sizes)
    for dim, size in enumerate(sizes, first):
        scale = scales[dim - first] if scales is not None else None
        ratio = 1.0 / scale if scale else x.shape[dim] / size
        index = (torch.arange(size, dtype=torch.float32) * torch.tensor(ratio, dtype=torch.float32)).floor()
        x = g.linear("index", x, dim=dim, index=index.to(torch.int64).clamp(max=x.shape[dim] - 1).tolist())
    return x


@lowers(aten.upsample_nearest1d.vec, aten.upsample_nearest2d.vec)
def upsample_nearest_vec(g: Builder, x, size, scales):
    """Nearest-neighbor enlargement by factors or to a size."""
    if size is None:
        size = [int(n * s) for n, s in zip(x.shape[-len(scales) :], scales, strict=True)]
    return _nearest(g, x, list(size), scales)


@lowers(aten.upsample_nearest1d.default)
def upsample_nearest1d(g: Builder, x, size, scale=None):
    """Nearest-neighbor enlargement of sequences."""
    return _nearest(g, x, list(size), [scale])


@lowers(aten.upsample_nearest2d.default)
def upsample_nearest2d(g: Builder, x, size, scale_h=None, scale_w=None):
    """Nearest-neighbor enlargement of images."""
    return _nearest(g, x, list(size), [scale_h, scale_w])
