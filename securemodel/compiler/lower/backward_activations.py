"""Gradients of activations, from the comparisons and values of the forward, which are made once."""

from __future__ import annotations

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.registry import RECOMPUTING, lowers
from securemodel.compiler.lower.smooth import above, log_sigmoid, smooth

aten = torch.ops.aten


def _times(g: Builder, dy: Value, slope: Value) -> Value:
    return g.mul(dy, slope) if dy.secret else g.mul(slope, dy)


@lowers(aten.threshold_backward.default)
def threshold_backward(g: Builder, dy, x, threshold):
    """dy where x is above a threshold; at 0 the forward's comparison."""
    return g.select(g.sign(g.offset(x, -threshold), True), g.rescale(dy), invert=True)


def _between(g: Builder, below: Value, above: Value) -> Value:
    """The bit below > 0 > above, where one follows from the other's opposite: of x - low and x - high, for low < high."""
    return g.either(g.sign(below, True), g.sign(above))


@lowers(aten.hardtanh_backward.default)
def hardtanh_backward(g: Builder, dy, x, low, high):
    """dy where low < x < high."""
    return g.select(_between(g, g.offset(x, -low), g.offset(x, -high)), g.rescale(dy))


@lowers(aten.softshrink_backward.default, aten.hardshrink_backward.default)
def shrink_backward(g: Builder, dy, x, lambd):
    """dy where x > lambda or x < -lambda."""
    dy = g.rescale(dy)
    above = g.select(g.sign(g.offset(x, -lambd), True), dy, invert=True)
    return g.add(above, g.select(g.sign(g.offset(x, lambd)), dy))


@lowers(aten.hardsigmoid_backward.default)
def hardsigmoid_backward(g: Builder, dy, x):
    """dy / 6 where -3 < x < 3."""
    shifted = g.offset(x, 3.0)
    return g.scale(g.select(_between(g, shifted, g.offset(shifted, -6.0)), g.rescale(dy)), 1 / 6)


@lowers(aten.hardswish_backward.default)
def hardswish_backward(g: Builder, dy, x):
    """dy (2 x + 3) / 6 where -3 < x < 3; 0 below, dy above."""
    shifted = g.offset(x, 3.0)
    above = g.offset(shifted, -6.0)
    inside = g.select(_between(g, shifted, above), g.offset(g.scale(g.rescale(x), 1 / 3), 0.5))
    return _times(g, dy, g.rescale(g.add(inside, g.bit_to_ring(g.sign(above), invert=True))))


@lowers(aten.leaky_relu_backward.default)
def leaky_relu_backward(g: Builder, dy, x, slope, is_result):
    """dy where x is above zero, else slope dy."""
    dy = g.rescale(dy)
    above = g.select(g.sign(x, True), dy, invert=True)
    small = g.constant(torch.tensor(slope, dtype=torch.float64))
    return g.add(g.mul(dy, small), g.scale(above, 1 - slope))


@lowers(aten._prelu_kernel_backward.default)
def prelu_backward(g: Builder, dy, x, weight):
    """Gradients of x above zero and w x elsewhere, by x and for each element by w."""
    x, dy = g.rescale(x), g.rescale(dy)
    at_most = g.sign(x, True)
    above = g.select(at_most, dy, invert=True)
    below = g.sub(dy, above)
    return g.add(above, _times(g, below, weight)), g.mul(dy, g.sub(x, g.relu(x)))


@lowers(aten.elu_backward.default)
def elu_backward(g: Builder, dy, alpha, scale, input_scale, is_result, x):
    """scale dy above zero, elsewhere scale alpha input_scale exp(input_scale x) dy."""
    if is_result:
        raise CannotLower("the gradient of an activation in place", "use inplace=False")
    slope = scale * alpha * input_scale
    factor = g.offset(g.scale(smooth(g, "expm1_below_zero", g.scale(x, input_scale)), slope), slope)
    if slope != scale:
        factor = g.add(factor, g.scale(g.bit_to_ring(g.sign(x, True), invert=True), scale - slope))
    return _times(g, dy, g.rescale(factor))


@lowers(aten.sigmoid_backward.default)
def sigmoid_backward(g: Builder, dy, y):
    """dy y (1 - y)."""
    return _times(g, dy, g.rescale(g.sub(y, g.square(y))))


@lowers(aten.tanh_backward.default)
def tanh_backward(g: Builder, dy, y):
    """dy (1 - y^2)."""
    return _times(g, dy, g.rescale(g.offset(g.linear("neg", g.square(y)), 1.0)))


@lowers(aten.gelu_backward.default)
def gelu_backward(g: Builder, dy, x, approximate="none"):
    """dy times the derivative of GELU."""
    return _times(g, dy, smooth(g, "gelu_slope" if approximate == "none" else "gelu_tanh_slope", x))


@lowers(aten.silu_backward.default)
def silu_backward(g: Builder, dy, x):
    """dy times the derivative of x sigmoid(x)."""
    return _times(g, dy, smooth(g, "silu_slope", x))


@lowers(aten.mish_backward.default)
def mish_backward(g: Builder, dy, x):
    """dy times the derivative of x tanh(softplus(x))."""
    return _times(g, dy, smooth(g, "mish_slope", x))


@lowers(aten.softplus_backward.default)
def softplus_backward(g: Builder, dy, x, beta, threshold):
    """dy sigmoid(beta x); dy where beta x is above the threshold."""
    scaled = g.scale(x, beta)
    slope = smooth(g, "sigmoid", scaled)
    if threshold < 12.0:
        slope = g.add(slope, g.select(above(g, scaled, threshold), g.offset(g.linear("neg", slope), 1.0)))
    return _times(g, dy, slope)


@lowers(aten.log_sigmoid_forward.default)
def log_sigmoid_forward(g: Builder, x):
    """log(sigmoid(x)); its further result is not for reading."""
    return (log_sigmoid(g, x),)


RECOMPUTING.add(aten.log_sigmoid_backward.default)


@lowers(aten.log_sigmoid_backward.default)
def log_sigmoid_backward(g: Builder, dy, x, buffer):
    """dy sigmoid(-x)."""
    return _times(g, dy, smooth(g, "sigmoid", g.linear("neg", x)))
