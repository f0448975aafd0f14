"""Smooth activations and functions, by the splines of securemodel.compiler.approximations."""

from __future__ import annotations

import math

import torch

from securemodel.compiler.approximations import SMOOTH, Smooth, center_of, coarser, from_zero, pieces
from securemodel.compiler.builder import SPLINE_BITS, Builder, CannotLower, Value
from securemodel.compiler.lower.activation import clipped
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten


def table_of(g: Builder, fit: Smooth) -> tuple[Smooth, str]:
    """A function for one more table, of as many pieces as was chosen for it, and the table's number and function."""
    number = g.tables
    g.tables += 1
    made = coarser(fit, g.halved[number]) if g.halved.get(number) else fit
    if made is None:
        raise CannotLower(f"{fit.name} by a table that is halved {g.halved[number]} times", "tune again")
    return made, f"{number} {fit.name}"


def spline(g: Builder, table: tuple[Smooth, str], x: Value, factor: float = 1.0, shift: float = 0.0) -> Value:
    """factor f(x) + shift for x inside the domain of f, with frac_bits fractional bits; meaningless outside."""
    (fit, name), (low, high) = table, SPLINE_BITS
    if not low <= g.frac_bits <= high:
        reason = f"a function by splines, with frac_bits = {g.frac_bits}"
        raise CannotLower(reason, f"compile with frac_bits from {low} to {high}")
    made = pieces(fit, g.frac_bits, g.exact, factor, shift)
    z, made = (g.offset(x, -fit.low), made) if g.exact else (x, from_zero(made, fit))
    value = g.spline(z, made, fit.step_bits)
    g.tabled(value, name)
    return g.rescale(value)


def smooth(g: Builder, name: str, x: Value, factor: float = 1.0) -> Value:
    """A function of `approximations.SMOOTH`, of factor x, for a positive factor.

    The pieces repeat with the table's period, so they are looked up for any argument, while two comparisons of x find out
    whether it is inside of the domain.
    """
    table = fit, _ = table_of(g, SMOOTH[name])
    center = 0.0 if g.exact else center_of(fit, g.frac_bits)
    value = g.offset(spline(g, table, g.scale(x, factor), shift=-center), center)
    grid_bits, inside = (fit.grid_bits, 2.0**-fit.grid_bits) if fit.wide and not g.exact else (None, 0.0)
    if grid_bits is not None:
        grid_bits += math.ceil(math.log2(factor))
    below = g.is_negative(g.offset(x, (-fit.low - inside) / factor), grid_bits=grid_bits)
    if fit.above is None:
        out = g.select(below, value, invert=True)
    else:
        not_above = g.is_negative(g.offset(x, -fit.high / factor), grid_bits=grid_bits)
        out = g.select(g.either(below, not_above), value)
        if fit.slope:
            out = g.add(out, g.scale(g.select(not_above, g.rescale(x), invert=True), fit.slope * factor))
        if fit.above:
            out = g.add(out, g.scale(g.bit_to_ring(not_above, invert=True), fit.above))
    return g.add(out, g.scale(g.bit_to_ring(below), fit.below)) if fit.below else out


@lowers(aten.sigmoid.default)
def sigmoid(g: Builder, x):
    """1 / (1 + exp(-x))."""
    return smooth(g, "sigmoid", x)


@lowers(aten.tanh.default)
def tanh(g: Builder, x):
    """Hyperbolic tangent."""
    return smooth(g, "tanh", x)


@lowers(aten.erf.default)
def erf(g: Builder, x):
    """Error function."""
    return smooth(g, "erf", x)


@lowers(aten.erfc.default)
def erfc(g: Builder, x):
    """1 - erf(x)."""
    return g.offset(g.linear("neg", erf(g, x)), 1.0)


@lowers(aten.gelu.default)
def gelu(g: Builder, x, approximate="none"):
    """x times the normal distribution function, exactly or by its tanh form."""
    return smooth(g, "gelu" if approximate == "none" else "gelu_tanh", x)


@lowers(aten.silu.default)
def silu(g: Builder, x):
    """x sigmoid(x)."""
    return smooth(g, "silu", x)


@lowers(aten.mish.default)
def mish(g: Builder, x):
    """x tanh(softplus(x))."""
    return smooth(g, "mish", x)


@lowers(aten.softplus.default)
def softplus(g: Builder, x, beta=1.0, threshold=20.0):
    """log(1 + exp(beta x)) / beta; x where beta x is above the threshold."""
    scaled = g.scale(x, beta)
    out = g.scale(smooth(g, "softplus", scaled), 1.0 / beta)
    if threshold >= _STRAIGHT:
        return out
    return g.add(out, g.select(above(g, scaled, threshold), g.sub(g.rescale(x), out)))


_STRAIGHT = 12.0  # from here on, softplus(x) - x is less than half a unit


def above(g: Builder, x: Value, threshold: float) -> Value:
    """The secret bit x > threshold."""
    return g.is_negative(g.linear("neg", g.offset(x, -threshold)))


@lowers(aten.log_sigmoid.default)
def log_sigmoid(g: Builder, x):
    """log(sigmoid(x)) = -softplus(-x)."""
    return g.linear("neg", softplus(g, g.linear("neg", x)))


@lowers(aten.logaddexp.default)
def logaddexp(g: Builder, x, y):
    """log(exp(x) + exp(y)) = y + softplus(x - y)."""
    return g.add(g.rescale(y) if y.secret else y, softplus(g, g.sub(x, y)))


@lowers(aten.elu.default)
def elu(g: Builder, x, alpha=1.0, scale=1.0, input_scale=1.0):
    """scale x above zero, scale alpha (exp(input_scale x) - 1) below: ELU, CELU and SELU."""
    if input_scale <= 0:
        raise CannotLower(f"an input scale of {input_scale}", "use a positive one")
    below = smooth(g, "expm1_below_zero", g.scale(x, input_scale))
    return g.add(g.scale(g.relu(x), scale), g.scale(below, scale * alpha))


@lowers(aten.celu.default)
def celu(g: Builder, x, alpha=1.0):
    """max(x, 0) + min(alpha (exp(x / alpha) - 1), 0)."""
    return elu(g, x, alpha, 1.0, 1.0 / alpha)


@lowers(aten.selu.default)
def selu(g: Builder, x):
    """ELU with the constants of self-normalizing networks (Klambauer et al. 2017)."""
    return elu(g, x, 1.6732632423543772, 1.0507009873554805)


@lowers(aten.exp.default)
def exp(g: Builder, x):
    """exp below 20.79 = log(2^30): the square of 4 (exp(x / 2) / 4), which a spline has room for; 0 below -10.75."""
    g.domain(x, -math.inf, 30 * math.log(2.0), "exp")
    return g.ldexp(g.square(smooth(g, "root_of_exp", x)), 4)


@lowers(aten.expm1.default)
def expm1(g: Builder, x):
    """exp(x) - 1, on the domain of exp."""
    return g.offset(exp(g, x), -1.0)


@lowers(aten.hardsigmoid.default)
def hardsigmoid(g: Builder, x):
    """relu6(x + 3) / 6."""
    return g.scale(clipped(g, g.offset(x, 3.0), 0.0, 6.0), 1 / 6)


@lowers(aten.hardswish.default)
def hardswish(g: Builder, x):
    """x relu6(x + 3) / 6."""
    product = g.mul(g.rescale(x), clipped(g, g.offset(x, 3.0), 0.0, 6.0))
    return g.scale(g.scale(g.rescale(product), 8 / 6), 1 / 8)  # 8/6 gets one more significant bit than 1/6
