"""Reading and writing at positions that are not known when the program is compiled: one party's own, or nobody's.

A position is a unit vector. Its owner makes it in the clear; of a secret one it is looked up. To read is a product with
unit vectors, to write or add one with their transpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import cast

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value, common_owner
from securemodel.compiler.lower.choosing import one_hot_of, unit_vectors
from securemodel.compiler.lower.powers import prod
from securemodel.compiler.lower.tournament import largest


class Outside(CannotLower, IndexError):
    """A position outside of its axis: in the model's code, or of an owner's when the program runs."""


def within(index: torch.Tensor, count: int, low: int = 0) -> torch.Tensor:
    """The positions themselves, which must be from `low` to count - 1. Raises Outside."""
    outside = ((index < low) | (index >= count)).nonzero()
    if len(outside):
        raise Outside(f"the position at {outside[0].tolist()} is outside of its axis", f"use {low} to {count - 1}")
    return index


def from_the_front(index: torch.Tensor, count: int) -> torch.Tensor:
    """Positions without negative ones, which count from the end. Raises Outside."""
    return within(index, count, -count) % count


def front_of(g: Builder, index: Value, count: int) -> Value:
    """The same of a value; a secret position may not be negative."""
    return index if index.secret else g.float(from_the_front, index, count, shape=index.shape, integer=True)


def inside(g: Builder, index: Value, count: int) -> Value:
    """Positions of an owner that may not be negative; nobody can see whether secret ones are."""
    return index if index.secret else g.float(within, index, count, shape=index.shape, integer=True)


def spread(g: Builder, x: Value, shape: Sequence[int]) -> Value:
    """Broadcast to a shape, by its owner where there is one."""
    if x.secret:
        return g.linear("expand", x, shape=list(shape))
    return g.float(torch.broadcast_to, x, tuple(shape), shape=shape, integer=x.integer)


def _permuted(g: Builder, x: Value, dims: Sequence[int]) -> Value:
    dims = list(dims)
    if dims == list(range(x.ndim)):
        return x
    if x.secret:
        return g.linear("permute", x, dims=dims)
    return g.float(torch.permute, x, dims, shape=tuple(x.shape[d] for d in dims), integer=x.integer)


def _shaped(g: Builder, x: Value, shape: Sequence[int]) -> Value:
    if x.secret:
        return g.reshape(x, shape)
    return g.float(torch.reshape, x, tuple(shape), shape=shape, integer=x.integer)


def joined(g: Builder, indices: Sequence[Value], sizes: Sequence[int]) -> Value:
    """The positions in axes of these sizes as one, in the shape that the indices have together."""
    shape = torch.broadcast_shapes(*(index.shape for index in indices))
    strides = [math.prod(sizes[at + 1 :]) for at in range(len(sizes))]
    fronts = [spread(g, front_of(g, index, size), shape) for index, size in zip(indices, sizes, strict=True)]
    if common_owner(fronts) is not None:
        return g.float(_dot, fronts, strides, shape=shape, integer=True)
    return reduce(g.add, [g.linear("scale", x, factor=stride) for x, stride in zip(fronts, strides, strict=True)])


def _dot(parts: Sequence[torch.Tensor], strides: Sequence[int]) -> torch.Tensor:
    return sum((part * stride for part, stride in zip(parts, strides, strict=True)), torch.zeros((), dtype=torch.int64))


def _axes(indices: Sequence[Value | None], ndim: int) -> tuple[list[int], list[int]]:
    given = [dim for dim, index in enumerate(indices) if index is not None]
    return given, [dim for dim in range(ndim) if dim not in given]


def read_at(g: Builder, x: Value, indices: Sequence[Value | None], known: Sequence[torch.Tensor | None]) -> Value:
    """x[indices] where some of the indices are `known` to the program, and the others are not."""
    given, rest = _axes(indices, x.ndim)
    index = [cast(Value, indices[dim]) for dim in given]
    shape = torch.broadcast_shapes(*(i.shape for i in index))
    many, kept = math.prod(shape), [x.shape[dim] for dim in rest]
    fixed = [dim for dim in given if known[dim] is not None]
    open_ = [dim for dim in given if known[dim] is None]
    flat = _permuted(g, x, [*fixed, *open_, *rest])
    count = math.prod(x.shape[dim] for dim in open_)
    units = unit_vectors(
        g, joined(g, [cast(Value, indices[dim]) for dim in open_], [x.shape[dim] for dim in open_]), count
    )
    units = _shaped(g, units, (*units.shape[:-1], count))
    if fixed:
        places = _dot(
            [from_the_front(cast(torch.Tensor, known[dim]), x.shape[dim]).broadcast_to(shape) for dim in fixed],
            [math.prod(x.shape[d] for d in fixed[at + 1 :]) for at in range(len(fixed))],
        )
        flat = _shaped(g, flat, (math.prod(x.shape[dim] for dim in fixed), count, math.prod(kept)))
        rows = g.linear("index", flat, dim=0, index=places.flatten().tolist())
        each = _shaped(g, spread(g, units, (*shape, count)), (many, 1, count))
        made = g.bilinear("matmul", each, rows)
    else:
        made = g.bilinear("matmul", _shaped(g, units, (many, count)), _shaped(g, flat, (count, math.prod(kept))))
    made = g.reshape(made, (*shape, *kept))
    if given != list(range(given[0], given[-1] + 1)):
        return made  # axes apart: what they name comes first
    places_of = list(range(made.ndim))
    return _permuted(g, made, [*places_of[len(shape) : len(shape) + given[0]], *places_of[: len(shape)],
                               *places_of[len(shape) + given[0] :]])  # fmt: skip


def _last_written(index: torch.Tensor, count: int) -> torch.Tensor:
    """[..., count, n]: 1 where position p is written by element e of index [..., n] and by no later one."""
    units = one_hot_of(index, count).mT
    later = units.flip(-1).cumsum(-1).flip(-1) - units
    return units * (later == 0)


def _turned(g: Builder, units: Value) -> Value:
    """[..., count, n] of the unit vectors [..., n, count]."""
    return _permuted(g, units, [*range(units.ndim - 2), units.ndim - 1, units.ndim - 2])


def _none(written: torch.Tensor) -> torch.Tensor:
    return (written.sum(-1) == 0).to(torch.int64)


def _is_zero(g: Builder, counts: Value, most: int) -> Value:
    """The secret bit that a whole number from 0 to `most` is zero."""
    return g.is_negative(g.offset(counts, -1), most.bit_length())


def _untouched(g: Builder, units: Value) -> Value:
    """[..., count]: 1 for the positions that no element of [..., count, n] names."""
    if not units.secret:
        return g.float(_none, units, shape=units.shape[:-1], integer=True)
    counts = g.linear("sum", units, dims=[units.ndim - 1], keepdim=False)
    return g.bit_to_ring(_is_zero(g, counts, units.shape[-1]))


def distinct(g: Builder, index: Value) -> Value:
    """Notes that no two positions along any axis are the same, where nobody knows them."""
    g.notes["distinct", index.id] = True
    return index


def writers_of(g: Builder, index: Value, count: int) -> tuple[Value, Value]:
    """([..., count, n] as `_last_written`, [..., count]: 1 for the positions that nothing is written to)."""
    n = index.shape[-1]
    if not index.secret:
        writers = g.float(_last_written, index, count, shape=(*index.shape[:-1], count, n), integer=True)
        return writers, _untouched(g, writers)
    units = _turned(g, unit_vectors(g, index, count))
    if n == 1 or ("distinct", index.id) in g.notes:
        return units, g.offset(g.linear("neg", g.linear("sum", units, dims=[units.ndim - 1], keepdim=False)), 1)
    later = g.linear("window_sum", units, dim=units.ndim - 1, starts=list(range(1, n + 1)), ends=[n] * n)
    return g.select(_is_zero(g, later, n - 1), units), _untouched(g, units)


def _written(g: Builder, x: Value, index: Value, values: Value) -> Value:
    """x [..., count, r] with rows of values [..., n, r] written at positions index [..., n], the last one where two meet."""
    writers, left = writers_of(g, index, x.shape[-2])
    kept = g.mul(x, spread(g, _shaped(g, left, (*left.shape, 1)), x.shape))
    return g.add(kept, g.bilinear("matmul", writers, values))


def _summed(g: Builder, index: Value, values: Value, count: int) -> Value:
    """[..., count, r]: for each position the sum of those rows of values [..., n, r] whose index [..., n] it is."""
    return g.bilinear("matmul", _turned(g, unit_vectors(g, index, count)), values)


def put_at(g: Builder, x: Value, indices: Sequence[Value | None], values: Value, add: bool) -> Value:
    """x with values written or added at x[indices]."""
    given, rest = _axes(indices, x.ndim)
    index = joined(g, [cast(Value, indices[dim]) for dim in given], [x.shape[dim] for dim in given])
    many, kept = math.prod(index.shape), [x.shape[dim] for dim in rest]
    apart = given != list(range(given[0], given[-1] + 1))
    before = 0 if apart else given[0]
    taken = [*kept[:before], *index.shape, *kept[before:]]
    values = spread(g, values, taken)
    places = list(range(len(taken)))
    first = [*places[before : before + index.ndim], *places[:before], *places[before + index.ndim :]]
    values = _shaped(g, _permuted(g, values, first), (many, math.prod(kept)))
    order = [*given, *rest]
    flat = _shaped(g, _permuted(g, x, order), (math.prod(x.shape[dim] for dim in given), math.prod(kept)))
    index = _shaped(g, index, (many,))
    made = g.add(flat, _summed(g, index, values, flat.shape[0])) if add else _written(g, flat, index, values)
    made = g.reshape(made, [x.shape[dim] for dim in order])
    return _permuted(g, made, [order.index(dim) for dim in range(x.ndim)])


def _last(g: Builder, x: Value, dim: int) -> Value:
    return _permuted(g, x, [*[d for d in range(x.ndim) if d != dim], dim])


def _back(g: Builder, x: Value, dim: int) -> Value:
    return _permuted(g, x, [*range(dim), x.ndim - 1, *range(dim, x.ndim - 1)])


def corner(g: Builder, x: Value, sizes: Sequence[int]) -> Value:
    """The first positions of each axis, as many as `sizes` says."""
    for d, size in enumerate(sizes):
        if size < x.shape[d]:
            shape = (*x.shape[:d], size, *x.shape[d + 1 :])
            x = g.slice(x, d, 0, size) if x.secret else g.float(
                torch.narrow, x, d, 0, size, shape=shape, integer=x.integer)  # fmt: skip
    return x


def _with_corner(g: Builder, x: Value, part: Value) -> Value:
    """x with its first positions of each axis replaced."""
    for d in range(x.ndim):
        if part.shape[d] < x.shape[d]:
            sizes = [x.shape[e] if e < d else part.shape[e] for e in range(x.ndim)]
            rest = _from(g, corner(g, x, [*sizes[:d], x.shape[d], *sizes[d + 1 :]]), d, part.shape[d])
            part = g.linear("cat", part, rest, dim=d)
    return part


def _from(g: Builder, x: Value, dim: int, start: int) -> Value:
    size = x.shape[dim] - start
    if x.secret:
        return g.slice(x, dim, start, x.shape[dim])
    shape = (*x.shape[:dim], size, *x.shape[dim + 1 :])
    return g.float(torch.narrow, x, dim, start, size, shape=shape, integer=x.integer)


def gathered(g: Builder, x: Value, dim: int, index: Value) -> Value:
    """x.gather: a position of one axis for each element of the index, which may be smaller in the other axes."""
    dim %= x.ndim
    x = corner(g, x, [x.shape[d] if d == dim else size for d, size in enumerate(index.shape)])
    columns, index = _last(g, x, dim), _last(g, inside(g, index, x.shape[dim]), dim)
    columns = _shaped(g, columns, (*columns.shape, 1))
    chosen = g.bilinear("matmul", unit_vectors(g, index, columns.shape[-2]), columns)
    return _back(g, g.reshape(chosen, chosen.shape[:-1]), dim)


def scattered(g: Builder, x: Value, dim: int, index: Value, source: Value, how: str, with_self: bool = True) -> Value:
    """x.scatter (how="write") or scatter_reduce ("sum", "mean", "amax", "amin", "prod") along an axis."""
    dim %= x.ndim
    inner = corner(g, x, [x.shape[d] if d == dim else size for d, size in enumerate(index.shape)])
    count, own = x.shape[dim], ("distinct", index.id) in g.notes
    index = _last(g, inside(g, index, count), dim)
    source, flat = _last(g, corner(g, source, index_sizes(index, dim)), dim), _last(g, inner, dim)
    if own:
        distinct(g, index)
    column, rows = _shaped(g, flat, (*flat.shape, 1)), _shaped(g, source, (*source.shape, 1))
    made = _written(g, column, index, rows) if how == "write" else _reduced(g, column, index, rows, how, with_self)
    return _with_corner(g, x, _back(g, g.reshape(made, flat.shape), dim))


def index_sizes(index: Value, dim: int) -> list[int]:
    """The shape that an index had before `_last`."""
    return [*index.shape[:dim], index.shape[-1], *index.shape[dim:-1]]


def _reduced(g: Builder, x: Value, index: Value, rows: Value, how: str, with_self: bool) -> Value:
    """x [..., count, 1] reduced with those of rows [..., n, 1] whose index [..., n] names a position."""
    units = _turned(g, unit_vectors(g, index, x.shape[-2]))
    if how == "mean" and not units.secret:
        left, weights = (g.float(f, units, with_self, shape=shape)
                         for f, shape in ((_own_share, x.shape), (_shares, units.shape)))  # fmt: skip
        return g.add(g.mul(x, left), g.bilinear("matmul", weights, rows))
    own = None if with_self else _shaped(g, _untouched(g, units), x.shape)
    if how in ("sum", "mean"):
        total = g.add(x if own is None else g.mul(x, own), g.bilinear("matmul", units, rows))
        return total if how == "sum" else _divided(g, total, units, own)
    every = g.linear("expand", _shaped(g, rows, (*rows.shape[:-2], 1, rows.shape[-2])), shape=list(units.shape))
    players = g.rescale(g.linear("cat", x, every, dim=x.ndim - 1))
    chosen = _chosen(g, units, own)
    if how == "prod":
        return prod(g, g.offset(g.mul(g.offset(players, -1.0), chosen), 1.0), players.ndim - 1, True)
    if how == "amin":
        players = g.linear("neg", players)
    if chosen.secret:
        forbidden = g.scale(g.offset(g.linear("neg", chosen), 1), g.least / 4)
    else:
        forbidden = g.float(_forbidden, chosen, g.least / 4, shape=chosen.shape)
    best = largest(g, g.add(g.mul(players, chosen), forbidden), players.ndim - 1)
    return g.linear("neg", best) if how == "amin" else best


def _chosen(g: Builder, units: Value, own: Value | None) -> Value:
    """[..., count, n + 1]: whether what stands at a position takes part, and each of what is written there."""
    shape = (*units.shape[:-1], units.shape[-1] + 1)
    if not units.secret:
        return g.float(_with_own, units, own, shape=shape, integer=True)
    own = g.integers(torch.ones((*shape[:-1], 1))) if own is None else own
    return g.linear("cat", own, units, dim=units.ndim - 1)


def _with_own(units: torch.Tensor, own: torch.Tensor | None) -> torch.Tensor:
    return torch.cat([torch.ones_like(units[..., :1]) if own is None else own, units], -1)


def _forbidden(chosen: torch.Tensor, least: float) -> torch.Tensor:
    return (1.0 - chosen) * least


def _own_share(units: torch.Tensor, with_self: bool) -> torch.Tensor:
    """How much of what stood at a position is part of the mean there: where nothing is written, all."""
    counts = units.sum(-1, keepdim=True)
    return torch.where(counts == 0, 1.0, 1.0 / (counts + 1) if with_self else 0.0)


def _shares(units: torch.Tensor, with_self: bool) -> torch.Tensor:
    return units / (units.sum(-1, keepdim=True) + with_self).clamp(min=1)


def _divided(g: Builder, total: Value, units: Value, own: Value | None) -> Value:
    """Sums divided by how many numbers each has, which is 1 to n + 1."""
    n = units.shape[-1]
    counts = g.linear("sum", units, dims=[units.ndim - 1], keepdim=True)
    counts = g.offset(counts, 1) if own is None else g.add(counts, own)
    bits = n.bit_length()  # so many more significant bits of the inverse
    inverse = g.constant(2.0**bits / torch.arange(n + 2, dtype=torch.float64).clamp(min=1).unsqueeze(-1))
    factor = g.reshape(g.bilinear("matmul", unit_vectors(g, counts, n + 2), inverse), counts.shape)
    return g.ldexp(g.mul(g.rescale(total), g.rescale(factor)), -bits)
