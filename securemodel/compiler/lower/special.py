"""Inverses of hyperbolic functions and of the error function, logarithms of the gamma function, signs."""

from __future__ import annotations

import math

import torch

from securemodel.compiler.approximations import Smooth
from securemodel.compiler.builder import Builder, Value
from securemodel.compiler.lower.positive import log, reciprocal_positive, signed, sqrt
from securemodel.compiler.lower.registry import Accuracy, decomposes, lowers
from securemodel.compiler.lower.smooth import spline, table_of

aten = torch.ops.aten

_LARGE = 14  # bits of a number from which on the root of x^2 + 1 is x, where the width has room for its square
_ABOVE = 15.75


def _quantile_factor(w: torch.Tensor) -> torch.Tensor:
    """erfinv(x) / x for w = -log(1 - x^2)."""
    root = torch.sqrt(-torch.expm1(-w.clamp(min=2.0**-20)))
    return torch.erfinv(root) / root


ERROR_INVERSE = Smooth("erfinv", _quantile_factor, 0.0, 11.75, 4, 2**-17)
LOG_GAMMA = Smooth("lgamma", lambda x: torch.lgamma(x + 1), 0.0, _ABOVE, 4, 2**-15)
DIGAMMA = Smooth("digamma", lambda x: torch.digamma(x + 1), 0.0, _ABOVE, 4, 2**-13)


def _split(g: Builder, size: Value) -> tuple[Value, Value]:
    """(the part of a magnitude whose square has room, what is more)."""
    large = min(_LARGE, (g.width - 2 - g.frac_bits) // 2)
    more = g.relu(g.offset(size, 1 - 2.0**large))
    return g.sub(size, more), more


@lowers(aten.asinh.default, accuracy=Accuracy(2.0**-10, domain="abs(x) < 2^29"))
def asinh(g: Builder, x):
    """log(|x| + root of (x^2 + 1)), with the sign of x."""
    size, sign = signed(g, x)
    low, more = _split(g, size)
    root = g.add(g.rescale(sqrt(g, g.offset(g.square(low), 1.0))), more)
    return g.mul(g.rescale(log(g, g.add(size, root))), sign)


@lowers(aten.acosh.default, accuracy=Accuracy(2.0**-10, domain="1 ≤ x < 2^29"))
def acosh(g: Builder, x):
    """log(x + root of (x - 1) (x + 1))."""
    x = g.rescale(x)
    g.domain(x, 1.0, 2.0**29, "acosh")
    low, more = _split(g, x)
    root = g.add(g.rescale(sqrt(g, g.mul(g.offset(low, -1.0), g.offset(low, 1.0)))), more)
    return log(g, g.add(x, root))


@lowers(aten.atanh.default, accuracy=Accuracy(2.0**-11, domain="abs(x) ≤ 1 - 2^-16"))
def atanh(g: Builder, x):
    """(log(1 + x) - log(1 - x)) / 2."""
    x = g.rescale(x)
    sides = [g.reshape(g.offset(v, 1.0), (1, *x.shape)) for v in (x, g.linear("neg", x))]
    both = log(g, g.linear("cat", *sides, dim=0))
    return g.scale(g.reshape(g.sub(g.slice(both, 0, 0, 1), g.slice(both, 0, 1, 2)), x.shape), 0.5)


@lowers(aten.erfinv.default, accuracy=Accuracy(2.0**-12, domain="abs(x) ≤ 1 - 2^-16"))
def erfinv(g: Builder, x):
    """Inverse of the error function: x times a function of -log((1 - x) (1 + x)) (Giles 2010, section 2)."""
    x = g.rescale(x)
    rest = log(g, g.mul(g.offset(g.linear("neg", x), 1.0), g.offset(x, 1.0)))
    return g.mul(spline(g, table_of(g, ERROR_INVERSE), g.relu(g.linear("neg", rest))), x)


@decomposes(aten.special_ndtri.default)
def ndtri(p):
    """Quantiles of the normal distribution, by erfinv."""
    return math.sqrt(2.0) * torch.erfinv(2 * p - 1)


@lowers(aten.lgamma.default, accuracy=Accuracy(2.0**-10, relative=2.0**-10, domain="2^-16 ≤ x < 2^24"))
def lgamma(g: Builder, x):
    """log(gamma(x)): below 15.75 that of x + 1, less log(x); above, Stirling's formula."""
    x = g.rescale(x)
    g.domain(x, 2.0**-g.frac_bits, 2.0**24, "lgamma")
    logarithm, below = g.rescale(log(g, x)), g.is_negative(g.offset(x, -_ABOVE))
    large = g.offset(g.sub(g.rescale(g.mul(g.offset(x, -0.5), logarithm)), x), math.log(2 * math.pi) / 2)
    return g.add(large, g.select(below, g.sub(g.sub(spline(g, table_of(g, LOG_GAMMA), x), logarithm), large)))


@lowers(aten.digamma.default, accuracy=Accuracy(2.0**-10, relative=2.0**-10, domain="2^-16 ≤ x < 2^30"))
def digamma(g: Builder, x):
    """The derivative of log(gamma(x)): below 15.75 that at x + 1, less 1 / x; above, its asymptotic series."""
    x = g.rescale(x)
    inverse, below = g.rescale(reciprocal_positive(g, x)), g.is_negative(g.offset(x, -_ABOVE))
    large = g.sub(g.rescale(log(g, x)), g.scale(inverse, 0.5))
    return g.add(large, g.select(below, g.sub(g.sub(spline(g, table_of(g, DIGAMMA), x), inverse), large)))


@lowers(aten.signbit.default)
def signbit(g: Builder, x):
    """Whether x is below 0; there is no negative zero."""
    return g.bit_to_ring(g.is_negative(x))


def _sign(x: torch.Tensor) -> torch.Tensor:
    return torch.copysign(torch.ones_like(x, dtype=torch.float32), x)


@lowers(aten.copysign.Tensor, aten.copysign.Scalar)
def copysign(g: Builder, x, y):
    """|x| with the sign of y, that of 0 being positive."""
    if not isinstance(y, Value):
        return g.scale(signed(g, x)[0], math.copysign(1.0, y))
    size = signed(g, x)[0] if x.secret else g.pointwise(torch.abs, x)
    sign = signed(g, y)[1] if y.secret else g.float(_sign, y, shape=y.shape)
    return g.mul(*((size, sign) if size.secret else (sign, size)))


@decomposes(aten.ldexp.Tensor)
def ldexp(x, exponent):
    """x 2^exponent."""
    return x * torch.exp2(exponent.float() if not exponent.is_floating_point() else exponent)
