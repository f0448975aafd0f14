"""Discrete Fourier transforms of secrets: products with public matrices.

A transform of n points is one product with a matrix of cosines and sines, each on the grid of 2^-frac_bits: with parts up
to m, each result is off by at most n m 2^-16 and a rounding at 16 fractional bits; typically by the root of n in place of n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from securemodel.compiler.builder import CannotLower, Complex
from securemodel.compiler.lower.complexes import Real, rule

aten = torch.ops.aten

MOST_POINTS = 4096
_GRID = 2.0**24  # machines that differ in the last digits get equal matrices


def fourier_matrix(n: int, sign: int, given: str, wanted: str) -> torch.Tensor:
    """The matrix M of a transform x M of n points, exp(sign 2 pi i j k / n), for parts side by side on the last axis.

    `given` and `wanted`: "real" (n numbers), "complex" (n real parts, then n imaginary ones) or "half" (those of the
    n // 2 + 1 lowest frequencies of a real signal). float64 [of given, of wanted]
    """
    many = {"real": n, "complex": n, "half": n // 2 + 1}
    j, k = torch.arange(many[given], dtype=torch.int64)[:, None], torch.arange(many[wanted], dtype=torch.int64)
    angle = 2 * math.pi / n * (j * k % n).double()
    cos, sin = (((f(angle) * _GRID).round() / _GRID) for f in (torch.cos, torch.sin))
    sin = sign * sin
    if given == "half":  # the others are conjugates of these
        twice = torch.where((2 * j) % n == 0, 1.0, 2.0)
        cos, sin = twice * cos, twice * sin
    top = cos if wanted == "real" else torch.cat([cos, sin], 1)
    bottom = -sin if wanted == "real" else torch.cat([-sin, cos], 1)
    return top if given == "real" else torch.cat([top, bottom], 0)


def _along(real: Real, x: Any, dim: int, n: int, sign: int, given: str, wanted: str) -> Any:
    """A transform along one axis."""
    if n > MOST_POINTS:
        raise CannotLower(f"a Fourier transform of {n} points", f"transform at most {MOST_POINTS}, or pieces (stft)")
    parts = [real(aten.transpose.int, p, dim, -1) for p in ((x.re, x.im) if isinstance(x, Complex) else (x,))]
    joined = parts[0] if len(parts) == 1 else real(aten.cat.default, parts, -1)
    rows, columns = (n if kind == "real" else 2 * (n if kind == "complex" else n // 2 + 1) for kind in (given, wanted))
    matrix = real.g.float(fourier_matrix, n, sign, given, wanted, shape=(rows, columns))
    made = real(aten.matmul.default, joined, matrix)
    if wanted == "real":
        return real(aten.transpose.int, made, dim, -1)
    halves = [real(aten.slice.Tensor, made, -1, at, at + columns // 2) for at in (0, columns // 2)]
    return Complex(*(real(aten.transpose.int, p, dim, -1) for p in halves))


def _normalized(real: Real, x: Any, sizes: Sequence[int], normalization: int) -> Any:
    """x, divided by the root of the number of points (1), or by it (2)."""
    points = math.prod(sizes)
    factor = (1.0, points**-0.5, 1.0 / points)[normalization]
    if isinstance(x, Complex):
        return Complex(*(real(aten.mul.Scalar, p, factor) for p in (x.re, x.im)))
    return real(aten.mul.Scalar, x, factor)


def _shape(x: Any) -> tuple[int, ...]:
    return x.re.shape if isinstance(x, Complex) else x.shape


@rule(aten._fft_c2c.default)
def _fft_c2c(real, x, dim, normalization, forward):
    shape = _shape(x)
    for d in dim:
        x = _along(real, x, d, shape[d], -1 if forward else 1, "complex", "complex")
    return _normalized(real, x, [shape[d] for d in dim], normalization)


@rule(aten._fft_r2c.default)
def _fft_r2c(real, x, dim, normalization, onesided):
    shape = _shape(x)
    *others, last = dim
    x = _along(real, x, last, shape[last], -1, "real", "half" if onesided else "complex")
    for d in others:
        x = _along(real, x, d, shape[d], -1, "complex", "complex")
    return _normalized(real, x, [shape[d] for d in dim], normalization)


@rule(aten._fft_c2r.default)
def _fft_c2r(real, x, dim, normalization, last_dim_size):
    *others, last = dim
    sizes = [*(_shape(x)[d] for d in others), last_dim_size]
    for d, size in zip(others, sizes, strict=False):
        x = _along(real, x, d, size, 1, "complex", "complex")
    return _normalized(real, _along(real, x, last, last_dim_size, 1, "half", "real"), sizes, normalization)
