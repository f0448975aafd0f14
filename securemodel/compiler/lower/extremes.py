"""Smallest and largest values: of tensors, along axes, so far, and between secret bounds."""

from __future__ import annotations

import torch

from securemodel.compiler.builder import Builder
from securemodel.compiler.lower.normalization import amax
from securemodel.compiler.lower.positive import maximum, minimum
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten


@lowers(aten.amin.default)
def amin(g: Builder, x, dim=(), keepdim=False):
    """Smallest value along axes."""
    return g.linear("neg", amax(g, g.linear("neg", x), dim, keepdim))


@lowers(aten.max.default)
def max_of_all(g: Builder, x):
    """Largest value of a tensor."""
    return amax(g, x)


@lowers(aten.min.default)
def min_of_all(g: Builder, x):
    """Smallest value of a tensor."""
    return amin(g, x)


@lowers(aten.fmax.default)
def fmax(g: Builder, x, y):
    """The larger of two values: there is no NaN among fixed-point numbers."""
    return maximum(g, x, y)


@lowers(aten.fmin.default)
def fmin(g: Builder, x, y):
    """The smaller of two values."""
    return minimum(g, x, y)


@lowers(aten.clamp.Tensor)
def clamp_between(g: Builder, x, low=None, high=None):
    """min(max(x, low), high) for bounds that are tensors."""
    x = x if low is None else maximum(g, x, low)
    return x if high is None else minimum(g, x, high)


@lowers(aten.cummax.default)
def cummax(g: Builder, x, dim):
    """Largest value so far and its place, the last of equals: after step k, of the last 2^k values."""
    x, dim = g.rescale(x), dim % x.ndim
    along = [size if d == dim else 1 for d, size in enumerate(x.shape)]
    rows, done = [x, g.integers(torch.arange(x.shape[dim]).reshape(along).expand(x.shape))], 1
    while done < (size := x.shape[dim]):
        later, earlier = ([g.slice(row, dim, start, start + size - done) for row in rows] for start in (done, 0))
        behind = g.is_negative(g.sub(later[0], earlier[0]))
        better = [g.add(a, g.select(behind, g.sub(b, a))) for a, b in zip(later, earlier, strict=True)]
        rows = [
            g.linear("cat", g.slice(row, dim, 0, done), new, dim=dim) for row, new in zip(rows, better, strict=True)
        ]
        done *= 2
    return tuple(rows)


@lowers(aten.cummin.default)
def cummin(g: Builder, x, dim):
    """Smallest value so far and its place, the last of equals."""
    value, place = cummax(g, g.linear("neg", x), dim)
    return g.linear("neg", value), place
