"""Sorting networks: order, the k largest, extremes with their places.

Bitonic networks [Batcher 1968], for any number of values: what a power of two would need is left out, as if the
missing ones were at the end and larger than all others. A stage compares all its pairs at once; keys and what
travels with them are exchanged by the same bits.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.activation import argmax_with_value
from securemodel.compiler.lower.positions import distinct
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten
Rows = list[Value]
"""Keys, then what travels with them: tensors of one shape, ordered along the first axis."""


def exchange(g: Builder, left: Rows, right: Rows, descending: bool, below: int | None = None) -> tuple[Rows, Rows]:
    """Each pair in order: one comparison of the keys, of differences below 2^`below`; one selection for each tensor."""
    smaller = g.is_negative(g.sub(left[0], right[0]), below)
    first, second = [], []
    for a, b in zip(left, right, strict=True):
        moved = g.select(smaller, g.sub(a, b))
        low, high = g.add(b, moved), g.sub(a, moved)
        first.append(high if descending else low)
        second.append(low if descending else high)
    return first, second


def _slice(g: Builder, rows: Rows, start: int, stop: int) -> Rows:
    return [g.slice(x, 0, start, stop) for x in rows]


def _cat(g: Builder, *parts: Rows) -> Rows:
    full = [part for part in parts if part[0].shape[0]]
    return [g.linear("cat", *xs, dim=0) if len(xs) > 1 else xs[0] for xs in zip(*full, strict=True)]


def _flipped(g: Builder, rows: Rows) -> Rows:
    return [g.linear("flip", x, dims=[0]) for x in rows]


def _halves(g: Builder, rows: Rows, block: int, mirrored: bool) -> tuple[Rows, Rows]:
    """The first and second halves of all blocks; `mirrored` turns the second ones around."""
    out: tuple[Rows, Rows] = ([], [])
    for x in rows:
        blocks = g.reshape(x, (x.shape[0] // block, 2, block // 2, *x.shape[1:]))
        for side in (0, 1):
            half = g.slice(blocks, 1, side, side + 1)
            half = g.linear("flip", half, dims=[2]) if side and mirrored else half
            out[side].append(g.reshape(half, (x.shape[0] // 2, *x.shape[1:])))
    return out


def _joined(g: Builder, first: Rows, second: Rows, block: int, mirrored: bool) -> Rows:
    """The inverse of `_halves`."""
    out = []
    for a, b in zip(first, second, strict=True):
        shape = (2 * a.shape[0] // block, 1, block // 2, *a.shape[1:])
        a, b = g.reshape(a, shape), g.reshape(b, shape)
        b = g.linear("flip", b, dims=[2]) if mirrored else b
        out.append(g.reshape(g.linear("cat", a, b, dim=1), (2 * shape[0] * shape[2], *shape[3:])))
    return out


def _stage(g: Builder, rows: Rows, block: int, mirrored: bool, descending: bool, below: int | None = None) -> Rows:
    """Compares the halves of each block, position by position; the last block may be cut off."""
    count, half = rows[0].shape[0], block // 2
    whole = count - count % block
    pairs = max(0, count - whole - half)  # of the last block
    start = whole + (half - pairs if mirrored else 0)
    left, right = _slice(g, rows, start, start + pairs), _slice(g, rows, whole + half, whole + half + pairs)
    right = _flipped(g, right) if mirrored and pairs else right
    firsts, seconds = _halves(g, _slice(g, rows, 0, whole), block, mirrored) if whole else ([], [])
    if whole and pairs:
        left, right = _cat(g, firsts, left), _cat(g, seconds, right)
    elif whole:
        left, right = firsts, seconds
    elif not pairs:
        return rows
    left, right = exchange(g, left, right, descending, below)
    done = _joined(g, _slice(g, left, 0, whole // 2), _slice(g, right, 0, whole // 2), block, mirrored) if whole else []
    if not pairs:
        return _cat(g, done, _slice(g, rows, whole, count)) if count > whole else done
    last = _slice(g, right, whole // 2, whole // 2 + pairs)
    tail = _cat(
        g,
        _slice(g, rows, whole, start),
        _slice(g, left, whole // 2, whole // 2 + pairs),
        _slice(g, rows, start + pairs, whole + half),
        _flipped(g, last) if mirrored else last,
    )
    return _cat(g, done, tail) if whole else tail


def merged(g: Builder, rows: Rows, block: int, descending: bool, below: int | None = None) -> Rows:
    """Each block in order, where its halves are each descending (or ascending) to begin with."""
    rows, mirrored = _stage(g, rows, block, True, descending, below), block // 2
    while mirrored > 1:
        rows, mirrored = _stage(g, rows, mirrored, False, descending, below), mirrored // 2
    return rows


def ordered(g: Builder, rows: Rows, descending: bool, below: int | None = None) -> Rows:
    """All rows in order of their keys, of which two differ by less than 2^`below`."""
    block = 2
    while block < 2 * rows[0].shape[0]:
        rows, block = merged(g, rows, block, descending, below), 2 * block
    return rows


def _keys_and_places(g: Builder, x: Value, dim: int) -> tuple[Rows, list[int]]:
    """(the values and their places with the axis in front, the permutation that puts it back)."""
    order = [dim, *[d for d in range(x.ndim) if d != dim]]
    keys = g.linear("permute", g.rescale(x), dims=order)
    at = torch.arange(keys.shape[0]).reshape(-1, *[1] * (x.ndim - 1)).expand(keys.shape)
    return [keys, g.integers(at)], [*range(1, dim + 1), 0, *range(dim + 1, x.ndim)]


def _put_back(g: Builder, rows: Rows, back: list[int]) -> tuple[Value, ...]:
    values, places = (g.linear("permute", x, dims=back) for x in rows)
    return values, distinct(g, places)


@lowers(aten.sort.default)
def sort(g: Builder, x, dim=-1, descending=False):
    """Values in order along an axis, and where they were; equal ones in any order."""
    if x.ndim == 0 or x.shape[dim] == 1:
        return x, g.integers(torch.zeros(x.shape))
    rows, back = _keys_and_places(g, x, dim % x.ndim)
    bits = g.notes.get(("bits", x.id))
    if bits is not None:
        g.domain(x, -(2.0**bits), 2.0**bits, "sorting whole numbers of a narrow type")
    return _put_back(g, ordered(g, rows, descending, bits and bits + 1), back)


@lowers(aten.sort.stable)
def sort_stable(g: Builder, x, *, stable=False, dim=-1, descending=False):
    """Values in order along an axis, and where they were; equal ones in the order that they had.

    Places are compared, too, as further digits of the values.
    """
    if not stable or x.ndim == 0 or x.shape[dim] == 1:
        return sort(g, x, dim, descending)
    if not g.exact or g.width < 64:
        raise CannotLower("a stable sort, where comparisons do not see all digits", "sort without stable=True")
    (keys, places), back = _keys_and_places(g, x, dim % x.ndim)
    bits, whole = (keys.shape[0] - 1).bit_length(), 0 if x.integer else g.frac_bits
    both = (g.sub if descending else g.add)(g.linear("scale", g.ldexp(keys, whole), factor=2**bits), places)
    both, places = ordered(g, [both, places], descending)
    keys = (g.add if descending else g.sub)(both, places)
    values = replace(g.ldexp(keys, -bits - whole), integer=x.integer)
    return _put_back(g, [values, places], back)


@lowers(aten.argsort.default)
def argsort(g: Builder, x, dim=-1, descending=False):
    """Where the values in order were; equal ones in any order."""
    return sort(g, x, dim, descending)[1]


@lowers(aten.topk.default)
def topk(g: Builder, x, k, dim=-1, largest=True, sorted=True):
    """The k largest (or smallest) values in order, and their places; equal ones in any order.

    Blocks are put in order, then block meets block and the better half of both goes on.
    """
    if k == 1:
        return (maximum_along if largest else minimum_along)(g, x, dim, True)
    rows, back = _keys_and_places(g, x, dim % x.ndim)
    size = 1 << (k - 1).bit_length()
    block = 2
    while block <= size and block < 2 * rows[0].shape[0]:
        rows, block = merged(g, rows, block, largest), 2 * block
    while rows[0].shape[0] > size:
        rows = _better_halves(g, rows, size, largest)
    return _put_back(g, _slice(g, rows, 0, k), back)


def _better_halves(g: Builder, rows: Rows, size: int, descending: bool) -> Rows:
    """Of each two blocks in order, the better `size` values in order; a last block alone goes on as it is."""
    count, block = rows[0].shape[0], 2 * size
    kept = _stage(g, rows, block, True, descending)
    pieces = [_slice(g, kept, start, min(start + size, count)) for start in range(0, count, block)]
    kept = _cat(g, *pieces)
    half = size
    while half > 1:
        kept, half = _stage(g, kept, half, False, descending), half // 2
    return kept


@lowers(aten.max.dim)
def maximum_along(g: Builder, x, dim, keepdim=False):
    """The largest value along an axis and its place, the first of equals."""
    return argmax_with_value(g, x, dim, keepdim)


@lowers(aten.min.dim)
def minimum_along(g: Builder, x, dim, keepdim=False):
    """The smallest value along an axis and its place, the first of equals."""
    value, place = argmax_with_value(g, g.linear("neg", x), dim, keepdim)
    return g.linear("neg", value), place


@lowers(aten.argmin.default)
def argmin(g: Builder, x, dim=None, keepdim=False):
    """Index of the smallest value, the first of equals."""
    return argmax_with_value(g, g.linear("neg", x), dim, keepdim)[1]


@lowers(aten.kthvalue.default)
def kthvalue(g: Builder, x, k, dim=-1, keepdim=False):
    """The k-th smallest value along an axis and its place."""
    dim %= x.ndim
    shape = [1 if d == dim else s for d, s in enumerate(x.shape) if keepdim or d != dim]
    both = topk(g, x, k, dim, largest=False)
    return tuple(g.reshape(g.slice(v, dim, k - 1, k), shape) for v in both)


@lowers(aten.median.default, aten.nanmedian.default)
def median_of_all(g: Builder, x):
    """The lower median of all elements; there is no NaN among secrets."""
    return median(g, g.reshape(x, (math.prod(x.shape),)), 0)[0]


@lowers(aten.median.dim, aten.nanmedian.dim)
def median(g: Builder, x, dim=-1, keepdim=False):
    """The lower median along an axis and its place."""
    return kthvalue(g, x, (x.shape[dim] + 1) // 2, dim, keepdim)
