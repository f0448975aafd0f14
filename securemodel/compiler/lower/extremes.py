"""Smallest and largest values: of tensors, along axes, so far, and between secret bounds."""

from __future__ import annotations

import torch

from securemodel.compiler.builder import Builder
from securemodel.compiler.lower.arithmetic import running
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
    """Largest value so far; its index has no secure version."""
    return (running(g, g.maximum, x, dim),)


@lowers(aten.cummin.default)
def cummin(g: Builder, x, dim):
    """Smallest value so far; its index has no secure version."""
    return (g.linear("neg", running(g, g.maximum, g.linear("neg", x), dim)),)
