"""Inverses of small secret matrices, and what is computed with them.

A general matrix is divided by its Frobenius norm and inverted by the iteration of Newton and Schulz, X (2 I - A X), which
needs no pivots and mends its own roundings (Higham 2008, Functions of Matrices, section 7.3). Solutions are then
refined with the matrix itself. The iterations are enough for matrices with |A| |A^-1| <= 2^10 in the Frobenius norm; what
is worse conditioned, or singular, gives a meaningless result, and nobody can see that it does.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.arithmetic import square
from securemodel.compiler.lower.layers import matmul, shaped
from securemodel.compiler.lower.layout import constant_pad, transpose
from securemodel.compiler.lower.positive import absolute, log, rsqrt, sign, times
from securemodel.compiler.lower.reflections import GUARD, MOST_REFLECTIONS, diagonal, reflections
from securemodel.compiler.lower.registry import Accuracy, decomposes, lowers

aten = torch.ops.aten

MOST_ROWS = 64
_STEPS = 24  # each doubles the smallest of the numbers that shall become 1, from 2^-20 on
_REFINED = 2
_FINER = 8  # more fractional bits of what is left to refine
_MOST_OF_MINORS = 5


def _rows(x: Value) -> int:
    """The size of square matrices. Raises CannotLower for large ones."""
    if x.shape[-1] > MOST_ROWS:
        raise CannotLower(f"a secret matrix of {x.shape[-1]} rows", f"use matrices of at most {MOST_ROWS} rows")
    return x.shape[-1]


def _turned(g: Builder, x: Value) -> Value:
    return transpose(g, x, -1, -2) if x.secret else g.float(_mt, x, shape=(*x.shape[:-2], x.shape[-1], x.shape[-2]))


def _mt(x: torch.Tensor) -> torch.Tensor:
    return x.mT


def _identity(g: Builder, rows: int, factor: float = 1.0) -> Value:
    return g.constant(torch.eye(rows, dtype=torch.float64) * factor)


def _inverse_of_scaled(g: Builder, a: Value) -> tuple[Value, Value]:
    """(X, t) with A^-1 = t X for t = 1 / |A|."""
    norm = rsqrt(g, g.linear("sum", square(g, a), dims=[a.ndim - 2, a.ndim - 1], keepdim=True))
    scaled = g.rescale(_times(g, a, norm))
    x, twice = _turned(g, scaled), _identity(g, _rows(a), 2.0)
    for _ in range(_STEPS):
        x = g.rescale(matmul(g, x, g.rescale(g.sub(twice, matmul(g, scaled, x)))))
    return x, norm


def _times(g: Builder, x: Value, factor: Value) -> Value:
    """x times an inverse root."""
    factor = g.linear("expand", factor, shape=list(torch.broadcast_shapes(x.shape, factor.shape)))
    return times(g, x, factor) or g.mul(factor, x)


def solved(g: Builder, a: Value, b: Value, factors: Sequence[Value] = ()) -> Value:
    """A^-1 B for square matrices A; where one party has A, it inverts it in the clear.

    `factors`: matrices whose product is A, more exact than A itself.
    """
    if not a.secret:
        return matmul(g, g.float(torch.linalg.inv, a, shape=a.shape), b)
    inverse, norm = _inverse_of_scaled(g, a)
    x = g.rescale(_times(g, matmul(g, inverse, b), norm))
    for _ in range(_REFINED):
        made = functools.reduce(lambda y, factor: matmul(g, factor, g.rescale(y)), reversed(factors or [a]), x)
        rest = g.rescale(g.ldexp(g.sub(b, made), _FINER))
        x = g.add(x, g.rescale(g.ldexp(_times(g, matmul(g, inverse, rest), norm), -_FINER)))
    return x


def _no_errors(g: Builder, a: Value) -> Value:
    """What torch reports of matrices that cannot be factored: nothing."""
    return g.integers(torch.zeros(a.shape[:-2], dtype=torch.int64))


_CONDITION = Accuracy(2.0**-14, domain="abs(A) abs(A^-1) ≤ 2^10, abs(A) < 2^15, abs(A^-1) ≤ 2^8 (Frobenius norms)")


_OF_FACTOR = replace(_CONDITION, absolute=2.0**-12)


@lowers(aten.linalg_inv_ex.default, accuracy=_CONDITION)
def inverse(g: Builder, a, check_errors=False):
    """Inverses of square matrices, and no errors."""
    return solved(g, a, _identity(g, _rows(a))), _no_errors(g, a)


@lowers(aten._linalg_solve_ex.default, accuracy=_CONDITION)
def solve(g: Builder, a, b, left=True, check_errors=False):
    """X with A X = B, or X A = B; without the factors, and without errors."""
    _rows(a)
    vector = b.ndim == 1 or (a.ndim - 1 == b.ndim and b.shape == a.shape[:-1])
    if vector:
        b = shaped(g, b, (*b.shape, 1))
    made = solved(g, a, b) if left else _turned(g, solved(g, _turned(g, a), _turned(g, b)))
    return g.reshape(made, made.shape[:-1]) if vector else made, "not computed", "not computed", _no_errors(g, a)


def _triangle(g: Builder, a: Value, upper: bool, unit: bool) -> Value:
    """What a triangular matrix is: zeros on the other side of the diagonal, ones on it if `unit`."""
    ones, offset = torch.ones(_rows(a), _rows(a), dtype=torch.int64), int(unit)
    kept = ones.triu(offset) if upper else ones.tril(-offset)
    part = g.mul(a, g.integers(kept)) if a.secret else g.pointwise(torch.mul, a, g.integers(kept))
    return g.add(part, _identity(g, _rows(a))) if unit else part


@lowers(aten.linalg_solve_triangular.default, accuracy=_CONDITION)
def solve_triangular(g: Builder, a, b, upper, left=True, unitriangular=False):
    """X with A X = B, or X A = B, for triangular A."""
    return solve(g, _triangle(g, a, upper, unitriangular), b, left)[0]


@lowers(aten.cholesky_solve.default, accuracy=_OF_FACTOR)
def cholesky_solve(g: Builder, b, factor, upper=False):
    """X with A X = B, of a Cholesky factor of A."""
    if not factor.secret:
        return solved(g, g.float(_squared, factor, upper, shape=factor.shape), b)
    triangle = _triangle(g, factor, upper, False)
    factors = (_turned(g, triangle), triangle) if upper else (triangle, _turned(g, triangle))
    return solved(g, g.rescale(matmul(g, *factors)), b, factors)


@lowers(aten.cholesky_inverse.default, accuracy=_OF_FACTOR)
def cholesky_inverse(g: Builder, factor, upper=False):
    """A^-1, of a Cholesky factor of A."""
    return cholesky_solve(g, _identity(g, _rows(factor)), factor, upper)


def _squared(factor: torch.Tensor, upper: bool) -> torch.Tensor:
    return factor.triu().mT @ factor.triu() if upper else factor.tril() @ factor.tril().mT


_DEFINITE = Accuracy(2.0**-10, domain="positive definite, abs(A) abs(A^-1) ≤ 2^8, abs(A) ≤ 2^6 (Frobenius norms)")


@lowers(aten.cholesky.default, accuracy=_DEFINITE)
def cholesky(g: Builder, a, upper=False):
    """The triangular L with A = L L^T, or its transpose: a column at a time, from the inverse root of its pivot."""
    rest, columns = _turned(g, a) if upper else a, []
    for done in range(_rows(a)):
        size, row = rest.shape[-1], rest.ndim - 2
        first = g.slice(rest, row + 1, 0, 1)
        column = g.rescale(_times(g, first, rsqrt(g, g.slice(first, row, 0, 1))))
        columns.append(constant_pad(g, column, [0, 0, done, 0]))
        below = g.slice(column, row, 1, size)
        inner = g.slice(g.slice(rest, row, 1, size), row + 1, 1, size)
        rest = g.sub(inner, matmul(g, below, _turned(g, below))) if size > 1 else rest
    made = g.linear("cat", *columns, dim=a.ndim - 1)
    return _turned(g, made) if upper else made


@lowers(aten.linalg_cholesky_ex.default, accuracy=_DEFINITE)
def cholesky_ex(g: Builder, a, upper=False, check_errors=False):
    """The triangular L with A = L L^T, or its transpose, and no errors."""
    return cholesky(g, a, upper), _no_errors(g, a)


@lowers(aten.linalg_matrix_exp.default, accuracy=Accuracy(2.0**-9, relative=2.0**-9, domain="abs(A) ≤ 8"))
def matrix_exp(g: Builder, a):
    """exp(A): Taylor's polynomial of degree 8 of A / 8 (Paterson and Stockmeyer 1973), squared three times."""
    product = lambda x, y: g.rescale(matmul(g, x, y))
    b = g.rescale(g.ldexp(a, -3))
    powers: list[Value | None] = [None, b, product(b, b)]
    powers.append(product(b, powers[2]))
    fourth = product(powers[2], powers[2])

    def polynomial(first: int, *others: Value | None) -> Value:
        out = _identity(g, _rows(a), 1 / math.factorial(first))
        for degree, power in enumerate(others, first):
            out = out if power is None else g.add(out, g.scale(power, 1 / math.factorial(degree)))
        return out

    out = g.add(polynomial(0, *powers), matmul(g, fourth, g.rescale(polynomial(4, *powers, fourth))))
    for _ in range(3):
        out = product(g.rescale(out), g.rescale(out))
    return out


@lowers(aten._linalg_det.default)
def determinant(g: Builder, a):
    """The determinant, by expansion of one row after the other; of 6 to 17 rows, the diagonal that reflections make.

    That is off by 2^-10 |A|^n or less.
    """
    size = a.shape[-1]
    if size > _MOST_OF_MINORS:
        entries, turned = _reflected(g, a)
        product = functools.reduce(lambda x, y: g.rescale(g.mul(x, y)), entries)
        return g.reshape(g.mul(product, turned), a.shape[:-2]), "not computed", "not computed"
    entry = lambda row, column: g.slice(g.slice(a, a.ndim - 2, row, row + 1), a.ndim - 1, column, column + 1)
    minors: dict[tuple[int, ...], Value] = {(column,): entry(size - 1, column) for column in range(size)}
    for row in reversed(range(size - 1)):
        made: dict[tuple[int, ...], Value] = {}
        for columns in itertools.combinations(range(size), size - row):
            terms = [
                g.scale(g.mul(entry(row, c), g.rescale(minors[columns[:i] + columns[i + 1 :]])), (-1) ** i)
                for i, c in enumerate(columns)
            ]
            made[columns] = functools.reduce(g.add, terms)
        minors = made
    return g.reshape(minors[tuple(range(size))], a.shape[:-2]), "not computed", "not computed"


def _reflected(g: Builder, a: Value) -> tuple[list[Value], Value]:
    """(Numbers [..., 1, 1] whose product is the determinant but for a sign, and that: -1 or 1)."""
    try:
        of = reflections(g, a)
    except CannotLower as refused:
        reason = f"the determinant of a secret matrix of {a.shape[-1]} rows"
        raise CannotLower(reason, f"use at most {MOST_REFLECTIONS + 1} rows, or torch.linalg.cholesky") from refused
    entries, turned = diagonal(g, of)
    norm = g.rescale(of.norm)
    return [g.rescale(g.ldexp(g.mul(g.rescale(entry), norm), -GUARD)) for entry in entries], turned


@lowers(aten._linalg_slogdet.default)
def sign_and_logarithm(g: Builder, a):
    """The sign of the determinant and the logarithm of its magnitude, for matrices as above."""
    if a.shape[-1] > _MOST_OF_MINORS:
        entries, turned = _reflected(g, a)
        every = g.linear("cat", *entries, dim=a.ndim - 1)
        signs = functools.reduce(g.mul, [sign(g, entry) for entry in entries], turned)
        total = g.linear("sum", log(g, absolute(g, every)), dims=[a.ndim - 2, a.ndim - 1], keepdim=False)
        return g.reshape(signs, a.shape[:-2]), total, "not computed", "not computed"
    made = determinant(g, a)[0]
    return sign(g, made), log(g, absolute(g, made)), "not computed", "not computed"


@decomposes(aten.logdet.default)
def logdet(a):
    """The logarithm of a positive determinant."""
    return torch.linalg.slogdet(a)[1]
