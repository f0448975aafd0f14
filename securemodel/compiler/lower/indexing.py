"""Reading and writing at public positions: local, on any form of a secret.

Such an operator moves elements, whatever they are. So it is run once on the elements' numbers, when the program is
compiled, and what comes out says which element goes where. Along one axis, the numbers of its positions are enough.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from protocols.names import PUBLIC
from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.arithmetic import cumsum
from securemodel.compiler.lower.attention import where
from securemodel.compiler.lower.choosing import positions_of_axis, rows_one_by_one, spread_one_by_one, unit_vectors
from securemodel.compiler.lower.layers import shaped
from securemodel.compiler.lower.layout import select
from securemodel.compiler.lower.logic import truth
from securemodel.compiler.lower.positions import (
    Outside,
    corner,
    from_the_front,
    front_of,
    gathered,
    inside,
    put_at,
    read_at,
    scattered,
    spread,
    within,
)
from securemodel.compiler.lower.registry import decomposes, lowers

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
    if any(i is not None and i.boolean and not _is_known(g, i) for i in indices):
        raise CannotLower("the size of what a mask picks depends on values", _WHERE)
    return g.known(list(indices))


_WHERE = "keep all elements: torch.where(mask, 2 * x, x) in place of x[mask] *= 2, (x * mask).sum() of x[mask].sum()"


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
def index_(g: Builder, x, indices):
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
        return along_axis(g, x, dim, from_the_front(indices[dim], x.shape[dim]))
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


@lowers(aten.select.int)
def select_position(g: Builder, x, dim, index):
    """One position of one axis; a number that is made of a tensor is a position, too."""
    if not isinstance(index, Value):
        return select(g, x, dim, index)
    return positions_of_axis(g, x, dim, front_of(g, index, x.shape[dim]))


@lowers(aten.nonzero_static.default)
def nonzero_static(g: Builder, x, *, size, fill_value=-1):
    """Where the first `size` elements that are not zero stand, row by row; `fill_value` where there are fewer."""
    count = math.prod(x.shape)
    there = g.reshape(truth(g, x), (count,))
    order = g.mul(cumsum(g, there, 0), there)
    units = g.slice(unit_vectors(g, order, count + 1), 1, 1, min(size, count) + 1)
    if size > count:
        units = g.linear("pad", units, pads=[0, size - count])
    turned = g.linear("permute", units, dims=[1, 0])
    places = torch.stack(torch.unravel_index(torch.arange(count), x.shape), 1)
    found = g.bilinear("matmul", turned, g.integers(places - fill_value))
    return g.offset(found, fill_value)


@lowers(aten.index_select.default)
def index_select(g: Builder, x, dim, index):
    """Positions of one axis."""
    dim %= x.ndim
    if not _is_known(g, index):
        return positions_of_axis(g, x, dim, inside(g, index, x.shape[dim]))
    return along_axis(g, x, dim, within(g.known(index), x.shape[dim]))


@lowers(aten.embedding.default)
def embedding(g: Builder, weight, index, *rest):
    """Rows of a table."""
    return index_select(g, weight, 0, index)


@lowers(aten.gather.default)
def gather(g: Builder, x, dim, index, sparse_grad=False):
    """For each element, a position of one axis."""
    if not _is_known(g, index):
        return gathered(g, x, dim, index)
    index = within(g.known(index), x.shape[dim])
    return moved(g, lambda numbers: numbers.gather(dim, index), x)


@lowers(aten.take.default)
def take(g: Builder, x, index):
    """Elements of x, counted row by row."""
    return index_(g, g.reshape(x, (math.prod(x.shape),)), [index])


@lowers(aten.masked_select.default)
def masked_select(g: Builder, x, mask):
    """The elements that a public mask names."""
    (mask,) = _positions(g, [mask])
    return moved(g, lambda numbers: numbers.masked_select(mask), x)


@lowers(aten.diagonal.default)
def diagonal(g: Builder, x, offset=0, dim1=0, dim2=1):
    """Diagonals of matrices."""
    return moved(g, lambda numbers: numbers.diagonal(offset, dim1, dim2), x)


@decomposes(aten.diagonal_scatter.default)
def diagonal_scatter(x, source, offset=0, dim1=0, dim2=1):
    """Diagonals of matrices written, at their known positions."""
    places = torch.arange(x.numel()).reshape(x.shape).diagonal(offset, dim1, dim2)
    return x.reshape(-1).index_put((places.reshape(-1),), source.reshape(-1)).reshape(x.shape)


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
    """x with elements of source written to positions of one axis, the last one where two meet."""
    if not _is_known(g, index):
        return scattered(g, x, dim, index, source, "write")
    index = within(g.known(index), x.shape[dim])
    return moved(g, lambda numbers, given: numbers.scatter(dim, index, given), x, source)


@lowers(aten.scatter.value)
def scatter_number(g: Builder, x, dim, index, value):
    """x with a public number written to positions of one axis."""
    return scatter(g, x, dim, index, _filled(g, index.shape, value))


def _filled(g: Builder, shape: Sequence[int], value: float) -> Value:
    return g.float(torch.full, list(shape), float(value), shape=shape)


@lowers(aten.scatter.reduce, aten.scatter.value_reduce)
def scatter_with(g: Builder, x, dim, index, source, *, reduce):
    """Sums or products at positions of one axis, in the older form."""
    source = source if isinstance(source, Value) else _filled(g, index.shape, source)
    return scatter_reduce(g, x, dim, index, source, {"add": "sum", "multiply": "prod"}[reduce])


@lowers(aten.masked_scatter.default)
def masked_scatter(g: Builder, x, mask, source):
    """x with elements of source written, in order, where a mask is set."""
    if _is_known(g, mask):
        mask = g.known(mask)
        return moved(g, lambda numbers, given: numbers.masked_scatter(mask, given), x, source)
    shape = torch.broadcast_shapes(x.shape, mask.shape)
    count, most = math.prod(shape), min(math.prod(shape), math.prod(source.shape))
    if mask.secret:
        spread = g.reshape(g.expand(mask, shape), (count,))
        order = g.mul(cumsum(g, spread, 0), spread)
    else:
        order = g.float(_order, mask, shape, shape=(count,), integer=True)
    units = g.slice(unit_vectors(g, order, most + 1), 1, 1, most + 1)
    given = g.slice(g.reshape(source, (math.prod(source.shape), 1)), 0, 0, most)
    return where(g, mask, g.reshape(g.bilinear("matmul", units, given), shape), x)


def _order(mask: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """From 1, which of the elements that a mask sets each of them is; 0 for the others."""
    flat = mask.expand(tuple(shape)).flatten().to(torch.int64)
    return flat.cumsum(0) * flat


@lowers(aten.index_put.default)
def index_put(g: Builder, x, indices, values, accumulate=False):
    """x with values written to positions, the last one where two meet, or added there.

    Positions that nobody knows may not be negative. A mask that is no constant takes values that are the same for all
    its elements.
    """
    given = [i for i in indices if i is not None]
    if len(given) == 1 and given[0].boolean and not accumulate and not _is_known(g, given[0]):
        return _mask_written(g, x, indices.index(given[0]), given[0], values)
    if (lines := _lines(g, x, indices)) is not None and (accumulate or _is_distinct(lines[0])):
        return _put_in_lines(g, x, *lines, values, accumulate)
    if _are_open(g, indices):
        return put_at(g, x, indices, values, accumulate)
    indices = _positions(g, indices)
    if accumulate:
        return _added(g, x, aten.index(torch.arange(math.prod(x.shape)).reshape(x.shape), indices), values)
    return moved(g, lambda numbers, given: aten.index_put(numbers, indices, given), x, values)


@lowers(aten.index_add.default)
def index_add(g: Builder, x, dim, index, source, *, alpha=1):
    """x with slices of source added at positions of one axis, which may not be negative."""
    if alpha != 1:
        source = g.scale(source, alpha) if source.secret else g.pointwise(torch.mul, source, alpha)
    return _sliced(g, x, dim, index, source, True)


@lowers(aten.index_copy.default)
def index_copy(g: Builder, x, dim, index, source):
    """x with slices of source written to positions of one axis, which may not be negative."""
    return _sliced(g, x, dim, index, source, False)


def _sliced(g: Builder, x: Value, dim: int, index: Value, source: Value, add: bool) -> Value:
    dim %= x.ndim
    return index_put(g, x, [*[None] * dim, inside(g, index, x.shape[dim])], source, add)


def _mask_written(g: Builder, x: Value, at: int, mask: Value, values: Value) -> Value:
    """x with values where a mask of the axes from `at` is set."""
    after = x.ndim - at - mask.ndim
    sizes = [1] * (at + 1 + after - values.ndim) + list(values.shape)
    if sizes[at] != 1:
        raise CannotLower("as many values as a mask picks, which depends on it", _WHERE)
    values = shaped(g, values, (*sizes[:at], *[1] * mask.ndim, *sizes[at + 1 :]))
    mask = replace(shaped(g, mask, (*mask.shape, *[1] * after)), boolean=True)
    return g.expand(where(g, mask, values, x), x.shape)


def _is_distinct(numbers: torch.Tensor) -> bool:
    return len(numbers.unique()) == numbers.numel()


def _put_in_lines(g: Builder, x: Value, numbers: torch.Tensor, index: Value, values: Value, add: bool) -> Value:
    """The same where `_lines` says which elements one is written to or added to."""
    values = g.linear("expand", values, shape=[*index.shape, *numbers.shape[index.ndim + 1 :]])
    count = numbers.shape[index.ndim]
    if add:
        return _added(g, x, numbers, spread_one_by_one(g, values, index, count))
    chosen = moved(g, lambda given: given.flatten()[numbers], x)
    units = shaped(g, unit_vectors(g, index, count), (*index.shape, count, *[1] * (numbers.ndim - index.ndim - 1)))
    each = g.reshape(values, (*index.shape, 1, *values.shape[index.ndim :]))
    written = g.add(chosen, g.mul(g.sub(g.expand(each, chosen.shape), chosen), units))
    return moved(g, lambda old, new: old.flatten().index_put((numbers,), new).reshape(old.shape), x, written)


@lowers(aten.put.default)
def put(g: Builder, x, index, source, accumulate=False):
    """x with elements, counted row by row, written or added to."""
    flat = g.reshape(x, (math.prod(x.shape),))
    return g.reshape(index_put(g, flat, [index], g.reshape(source, index.shape), accumulate), x.shape)


@lowers(aten.scatter_add.default)
def scatter_add(g: Builder, x, dim, index, source):
    """x with elements of source added at positions of one axis."""
    if not _is_known(g, index):
        return scattered(g, x, dim, index, source, "sum")
    index = within(g.known(index), x.shape[dim])
    numbers = torch.arange(math.prod(x.shape)).reshape(x.shape).gather(dim, index)
    return _added(g, x, numbers, corner(g, source, index.shape))


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
    """Each position of an axis as often as a public number says, or one of an owner where the size of it all is given."""
    if dim is None:
        x, dim = g.reshape(x, (math.prod(x.shape),)), 0
    if output_size is not None and not repeats.secret and not _is_known(g, repeats):
        count = x.shape[dim]
        places = g.float(_repeated, repeats, count, output_size, shape=(output_size,), integer=True)
        return positions_of_axis(g, x, dim, places)
    counts = g.known(repeats).expand(x.shape[dim])
    return along_axis(g, x, dim % x.ndim, torch.arange(x.shape[dim]).repeat_interleave(counts))


def _repeated(repeats: torch.Tensor, count: int, size: int) -> torch.Tensor:
    places = torch.arange(count).repeat_interleave(repeats.expand(count))
    if len(places) != size:
        raise Outside(f"{len(places)} positions, where output_size says {size}", f"use numbers that add up to {size}")
    return places


@lowers(aten.scatter_reduce.two)
def scatter_reduce(g: Builder, x, dim, index, source, reduce, include_self=True):
    """Sums, means, products, largest and smallest values at positions of one axis."""
    if reduce == "sum" and include_self:
        return scatter_add(g, x, dim, index, source)
    return scattered(g, x, dim, index, source, reduce, include_self)


@lowers(aten.index_reduce.default)
def index_reduce(g: Builder, x, dim, index, source, reduce, *, include_self=True):
    """The same with one position for each slice of an axis."""
    dim %= x.ndim
    each = shaped(g, index, tuple(index.shape[0] if d == dim else 1 for d in range(x.ndim)))
    return scatter_reduce(g, x, dim, spread(g, each, source.shape), source, reduce, include_self)
