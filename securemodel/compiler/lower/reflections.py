"""QR factors of small secret matrices by reflections, and what follows from them.

The matrix is divided by its Frobenius norm first. Each column but the last of a square is reflected onto its first
element as LAPACK's geqrf does it (Golub and Van Loan 2013, section 5.1): with r the length of the column and a its first
element, H = I - w w^T for w = (x + sign(a) r e) / sqrt(r^2 + r |a|), so that no sum cancels. A column that has zeros below
its first element is left as it is, as LAPACK leaves it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.arithmetic import square
from securemodel.compiler.lower.layers import matmul
from securemodel.compiler.lower.layout import constant_pad, transpose
from securemodel.compiler.lower.positive import rsqrt, sqrt, times
from securemodel.compiler.lower.registry import Accuracy, lowers

aten = torch.ops.aten

MOST_REFLECTIONS = 16
GUARD = 5  # the norm of what is reflected, in bits: so many more digits


@dataclass(frozen=True)
class Reflections:
    """A = H_1 H_2 ... R of matrices m x n.

    `vectors`: w of each H, [..., m - k, 1]. `triangle`: R, [..., min(m, n), n], divided by `norm` / 2^GUARD. `skipped`: for
    each H the secret bit that it is none, as 0 or 1, [..., 1, 1].
    """

    vectors: tuple[Value, ...]
    triangle: Value
    norm: Value
    skipped: tuple[Value, ...]


def _block(g: Builder, x: Value, rows: tuple[int, int], columns: tuple[int, int]) -> Value:
    return g.slice(g.slice(x, x.ndim - 2, *rows), x.ndim - 1, *columns)


def _sum_of_squares(g: Builder, x: Value) -> Value:
    return g.linear("sum", square(g, x), dims=[x.ndim - 2, x.ndim - 1], keepdim=True)


def _by_root(g: Builder, x: Value, inverse: Value) -> Value:
    """x times an inverse root of one number for each matrix."""
    inverse = g.linear("expand", inverse, shape=list(torch.broadcast_shapes(x.shape, inverse.shape)))
    return times(g, x, inverse) or g.mul(inverse, x)


def _flipped(g: Builder, negative: Value, x: Value) -> Value:
    """x, or -x where the bit is set."""
    return g.sub(x, g.scale(g.select(negative, x), 2.0))


def _reflection(g: Builder, column: Value) -> tuple[Value, Value, Value]:
    """(w, what becomes of the first element, whether nothing is reflected) for columns [..., size, 1], size above 1."""
    size = column.shape[-2]
    first = _block(g, column, (0, 1), (0, 1))
    below = _sum_of_squares(g, _block(g, column, (1, size), (0, 1)))
    every = g.add(square(g, first), below)
    negative, length = g.is_negative(first), g.rescale(sqrt(g, every))
    magnitude = _flipped(g, negative, first)
    inverse = rsqrt(g, g.add(every, g.mul(length, magnitude)))
    head = _flipped(g, negative, g.add(magnitude, length))
    vector = g.linear("cat", head, _block(g, column, (1, size), (0, 1)), dim=column.ndim - 2)
    least = 2.0**-g.frac_bits  # of squares, read with half of their fractional bits
    zero = g.is_negative(g.offset(g.ldexp(below, g.frac_bits), -least))
    skipped = g.bit_to_ring(zero)
    kept = g.linear("expand", g.offset(g.linear("neg", skipped), 1), shape=list(vector.shape))
    becomes = g.add(_flipped(g, negative, g.linear("neg", length)), g.scale(g.select(zero, first), 2.0))
    return g.rescale(g.mul(g.rescale(_by_root(g, vector, inverse)), kept)), becomes, skipped


def _reflect(g: Builder, vector: Value, x: Value) -> Value:
    """H x."""
    row = g.rescale(matmul(g, transpose(g, vector, -1, -2), x))
    return g.rescale(g.sub(x, matmul(g, vector, row)))


def reflections(g: Builder, a: Value) -> Reflections:
    """The reflections of matrices. Raises CannotLower for large ones."""
    rows, columns = a.shape[-2:]
    count = min(rows - 1, columns)
    if count > MOST_REFLECTIONS:
        reason = f"reflections of {count} columns of a secret matrix"
        raise CannotLower(reason, f"use matrices of at most {MOST_REFLECTIONS} columns, or {MOST_REFLECTIONS + 1} rows")
    squares = _sum_of_squares(g, a)
    rest = g.rescale(g.ldexp(_by_root(g, a, rsqrt(g, squares)), GUARD))
    vectors, skipped, lines = [], [], []
    for done in range(count):
        vector, becomes, zero = _reflection(g, _block(g, rest, (0, rows - done), (0, 1)))
        parts = [becomes]
        if done + 1 < columns:
            others = _reflect(g, vector, _block(g, rest, (0, rows - done), (1, columns - done)))
            parts.append(_block(g, others, (0, 1), (0, columns - done - 1)))
            rest = _block(g, others, (1, rows - done), (0, columns - done - 1))
        lines.append(constant_pad(g, g.linear("cat", *parts, dim=a.ndim - 1), [done, 0]))
        vectors.append(vector)
        skipped.append(zero)
    if rows <= columns:
        lines.append(constant_pad(g, rest, [rows - 1, 0]))
    triangle = g.linear("cat", *lines, dim=a.ndim - 2)
    return Reflections(tuple(vectors), triangle, sqrt(g, squares), tuple(skipped))


def _orthogonal(g: Builder, of: Reflections, rows: int, columns: int) -> Value:
    """The first columns of H_1 H_2 ..."""
    batch = of.triangle.shape[:-2]
    out: Value | None = None
    for done in reversed(range(len(of.vectors))):
        last = out is None
        identity = g.constant(torch.eye(rows - done, columns - done, dtype=torch.float64).expand(*batch, -1, -1))
        out = identity if last else constant_pad(g, out, [1, 0, 1, 0])
        if not last:  # the padded corner is 1
            corner = torch.zeros(rows - done, columns - done, dtype=torch.float64)
            corner[0, 0] = 1.0
            out = g.add(out, g.constant(corner))
        out = _reflect(g, of.vectors[done], out)
    return g.constant(torch.eye(rows, columns, dtype=torch.float64).expand(*batch, -1, -1)) if out is None else out


_ACCURACY = Accuracy(2.0**-8, domain="abs(A) abs(A^+) ≤ 2^6, abs(A) ≤ 2^4 (Frobenius norms)")


@lowers(aten.linalg_qr.default, accuracy=_ACCURACY)
def qr(g: Builder, a, mode="reduced"):
    """Orthogonal Q and upper triangular R with A = Q R, with LAPACK's signs."""
    rows, columns = a.shape[-2:]
    if mode not in ("reduced", "complete", "r"):
        raise CannotLower(f"the mode {mode!r} of a QR factorization", "use 'reduced', 'complete' or 'r'")
    of = reflections(g, a)
    norm = g.linear("expand", of.norm, shape=list(of.triangle.shape))
    triangle = g.ldexp(g.mul(g.rescale(of.triangle), g.rescale(norm)), -GUARD)
    if mode == "r":
        return g.float(torch.zeros, [0], shape=(0,)), triangle
    if mode == "complete" and rows > columns:
        triangle = constant_pad(g, triangle, [0, 0, 0, rows - columns])
    return _orthogonal(g, of, rows, rows if mode == "complete" else min(rows, columns)), triangle


def diagonal(g: Builder, of: Reflections) -> tuple[list[Value], Value]:
    """(the elements of R's diagonal, as `triangle` has them; the product of all signs of H, -1 or 1)."""
    size = of.triangle.shape[-2]
    entries = [_block(g, of.triangle, (k, k + 1), (k, k + 1)) for k in range(size)]
    signs = [g.offset(g.linear("scale", zero, factor=2), -1) for zero in of.skipped]
    return entries, reduce(g.mul, signs)
