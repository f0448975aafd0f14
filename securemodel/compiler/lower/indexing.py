"""Reading and writing at public positions: local, on any form of a secret.

Such an operator moves elements, whatever they are. So it is run once on the elements' numbers, when the program is
compiled, and what comes out says which element goes where. Along one axis, the numbers of its positions are enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from protocols.names import PUBLIC
from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.choosing import (
    added_one_by_one,
    positions_of_axis,
    positions_one_by_one,
    rows_one_by_one,
    spread_one_by_one,
)
from securemodel.compiler.lower.positions import front_of, put_at, read_at, scattered
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten


def along_axis(g: Builder, x: Value, dim: int, index: torch.Tensor) -> Value:
    """Positions of one axis; an index of several axes puts them there."""
    taken = g.linear("index", x, dim=dim, index=index.flatten().tolist())
    return g.reshape(taken, [*x.shape[:dim], *index.shape, *x.shape[dim + 1 :]])


def moved(g: Builder, operator: Callable, *values: Value) -> Value:
    """An operator that moves elements, from its effect on the numbers of all elements."""
    counts = [math.prod(v.shape) for v in values]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    numbers = [
        torch.arange(start, start + count).reshape(v.shape)
        for start, count, v in zip(starts, counts, values, strict=True)
    ]
    made = operator(*numbers)
    flat = [g.linear("reshape", v, shape=[count]) for v, count in zip(values, counts, strict=True)]
    joined = g.linear("cat", *flat, dim=0) if len(flat) > 1 else flat[0]
    return g.reshape(g.linear("index", joined, dim=0, index=made.flatten().tolist()), made.shape)


def _positions(g: Builder, indices: Sequence) -> list:
    if any(i is not None and i.secret and i.boolean for i in indices):
        raise CannotLower("the size of what a secret mask picks depends on values", "use torch.where or masked_fill")
    return g.known(list(indices))


def _is_known(g: Builder, index: Value) -> bool:
    """Whether an index follows from constants of the program."""
    if index.owner != PUBLIC:
        return False
    try:
        g.known(index)
    except CannotLower:
        return False
    return True


def _are_open(g: Builder, indices: Sequence[Value | None]) -> bool:
    """Whether some of these positions are not known when the program is compiled, and none is a mask."""
    given = [i for i in indices if i is not None]
    return not any(i.boolean for i in given) and not all(_is_known(g, i) for i in given)


@lowers(aten.index.Tensor)
def index(g: Builder, x, indices):
    """x at public positions, or at those that a secret index names, which may not be negative if nobody knows it."""
    given = [d for d, i in enumerate(indices) if i is not None]
    if len(given) == 1 and not indices[given[0]].boolean and not _is_known(g, indices[given[0]]):
        dim = given[0]
        return positions_of_axis(g, x, dim, front_of(g, indices[dim], x.shape[dim]))
    if (lines := _lines(g, x, indices)) is not None:
        numbers, index = lines
        return rows_one_by_one(g, moved(g, lambda given: given.flatten()[numbers], x), index)
    if _are_open(g, indices):
        known = [g.known(i) if i is not None and _is_known(g, i) else None for i in indices]
        return read_at(g, x, indices, known)
    indices = _positions(g, indices)
    given = [d for d, i in enumerate(indices) if i is not None]
    if len(given) == 1 and indices[given[0]].dtype != torch.bool:
        dim = given[0]
        return along_axis(g, x, dim, indices[dim] % x.shape[dim])
    return moved(g, lambda numbers: aten.index(numbers, indices), x)


def _lines(g: Builder, x: Value, indices: Sequence) -> tuple[torch.Tensor, Value] | None:
    """Where one of several indices of first axes is not known: that index, and the numbers of the elements that it chooses
    from, [*index, size of its axis, *other axes]. None where it is not so.
    """
    if any(i is None or i.boolean for i in indices) or len(indices) < 2:
        return None
    (at, *more) = [d for d, i in enumerate(indices) if not _is_known(g, i)] or [0, 0]
    if more:
        return None
    known = [g.known(i) for d, i in enumerate(indices) if d != at]
    shape = torch.broadcast_shapes(indices[at].shape, *(i.shape for i in known))
    numbers = torch.arange(math.prod(x.shape)).reshape(x.shape).movedim(at, len(known))
    chosen = numbers[tuple(i.expand(shape) for i in known)]
    index = front_of(g, indices[at], x.shape[at])
    if index.secret:
        return chosen, g.linear("expand", index, shape=list(shape))
    return chosen, g.float(torch.Tensor.expand, index, list(shape), shape=shape, integer=True)


@lowers(aten.index_select.default)
def index_select(g: Builder, x, dim, index):
    """Positions of one axis."""
    if not _is_known(g, index):
        return positions_of_axis(g, x, dim % x.ndim, index)
    return along_axis(g, x, dim % x.ndim, g.known(index))


@lowers(aten.embedding.default)
def embedding(g: Builder, weight, index, *rest):
    """Rows of a table."""
    return index_select(g, weight, 0, index)


@lowers(aten.gather.default)
def gather(g: Builder, x, dim, index, sparse_grad=False):
    """For each element, a position of one axis."""
    if not _is_known(g, index):
        return positions_one_by_one(g, x, dim, index)
    index = g.known(index)
    return moved(g, lambda numbers: numbers.gather(dim, index), x)


@lowers(aten.masked_select.default)
def masked_select(g: Builder, x, mask):
    """The elements that a public mask names."""
    (mask,) = _positions(g, [mask])
    return moved(g, lambda numbers: numbers.masked_select(mask), x)


@lowers(aten.diagonal.default)
def diagonal(g: Builder, x, offset=0, dim1=0, dim2=1):
    """Diagonals of matrices."""
    return moved(g, lambda numbers: numbers.diagonal(offset, dim1, dim2), x)


@lowers(aten.as_strided.default)
def as_strided(g: Builder, x, size, stride, storage_offset=0):
    """Elements at a public grid of positions."""
    return moved(g, lambda numbers: numbers.as_strided(size, stride, storage_offset or 0), x)


@lowers(aten.unfold.default)
def unfold(g: Builder, x, dim, size, step):
    """All windows of one axis, in a new last axis."""
    dim %= x.ndim
    places = torch.arange(x.shape[dim]).unfold(0, size, step)
    windows = along_axis(g, x, dim, places)
    return g.linear("permute", windows, dims=[d for d in range(windows.ndim) if d != dim + 1] + [dim + 1])


@lowers(aten.slice_scatter.default)
def slice_scatter(g: Builder, x, source, dim=0, start=None, end=None, step=1):
    """x with source written to x[start:end:step] of one axis."""
    dim %= x.ndim
    return _along_written(g, x, source, dim, torch.arange(x.shape[dim])[start:end:step])


@lowers(aten.select_scatter.default)
def select_scatter(g: Builder, x, source, dim, index):
    """x with source written to one position of an axis."""
    dim %= x.ndim
    source = g.linear("reshape", source, shape=[*source.shape[:dim], 1, *source.shape[dim:]])
    return _along_written(g, x, source, dim, torch.tensor([index % x.shape[dim]]))


def _along_written(g: Builder, x: Value, source: Value, dim: int, places: torch.Tensor) -> Value:
    size = x.shape[dim]
    order = torch.arange(size)
    order[places] = torch.arange(size, size + len(places))
    return g.linear("index", g.linear("cat", x, source, dim=dim), dim=dim, index=order.tolist())


@lowers(aten.copy.default)
def copy(g: Builder, x, source, non_blocking=False):
    """Source in the shape of x."""
    return g.linear("expand", source, shape=list(x.shape))


@lowers(aten.scatter.src)
def scatter(g: Builder, x, dim, index, source):
    """x with elements of source written to positions of one axis; where nobody knows them, they must be distinct."""
    if index.secret:
        written = added_one_by_one(g, x, dim, index, _corner(g, source, index.shape))
        hit = added_one_by_one(
            g, x, dim, index, g.float(torch.ones, list(index.shape), shape=index.shape, integer=True)
        )
        return g.add(g.mul(x, g.sub(g.constant(torch.tensor(1)), hit)), written)
    if not _is_known(g, index):
        return scattered(g, x, dim, index, source, "write")
    index = g.known(index)
    return moved(g, lambda numbers, given: numbers.scatter(dim, index, given), x, source)


@lowers(aten.scatter.value)
def scatter_number(g: Builder, x, dim, index, value):
    """x with a public number written to positions of one axis; where nobody knows them, to one in each line."""
    if index.secret and index.shape[dim] != 1:
        raise CannotLower("a number written to several positions that nobody knows", "use one_hot, and the amax of it")
    return scatter(g, x, dim, index, _filled(g, index.shape, value))


def _filled(g: Builder, shape: Sequence[int], value: float) -> Value:
    return g.float(torch.full, list(shape), float(value), shape=shape)


@lowers(aten.masked_scatter.default)
def masked_scatter(g: Builder, x, mask, source):
    """x with elements of source written, in order, where a public mask is set."""
    mask = g.known(mask)
    return moved(g, lambda numbers, given: numbers.masked_scatter(mask, given), x, source)


@lowers(aten.index_put.default)
def index_put(g: Builder, x, indices, values, accumulate=False):
    """x with values written to positions, or added there; a mask that only one party or nobody knows takes one number.

    Positions that nobody knows may not be negative, and only one value may be written there.
    """
    if accumulate and (lines := _lines(g, x, indices)) is not None:
        numbers, index = lines
        values = g.linear("expand", values, shape=[*index.shape, *numbers.shape[index.ndim + 1 :]])
        return _added(g, x, numbers, spread_one_by_one(g, values, index, numbers.shape[index.ndim]))
    (mask, *more) = [i for i in indices if i is not None]
    if mask.secret and mask.boolean and mask.shape == x.shape and values.shape == () and not more and not accumulate:
        return g.add(x, g.mul(g.sub(values, x), mask))
    alone = not more and indices[0] is mask and values.shape == () and not accumulate
    if alone and mask.boolean and mask.owner is not None and not _is_known(g, mask):
        own = g.float(_numbers, mask, x.ndim, shape=(*mask.shape, *[1] * (x.ndim - mask.ndim)), integer=True)
        return g.add(x, g.mul(g.sub(g.linear("expand", values, shape=list(x.shape)), x), own))
    if _are_open(g, indices):
        return put_at(g, x, indices, values, accumulate)
    indices = _positions(g, indices)
    if accumulate:
        return _added(g, x, aten.index(torch.arange(math.prod(x.shape)).reshape(x.shape), indices), values)
    return moved(g, lambda numbers, given: aten.index_put(numbers, indices, given), x, values)


def _numbers(mask: torch.Tensor, ndim: int) -> torch.Tensor:
    return mask.to(torch.int64).reshape(*mask.shape, *[1] * (ndim - mask.ndim))


@lowers(aten.scatter_add.default)
def scatter_add(g: Builder, x, dim, index, source):
    """x with elements of source added at positions of one axis."""
    if not _is_known(g, index):
        return g.add(x, added_one_by_one(g, x, dim, index, _corner(g, source, index.shape)))
    index = g.known(index)
    numbers = torch.arange(math.prod(x.shape)).reshape(x.shape).gather(dim, index)
    return _added(g, x, numbers, _corner(g, source, index.shape))


def _corner(g: Builder, x: Value, shape: Sequence[int]) -> Value:
    """As many first positions of each axis."""
    return x if x.shape == tuple(shape) else moved(g, lambda given: given[tuple(slice(s) for s in shape)], x)


def _added(g: Builder, x: Value, places: torch.Tensor, values: Value) -> Value:
    """x plus values at the numbers `places` of its elements: sorted by place, equal ones are sums of a window."""
    flat = places.flatten()
    order = flat.argsort(stable=True)
    values = g.linear("reshape", g.linear("expand", values, shape=list(places.shape)), shape=[flat.numel()])
    ordered = g.linear("index", values, dim=0, index=order.tolist())
    bounds = torch.searchsorted(flat[order], torch.arange(math.prod(x.shape) + 1)).tolist()
    sums = g.linear("window_sum", ordered, dim=0, starts=bounds[:-1], ends=bounds[1:])
    return g.linear("add", x, g.reshape(sums, x.shape))


@lowers(aten.repeat_interleave.self_Tensor)
def repeat_interleave(g: Builder, x, repeats, dim=None, output_size=None):
    """Each position of an axis as often as a public number says."""
    if dim is None:
        x, dim = g.reshape(x, (math.prod(x.shape),)), 0
    counts = g.known(repeats).expand(x.shape[dim])
    return along_axis(g, x, dim % x.ndim, torch.arange(x.shape[dim]).repeat_interleave(counts))


@lowers(aten.scatter_reduce.two)
def scatter_reduce(g: Builder, x, dim, index, source, reduce, include_self=True):
    """Sums, means, largest and smallest values at positions of one axis; at secret ones, sums alone."""
    if reduce == "prod":
        raise CannotLower("scatter_reduce with 'prod'", "use sums, of logarithms say")
    if reduce == "sum" and include_self:
        return scatter_add(g, x, dim, index, source)
    return scattered(g, x, dim, index, source, reduce, include_self)
