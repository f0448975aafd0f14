"""Powers, products along axes, and what follows from exp and log.

Whole powers are squarings. A power r in (-1, 1/2] works on the scaled form of positive.py, x = y / s with y in
[1, 16): x^r = y^r s^-r, where y^r is a spline fitted for r. For r > 0 it is y times the spline for r - 1: 0 at 0.
"""

from __future__ import annotations

import functools
import math
from typing import cast

import torch

from securemodel.compiler.approximations import Smooth
from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.activation import clipped
from securemodel.compiler.lower.arithmetic import axes, running, square
from securemodel.compiler.lower.positive import (
    argument,
    highest,
    log,
    reciprocal,
    reciprocal_positive,
    rsqrt,
    scaled,
    sqrt,
)
from securemodel.compiler.lower.registry import lowers
from securemodel.compiler.lower.smooth import exp, logaddexp, spline, table_of

aten = torch.ops.aten

_LARGEST = 64


def whole_power(g: Builder, x: Value, exponent: int) -> Value:
    """x to a positive whole power, by squaring."""
    result: Value | None = None
    base = x
    while exponent:
        if exponent & 1:
            result = base if result is None else g.mul(result, base)
        exponent >>= 1
        base = g.square(base) if exponent else base
    return cast(Value, result)


@functools.cache
def _fit(exponent: float) -> Smooth:
    return Smooth(f"power {exponent}", lambda y: y**exponent, 1.0, 16.0, 4, 2**-14)


def root(g: Builder, x: Value, exponent: float) -> Value:
    """x^exponent for -1 < exponent < 1 and positive x below 2^30; 0 at 0 for positive exponents."""
    if abs(exponent) == 0.5:
        return sqrt(g, x) if exponent > 0 else rsqrt(g, x)
    if exponent > 0.5:  # the scale's powers would be too small for their fractional bits
        return g.mul(g.rescale(sqrt(g, x)), g.rescale(root(g, x, exponent - 0.5)))
    of = argument(g, x)
    g.domain(of.value, of.lowest, highest(g), "pow", or_zero=exponent > 0)
    parts, fit = scaled(g, of), _fit(exponent if exponent < 0 else exponent - 1)
    y = g.rescale(parts.y)
    made = spline(g, table_of(g, fit), y)
    if exponent > 0:
        made = g.rescale(g.mul(y, made))
    return g.mul(made, parts.of_scale(g, lambda e: of.factor**exponent * 2.0 ** (-e * exponent)))


@lowers(aten.pow.Tensor_Scalar)
def power(g: Builder, x, exponent):
    """x to a public power; x must be positive where the power is not whole."""
    exponent = float(exponent)
    if not abs(exponent) <= _LARGEST:
        raise CannotLower(f"the power {exponent} is above {_LARGEST}", "scale the values, and take a smaller power")
    if exponent == 0:
        return g.float(torch.ones, x.shape, shape=x.shape)
    whole, rest = int(abs(exponent)), abs(exponent) % 1
    if not whole:
        return root(g, x, exponent)
    base = x if exponent > 0 else g.rescale((reciprocal_positive if rest else reciprocal)(g, x))
    product = whole_power(g, base, whole)
    return g.mul(g.rescale(product), g.rescale(root(g, x, math.copysign(rest, exponent)))) if rest else product


@lowers(aten.pow.Scalar)
def power_of_number(g: Builder, base, x):
    """A positive public number to the power of a secret: exp(x log base), on the domain of exp."""
    if base <= 0:
        raise CannotLower(f"powers of {base}", "use a positive base")
    return exp(g, g.scale(x, math.log(base)))


@lowers(aten.pow.Tensor_Tensor)
def power_of_tensor(g: Builder, x, y):
    """x^y = exp(y log x) for positive x; where one party owns x, it takes the logarithm in the clear."""
    logarithm = log(g, x) if x.secret else g.pointwise(torch.log, x)
    return exp(g, g.mul(*((logarithm, y) if x.secret else (y, logarithm))))


_LOG_OF_0 = -1024.0  # below all others, and with room for products


def _log(x: torch.Tensor, least: float) -> torch.Tensor:
    return torch.log(x).clamp(min=least)


@lowers(aten.xlogy.Tensor, aten.xlogy.Scalar_Self, aten.xlogy.Scalar_Other)
def xlogy(g: Builder, x, y):
    """x log(y), and 0 for x = 0, whatever y is; where one party owns y, it takes the logarithm in the clear."""
    if not isinstance(y, Value):
        return g.scale(x, math.log(y) if y > 0 else _LOG_OF_0)
    logarithm = log(g, y) if y.secret else g.float(_log, y, _LOG_OF_0, shape=y.shape)
    if not isinstance(x, Value):
        return g.scale(logarithm, x)
    return g.mul(*((x, logarithm) if x.secret else (logarithm, x)))


@lowers(aten.exp2.default)
def exp2(g: Builder, x):
    """2^x, on the domain of exp."""
    return power_of_number(g, 2.0, x)


@lowers(aten.log10.default)
def log10(g: Builder, x):
    """Logarithm to base 10, on the domain of log."""
    return g.scale(log(g, x), 1.0 / math.log(10.0))


@lowers(aten.logit.default)
def logit(g: Builder, x, eps=None):
    """log(x) - log(1 - x) for x in [2^-10, 1 - 2^-10], or clipped to [eps, 1 - eps]."""
    x = g.rescale(x) if eps is None else clipped(g, x, eps, 1.0 - eps)
    both = g.linear("cat", *[g.reshape(v, (1, *x.shape)) for v in (x, g.offset(g.linear("neg", x), 1.0))], dim=0)
    odds = log(g, both)
    return g.reshape(g.sub(g.slice(odds, 0, 0, 1), g.slice(odds, 0, 1, 2)), x.shape)


def _exponentials(g: Builder, x: Value) -> tuple[Value, Value]:
    """exp(x) and exp(-x) from one lookup: they share their openings."""
    powers = exp(g, g.linear("cat", *[g.reshape(v, (1, *x.shape)) for v in (x, g.linear("neg", x))], dim=0))
    rising, falling = (g.reshape(g.slice(powers, 0, i, i + 1), x.shape) for i in (0, 1))
    return rising, falling


@lowers(aten.sinh.default)
def sinh(g: Builder, x):
    """(exp(x) - exp(-x)) / 2 on the domain of exp."""
    return g.scale(g.sub(*_exponentials(g, x)), 0.5)


@lowers(aten.cosh.default)
def cosh(g: Builder, x):
    """(exp(x) + exp(-x)) / 2 on the domain of exp."""
    return g.scale(g.add(*_exponentials(g, x)), 0.5)


@lowers(aten.hypot.default)
def hypot(g: Builder, x, y):
    """Root of the sum of two squares, on the domain of sqrt."""
    return sqrt(g, g.add(square(g, x), square(g, y)))


@lowers(aten.prod.default, aten.prod.dim_int)
def prod(g: Builder, x, dim=None, keepdim=False, dtype=None):
    """Product along an axis, or of all elements: halves are multiplied, log n times."""
    shape = [s for i, s in enumerate(x.shape) if i not in axes(x, dim)]
    if keepdim:
        shape = [1 if i in axes(x, dim) else s for i, s in enumerate(x.shape)]
    x, dim = (g.reshape(x, (math.prod(x.shape),)), 0) if dim is None else (x, dim % x.ndim)
    while x.shape[dim] > 1:
        size, half = x.shape[dim], x.shape[dim] // 2
        rest = g.slice(x, dim, 2 * half, size) if size % 2 else None
        x = g.mul(g.slice(x, dim, 0, half), g.slice(x, dim, half, 2 * half))
        x = g.linear("cat", x, rest, dim=dim) if rest else x
    return g.reshape(x, shape)


@lowers(aten.logcumsumexp.default)
def logcumsumexp(g: Builder, x, dim):
    """Running log(sum(exp(x)))."""
    return running(g, functools.partial(logaddexp, g), g.rescale(x), dim)


@lowers(aten.cumprod.default)
def cumprod(g: Builder, x, dim, dtype=None):
    """Running product."""
    return running(g, g.mul, x, dim)
