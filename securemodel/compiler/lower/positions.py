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
from securemodel.compiler.lower.choosing import unit_vectors
from securemodel.compiler.lower.tournament import largest

_UNIQUE = "write at positions that one party knows, or in a loop one after the other"


def from_the_front(index: torch.Tensor, count: int) -> torch.Tensor:
    """Positions without negative ones, which count from the end."""
    return torch.where(index < 0, index + count, index)


def front_of(g: Builder, index: Value, count: int) -> Value:
    """The same of a value; a secret position may not be negative."""
    return index if index.secret else g.float(from_the_front, index, count, shape=index.shape, integer=True)


def _spread(g: Builder, x: Value, shape: Sequence[int]) -> Value:
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
    fronts = [_spread(g, front_of(g, index, size), shape) for index, size in zip(indices, sizes, strict=True)]
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
        spread = _shaped(g, _spread(g, units, (*shape, count)), (many, 1, count))
        made = g.bilinear("matmul", spread, rows)
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
    units = torch.nn.functional.one_hot(index, count).mT
    later = units.flip(-1).cumsum(-1).flip(-1) - units
    return units * (later == 0)


def _unwritten(written: torch.Tensor) -> torch.Tensor:
    return 1 - written.sum(-1)


def _written(g: Builder, x: Value, index: Value, values: Value) -> Value:
    """x [..., count, r] with rows of values [..., n, r] written at positions index [..., n]."""
    count, n = x.shape[-2], index.shape[-1]
    shape = (*index.shape[:-1], count, n)
    if not index.secret:
        writers = g.float(_last_written, index, count, shape=shape, integer=True)
        left = g.float(_unwritten, writers, shape=shape[:-1], integer=True)
    elif n == 1:
        units = unit_vectors(g, index, count)
        writers = _permuted(g, units, [*range(units.ndim - 2), units.ndim - 1, units.ndim - 2])
        left = g.offset(g.linear("neg", g.reshape(units, shape[:-1])), 1)
    else:
        raise CannotLower("several values written at secret positions, of which two may be the same", _UNIQUE)
    kept = g.mul(x, _spread(g, _shaped(g, left, (*left.shape, 1)), x.shape))
    return g.add(kept, g.bilinear("matmul", writers, values))


def _summed(g: Builder, index: Value, values: Value, count: int) -> Value:
    """[..., count, r]: for each position the sum of those rows of values [..., n, r] whose index [..., n] it is."""
    units = unit_vectors(g, index, count)
    turned = _permuted(g, units, [*range(units.ndim - 2), units.ndim - 1, units.ndim - 2])
    return g.bilinear("matmul", turned, values)


def put_at(g: Builder, x: Value, indices: Sequence[Value | None], values: Value, add: bool) -> Value:
    """x with values written or added at x[indices]."""
    given, rest = _axes(indices, x.ndim)
    index = joined(g, [cast(Value, indices[dim]) for dim in given], [x.shape[dim] for dim in given])
    many, kept = math.prod(index.shape), [x.shape[dim] for dim in rest]
    apart = given != list(range(given[0], given[-1] + 1))
    before = 0 if apart else given[0]
    taken = [*kept[:before], *index.shape, *kept[before:]]
    values = _spread(g, values, taken)
    places = list(range(len(taken)))
    first = [*places[before : before + index.ndim], *places[:before], *places[before + index.ndim :]]
    values = _shaped(g, _permuted(g, values, first), (many, math.prod(kept)))
    order = [*given, *rest]
    flat = _shaped(g, _permuted(g, x, order), (math.prod(x.shape[dim] for dim in given), math.prod(kept)))
    index = _shaped(g, index, (many,))
    made = g.add(flat, _summed(g, index, values, flat.shape[0])) if add else _written(g, flat, index, values)
    made = g.reshape(made, [x.shape[dim] for dim in order])
    return _permuted(g, made, [order.index(dim) for dim in range(x.ndim)])


def _along(g: Builder, x: Value, dim: int, sizes: Sequence[int]) -> Value:
    """x cut to these sizes in all other axes, with axis `dim` last."""
    for d, size in enumerate(sizes):
        if d != dim and size < x.shape[d]:
            x = g.slice(x, d, 0, size) if x.secret else g.float(torch.narrow, x, d, 0, size, shape=(
                *x.shape[:d], size, *x.shape[d + 1 :]), integer=x.integer)  # fmt: skip
    return _permuted(g, x, [*[d for d in range(x.ndim) if d != dim], dim])


def scattered(g: Builder, x: Value, dim: int, index: Value, source: Value, how: str, with_self: bool = True) -> Value:
    """x.scatter (how="write") or scatter_reduce ("sum", "mean", "amax", "amin") along an axis; not at secret positions."""
    dim %= x.ndim
    sizes = [x.shape[d] if d == dim else index.shape[d] for d in range(x.ndim)]
    if any(size < x.shape[d] for d, size in enumerate(sizes)):
        raise CannotLower(f"scatter into {sizes} of {list(x.shape)} positions", "slice the tensor that is written into")
    index = _along(g, index, dim, index.shape)
    source = _along(g, source, dim, [source.shape[d] if d == dim else n for d, n in enumerate(sizes)])
    if source.shape[-1] > index.shape[-1]:
        source = g.slice(source, source.ndim - 1, 0, index.shape[-1])
    count = x.shape[dim]
    flat = _permuted(g, x, [*[d for d in range(x.ndim) if d != dim], dim])
    column, rows = _shaped(g, flat, (*flat.shape, 1)), _shaped(g, source, (*source.shape, 1))
    if how == "write":
        made = _written(g, column, index, rows)
    elif index.secret:
        raise CannotLower(f"scatter_reduce with {how!r} at secret positions", "use sums, with include_self=True")
    else:
        shape = (*index.shape[:-1], count, index.shape[-1])
        left = g.float(_self_weight, index, count, how, with_self, shape=(*shape[:-1], 1))
        made = g.mul(column, left)
        if how in ("sum", "mean"):
            weights = g.float(_weights, index, count, how, with_self, shape=shape)
            made = g.add(made, g.bilinear("matmul", weights, rows))
        else:
            made = _extreme(g, column, index, source, how, with_self)
    made = g.reshape(made, flat.shape)
    return _permuted(g, made, [*range(dim), x.ndim - 1, *range(dim, x.ndim - 1)])


def _counts(index: torch.Tensor, count: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(index, count).sum(-2)


def _self_weight(index: torch.Tensor, count: int, how: str, with_self: bool) -> torch.Tensor:
    """How much of what stood there is left, [..., count, 1]: where nothing is written, all."""
    counts = _counts(index, count)
    written = 1.0 / (counts + 1) if how == "mean" and with_self else torch.full(counts.shape, float(with_self))
    return torch.where(counts == 0, 1.0, written).unsqueeze(-1)


def _weights(index: torch.Tensor, count: int, how: str, with_self: bool) -> torch.Tensor:
    units = torch.nn.functional.one_hot(index, count).mT.double()
    return units / (_counts(index, count) + with_self).clamp(min=1).unsqueeze(-1) if how == "mean" else units


def _extreme(g: Builder, column: Value, index: Value, source: Value, how: str, with_self: bool) -> Value:
    """Largest or smallest of what is written to each place; of what stood there where nothing is."""
    count, n = column.shape[-2], index.shape[-1]
    shape = (*index.shape[:-1], count, n + 1)
    chosen = g.float(_choice, index, count, with_self, shape=shape)
    forbidden = g.float(_forbidden, chosen, g.least / 4, shape=shape)
    every = g.linear("expand", _shaped(g, source, (*source.shape[:-1], 1, n)), shape=[*shape[:-1], n])
    players = g.linear("cat", column, every, dim=column.ndim - 1)
    if how == "amin":
        players = g.linear("neg", players)
    best = largest(g, g.add(g.mul(g.rescale(players), chosen), forbidden), players.ndim - 1)
    return g.linear("neg", best) if how == "amin" else best


def _choice(index: torch.Tensor, count: int, with_self: bool) -> torch.Tensor:
    units = torch.nn.functional.one_hot(index, count).mT.double()
    own = torch.ones_like(units[..., :1]) if with_self else (units.sum(-1, keepdim=True) == 0).double()
    return torch.cat([own, units], -1)


def _forbidden(chosen: torch.Tensor, least: float) -> torch.Tensor:
    return (1 - chosen) * least
