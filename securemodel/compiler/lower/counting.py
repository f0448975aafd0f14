"""How many values are below, in a bin, the same: sums of secret bits."""

from __future__ import annotations

import math
from typing import cast

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.choosing import unit_vectors
from securemodel.compiler.lower.comparison import ge, gt
from securemodel.compiler.lower.layers import shaped
from securemodel.compiler.lower.logic import eq
from securemodel.compiler.lower.positions import gathered
from securemodel.compiler.lower.registry import lowers
from securemodel.compiler.lower.tournament import largest, tournament

aten = torch.ops.aten


def _counted(g: Builder, bits: Value, dim: int) -> Value:
    return g.linear("sum", bits, dims=[dim], keepdim=False)


def _below(g: Builder, bounds: Value, x: Value | float, right: bool) -> Value:
    """How many bounds along the last axis are below x [..., 1]; with `right`, how many are not above it."""
    reached = (ge if right else gt)(g, x, bounds) if isinstance(x, Value) else _numbers_below(g, bounds, x, right)
    return _counted(g, reached, reached.ndim - 1)


def _numbers_below(g: Builder, bounds: Value, x: float, right: bool) -> Value:
    return ge(g, g.linear("neg", bounds), -x) if right else gt(g, g.linear("neg", bounds), -x)


@lowers(aten.bucketize.Tensor, aten.bucketize.Scalar)
def bucketize(g: Builder, x, boundaries, *, out_int32=False, right=False):
    """How many boundaries are below each element; with `right`, how many are not above it.

    A value that is a boundary goes where PyTorch has it if both are multiples of 2^-frac_bits.
    """
    return _below(g, boundaries, shaped(g, x, (*x.shape, 1)) if isinstance(x, Value) else x, right)


@lowers(aten.searchsorted.Tensor, aten.searchsorted.Scalar)
def searchsorted(g: Builder, ordered, x, *, out_int32=False, right=False, side=None, sorter=None):
    """The same for lines of boundaries, in order or with what orders them."""
    if sorter is not None:
        ordered = gathered(g, ordered, ordered.ndim - 1, sorter)
    right = right or side == "right"
    if not isinstance(x, Value):
        return _below(g, ordered, x, right)
    if ordered.ndim > 1:
        ordered = shaped(g, ordered, (*ordered.shape[:-1], 1, ordered.shape[-1]))
    return _below(g, ordered, shaped(g, x, (*x.shape, 1)), right)


@lowers(aten.histc.default)
def histc(g: Builder, x, bins=100, min=0, max=0):
    """How many values are in each bin of a public range; those outside of it are not counted."""
    if min == max:
        raise CannotLower("a histogram over the range of secret values", "give the range: min=..., max=...")
    edges = torch.linspace(min, max, bins + 1, dtype=torch.float64)
    flat = g.reshape(x, (1, math.prod(x.shape)))
    bounds = g.constant(edges[:-1].unsqueeze(-1))
    reached = _counted(g, ge(g, flat, bounds), 1)  # how many are at each edge or above it
    above = _counted(g, gt(g, flat, g.constant(edges[-1:].unsqueeze(-1))), 1)
    return g.linear("index_sub", g.linear("cat", reached, above, dim=0), dim=0,
                    plus=list(range(bins)), minus=list(range(1, bins + 1)))  # fmt: skip


@lowers(aten.bincount.default)
def bincount(g: Builder, x, weights=None, minlength=0):
    """How often each number is there, or the sum of its weights, for numbers below `minlength`."""
    if not minlength:
        raise CannotLower(
            "as many numbers as the largest secret value says", "say how many: bincount(x, minlength=...)"
        )
    units = unit_vectors(g, x, minlength)
    if weights is None:
        return _counted(g, units, 0)
    return g.reshape(g.bilinear("matmul", shaped(g, weights, (1, *weights.shape)), units), (minlength,))


@lowers(aten.mode.default)
def mode(g: Builder, x, dim=-1, keepdim=False):
    """The value that is there most often along an axis, the smallest of several, and where it stands last."""
    dim %= x.ndim
    order = [*[d for d in range(x.ndim) if d != dim], dim]
    lines = g.linear("flip", g.linear("permute", g.rescale(x), dims=order), dims=[x.ndim - 1])
    size = lines.shape[-1]
    same = eq(g, _row(g, lines), g.reshape(lines, (*lines.shape, 1)))
    counts = _counted(g, same, same.ndim - 1)
    rarer = g.is_negative(g.sub(counts, largest(g, counts, counts.ndim - 1)), size.bit_length())
    forbidden = g.scale(g.bit_to_ring(rarer), g.least / 4)
    value, place = tournament(g, g.sub(forbidden, lines), lines.ndim - 1, True)
    shape = [1 if d == dim else s for d, s in enumerate(x.shape) if keepdim or d != dim]
    place = g.offset(g.linear("neg", cast(Value, place)), size - 1)
    return g.reshape(g.linear("neg", value), shape), g.reshape(place, shape)


def _row(g: Builder, lines: Value) -> Value:
    return g.reshape(lines, (*lines.shape[:-1], 1, lines.shape[-1]))
