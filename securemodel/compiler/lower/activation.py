"""Piecewise linear activations and the arg-max."""

from __future__ import annotations

import math
from typing import cast

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.registry import lowers
from securemodel.compiler.lower.tournament import tournament

aten = torch.ops.aten


@lowers(aten.relu.default)
def relu(g: Builder, x):
    """max(x, 0)."""
    return g.relu(x)


def _bound(g: Builder, number: float | None, no_bound: float) -> float | None:
    """A bound that values reach; None where all are within it. Raises CannotLower where all are beyond it."""
    if number is None or number * no_bound > g.most:
        return None
    if not abs(number) <= g.most:
        raise CannotLower(f"the bound {number}, which all values are beyond", "use a bound that values reach")
    return number


def clipped(g: Builder, x: Value, low, high) -> Value:
    """min(max(x, low), high) = low + relu(x - low) - relu(x - high), or high where low is above it; an infinite or huge
    number is no bound.
    """
    if isinstance(low, Value) or isinstance(high, Value):
        for bound, pick in ((low, g.maximum), (high, g.minimum)):
            if bound is not None:
                value = isinstance(bound, Value)
                x = (
                    pick(x, g.bound(bound))
                    if value
                    else clipped(g, x, *((bound, None) if pick == g.maximum else (None, bound)))
                )
        return x
    low = _bound(g, low, -1)
    high = _bound(g, high, 1)
    if low is not None and high is not None and low > high:
        return g.offset(g.linear("scale", x, factor=0), high)
    if low is None and high is None:
        return x
    above = None if high is None else g.relu(g.offset(x, -high), or_zero=False)
    if low is None:
        out = g.rescale(x)
    else:
        out = g.offset(g.relu(g.offset(x, -low)), low)
    return out if above is None else g.sub(out, above)


@lowers(aten.hardtanh.default)
def hardtanh(g: Builder, x, low=-1.0, high=1.0):
    """Clipping to [low, high]."""
    return clipped(g, x, low, high)


@lowers(aten.relu6.default)
def relu6(g: Builder, x):
    """Clipping to [0, 6]."""
    return clipped(g, x, 0.0, 6.0)


@lowers(aten.clamp.default)
def clamp(g: Builder, x, low=None, high=None):
    """Clipping to public bounds."""
    return clipped(g, x, low, high)


@lowers(aten.clamp_min.default)
def clamp_min(g: Builder, x, low):
    """max(x, low) for a public number; a root is not below 0, or what is rounded to it."""
    return x if ("root of", x.id) in g.notes and low * 2.0**g.frac_bits < 0.5 else clipped(g, x, low, None)


@lowers(aten.clamp_max.default)
def clamp_max(g: Builder, x, high):
    """min(x, high) for a public number."""
    return clipped(g, x, None, high)


@lowers(aten.leaky_relu.default)
def leaky_relu(g: Builder, x, slope=0.01):
    """slope x + (1 - slope) relu(x)."""
    x, small = g.rescale(x), g.constant(torch.tensor(slope, dtype=torch.float64))
    return g.add(g.mul(x, small), g.scale(g.relu(x), 1 - slope))  # both with 2 frac_bits: their sum truncates nothing


@lowers(aten.rrelu.default)
def rrelu(g: Builder, x, lower=1 / 8, upper=1 / 3, training=False, generator=None):
    """Leaky ReLU with the mean of the bounds, as at evaluation."""
    if training:
        raise CannotLower("random slopes in training mode", "call model.eval() before compiling")
    return leaky_relu(g, x, (lower + upper) / 2)


@lowers(aten.prelu.default, aten._prelu_kernel.default)
def prelu(g: Builder, x, weight):
    """relu(x) + w (x - relu(x)), with one slope or one per channel."""
    if weight.shape != () and weight.shape != (1,) and weight.ndim == 1:
        shape = (weight.shape[0],) + (1,) * (x.ndim - 2)
        weight = g.float(torch.reshape, weight, shape, shape=shape) if not weight.secret else g.reshape(weight, shape)
    x = g.rescale(x)
    positive = g.relu(x)
    return g.add(positive, g.mul(g.sub(x, positive), weight))


@lowers(aten.argmax.default)
def argmax(g: Builder, x, dim=None, keepdim=False):
    """Index of the largest value (the first of equals)."""
    return argmax_with_value(g, x, dim, keepdim)[1]


def argmax_with_value(g: Builder, x: Value, dim: int | None, keepdim: bool) -> tuple[Value, Value]:
    """(largest value, its index: the first of equals)."""
    if dim is None:
        out_shape = [1] * x.ndim if keepdim else []
        x, dim = g.reshape(x, (math.prod(x.shape),)), 0
    else:
        dim %= x.ndim
        out_shape = [1 if i == dim else s for i, s in enumerate(x.shape) if keepdim or i != dim]
    values, indices = tournament(g, x, dim, True)
    return g.reshape(values, out_shape), g.reshape(cast(Value, indices), out_shape)
