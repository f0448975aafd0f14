"""Positions that are secret: unit vectors of indices, and what is read with them."""

from __future__ import annotations

import math

import torch

from protocols.gates.unit import MAX_BITS
from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.layers import matmul, shaped
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten


def one_hot_of(index: torch.Tensor, count: int) -> torch.Tensor:
    """`one_hot` of whole numbers of any type; torch takes int64 alone."""
    return torch.nn.functional.one_hot(index.long(), count)


def unit_vectors(g: Builder, index: Value, count: int) -> Value:
    """[index = v] for v = 0 .. count - 1 in a new last axis.

    The index must be in that range: nobody can see whether a secret one is, and what is read elsewhere is meaningless.
    """
    if not index.secret:
        return g.float(one_hot_of, index, count, shape=(*index.shape, count), integer=True)
    parts = g.notes.get(("parts", index.id), ())
    if parts and not any(part.secret for part in parts):
        return g.linear("cat", *[unit_vectors(g, part, count) for part in parts], dim=0)
    if not index.integer:
        raise CannotLower("positions computed as real numbers", "compute them from whole numbers, without dividing")
    g.domain(index, 0.0, count, "a secret position")
    bits = math.ceil(math.log2(max(count, 2)))
    if bits > MAX_BITS:
        raise CannotLower(f"a secret index into {count} entries", f"use a table of at most {2**MAX_BITS} entries")
    return g.slice(g.unit(index, 2**bits), index.ndim, 0, count)


def rows_at(g: Builder, table: Value, index: Value) -> Value:
    """table[index] along the first axis, for a secret index: the unit vectors times the table."""
    count, rest = table.shape[0], table.shape[1:]
    flat = table if table.ndim == 2 else shaped(g, table, (count, math.prod(rest)))
    chosen = matmul(g, shaped(g, unit_vectors(g, index, count), (math.prod(index.shape), count)), flat)
    return g.reshape(chosen, (*index.shape, *rest))


def added_at(g: Builder, index: Value, values: Value, count: int) -> Value:
    """Sums of values at each of `count` positions of a new first axis: the unit vectors of `rows_at`, transposed."""
    many, rest = math.prod(index.shape), values.shape[index.ndim :]
    flat = shaped(g, unit_vectors(g, index, count), (many, count))
    turned = g.linear("permute", flat, dims=[1, 0])
    return g.reshape(g.bilinear("matmul", turned, g.reshape(values, [many, math.prod(rest)])), [count, *rest])


def _moved(g: Builder, x: Value, dims: list[int]) -> Value:
    if x.secret:
        return g.linear("permute", x, dims=dims)
    return g.float(torch.permute, x, dims, shape=tuple(x.shape[d] for d in dims), integer=x.integer)


@lowers(aten.one_hot.default)
def one_hot(g: Builder, index, num_classes=-1):
    """1 at a secret position, 0 elsewhere."""
    if num_classes < 0:
        raise CannotLower("one_hot without a number of classes", "say how many: one_hot(x, num_classes)")
    return unit_vectors(g, index, num_classes)


def positions_of_axis(g: Builder, x: Value, dim: int, index: Value) -> Value:
    """Positions of one axis, where the positions are not known when the program is compiled."""
    dim %= x.ndim
    first = [dim, *[d for d in range(x.ndim) if d != dim]]
    chosen = rows_at(g, _moved(g, x, first), index)
    many = index.ndim
    return g.linear("permute", chosen, dims=[*range(many, dim + many), *range(many), *range(dim + many, chosen.ndim)])


def rows_one_by_one(g: Builder, x: Value, index: Value) -> Value:
    """x [*index, count, *rest] at a position of its own for each element of the index."""
    rest = x.shape[index.ndim + 1 :]
    unit = unit_vectors(g, index, x.shape[index.ndim])
    rows = shaped(g, x, (*unit.shape, math.prod(rest)))
    return g.reshape(matmul(g, shaped(g, unit, (*index.shape, 1, unit.shape[-1])), rows), (*index.shape, *rest))


def spread_one_by_one(g: Builder, values: Value, index: Value, count: int) -> Value:
    """The values [*index, *rest] at their positions of a new axis after those of the index, and zeros elsewhere."""
    rest = values.shape[index.ndim :]
    unit = shaped(g, unit_vectors(g, index, count), (*index.shape, count, 1))
    return g.reshape(
        matmul(g, unit, shaped(g, values, (*index.shape, 1, math.prod(rest)))), (*index.shape, count, *rest)
    )
