"""Lookups in public tables, and splines, in Triton.

The sum over the set bits v of an element's vector of table[c][(m - v) mod size] is the sum over j of table[c][j] times bit
(m - j) mod size: a product of a matrix of bits, which is put together in registers, and the table. Its entries are cut
into 8 digits of 8 bits with signs, so tensor cores make it; a sum of 256 such digits stays below 2^31.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from protocols.kernels.gpu import launch
from protocols.kernels.gpu.bilinear import limbs_of
from protocols.kernels.gpu.launch import blocks, elements, on_device
from protocols.kernels.twins.tables import PARTS

ROWS = 128
"""Elements of a program of a lookup."""


@triton.jit
def unit_vectors_kernel(out, lam, n, SIZE: tl.constexpr, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    """`unit_vectors`, a lane for each word."""
    at = elements(BLOCK)
    inside = at < tl.cast(n, tl.int64) * WORDS
    bit = tl.load(lam + at // WORDS, mask=inside, other=0) & (SIZE - 1)
    one = tl.full((BLOCK,), 1, tl.int64)
    tl.store(out + at, tl.where(bit >> 6 == at % WORDS, one << (bit & 63), 0), mask=inside)


@triton.jit
def _bits(words, at, inside, SIZE: tl.constexpr):
    """32 bits of an element's vector, from which a shorter one is repeated."""
    made = tl.load(words + at, mask=inside, other=0).to(tl.uint32)
    if SIZE < 32:
        made = made & ((1 << SIZE) - 1)
        made = made | (made << 16)
    if SIZE < 16:
        made = made | (made << 8)
    return made


@triton.jit
def lookup_kernel(out, m, bits, limbs, n, columns, padded_columns, padded_size,
                  SIZE: tl.constexpr, WORDS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Some columns of `unit_lookup`; bits: int32[n, WORDS], limbs: int8[8, padded_columns, padded_size] of the table.

    Column j of the matrix of bits is bit (m - j) mod size: 32 of them, from j = 32 b + 31 down, are a window of the vector
    that begins at bit m - 32 b - 31. The next window begins a word before, at the same place in it.
    """
    e = elements(ROWS)
    inside = e < n
    first = tl.program_id(1) * COLUMNS
    begin = tl.load(m + e, mask=inside, other=0).to(tl.int32) - 31
    last: tl.constexpr = (SIZE - 1) // 32
    word, r = begin >> 5, (begin & 31).to(tl.uint32)
    words = bits + e * WORDS
    t, q = tl.arange(0, 32), tl.arange(0, 8 * COLUMNS)
    row = limbs + ((q % 8) * padded_columns + first + q // 8) * padded_size
    sums = tl.zeros((ROWS, 8 * COLUMNS), dtype=tl.int32)
    high = _bits(words, (word + 1) & last, inside, SIZE)
    for b in range(last + 1):
        low = _bits(words, (word - b) & last, inside, SIZE)
        window = (low >> r) | ((high << 1) << (31 - r))
        chosen = ((window[:, None] >> (31 - t).to(tl.uint32)[None, :]) & 1).to(tl.int8)
        entries = tl.load(row[None, :] + (32 * b + t)[:, None])
        sums = tl.dot(chosen, entries, sums, out_dtype=tl.int32)
        high = low
    digits = tl.reshape(sums.to(tl.int64), (ROWS, COLUMNS, 8)) << (8 * tl.arange(0, 8))[None, None, :]
    c = first + tl.arange(0, COLUMNS)
    place = out + c[None, :] * tl.cast(n, tl.int64) + e[:, None]
    tl.store(place, tl.sum(digits, axis=2), mask=inside[:, None] & (c < columns)[None, :])


@triton.jit
def around_kernel(out, m, chosen, table, n, rest, cut0, cut1, cut2, SIZE: tl.constexpr, WORDS: tl.constexpr,
                  PARTS: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`lookup_around`, or `weighted_around`; chosen: bits or weights, table: three rows of SIZE PARTS."""
    e = elements(BLOCK)
    n = tl.cast(n, tl.int64)
    inside = e < n
    x, one = tl.load(m + e, mask=inside, other=0), tl.full((BLOCK,), 1, tl.int64)
    step = one << rest
    part = ((x & (step - 1)) * PARTS) >> rest
    r = (x & (step // PARTS - 1)) - step // (2 * PARTS)
    half0, half1, half2 = (one << cut0) >> 1, (one << cut1) >> 1, (one << cut2) >> 1
    index, sum0, sum1, sum2 = x >> rest, e * 0, e * 0, e * 0
    for v in range(SIZE):
        if WEIGHTED:
            by = tl.load(chosen + e * SIZE + v, mask=inside, other=0)
        else:
            by = (tl.load(chosen + e * WORDS + v // 64, mask=inside, other=0) >> (v % 64)) & 1
        entry = table + ((index - v) & (SIZE - 1)) * PARTS + part
        c0, c1 = tl.load(entry, mask=inside, other=0), tl.load(entry + SIZE * PARTS, mask=inside, other=0)
        c2 = tl.load(entry + 2 * SIZE * PARTS, mask=inside, other=0)
        moved = c2 * r
        h = c1 + ((moved + half1) >> cut1)
        sum0 += (c0 + ((h * r + half0) >> cut0)) * by
        sum1 += ((c1 + ((moved + moved + half1) >> cut1) + half2) >> cut2) * by
        sum2 += c2 * by
    tl.store(out + e, sum0, mask=inside)
    tl.store(out + n + e, sum1, mask=inside)
    tl.store(out + 2 * n + e, sum2, mask=inside)


@triton.jit
def spline_kernel(out, y0, y1, y2, power0, power1, power2, masks, n, shift0, shift1, shift2, SIGNED: tl.constexpr,
                  FIRST: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`spline`."""
    e = elements(BLOCK)
    inside = e < n
    total = -tl.load(masks + e, mask=inside, other=0)
    if SIGNED:
        total += (tl.load(y0 + e, mask=inside, other=0) << shift0) * tl.load(power0 + e, mask=inside, other=0)
    elif FIRST:
        total += tl.load(y0 + e, mask=inside, other=0) << shift0
    total += (tl.load(y1 + e, mask=inside, other=0) << shift1) * tl.load(power1 + e, mask=inside, other=0)
    total += (tl.load(y2 + e, mask=inside, other=0) << shift2) * tl.load(power2 + e, mask=inside, other=0)
    tl.store(out + e, total, mask=inside)


@triton.jit
def deal_spline_kernel(out, l0, l1, l2, lam, sign, n, shift0, shift1, shift2, rest, drop, SIGNED: tl.constexpr,
                       BLOCK: tl.constexpr):  # fmt: skip
    """`deal_spline`: three powers, then the sum."""
    e = elements(BLOCK)
    n = tl.cast(n, tl.int64)
    inside = e < n
    x, unit, one = (
        tl.load(lam + e, mask=inside, other=0),
        tl.full((BLOCK,), 1, tl.int64),
        tl.full((BLOCK,), 1, tl.int64),
    )
    if SIGNED:
        unit = tl.load(sign + e, mask=inside, other=0)
    left = tl.where(rest == 0, -x, ((one << rest) >> 1) - (x & ((one << rest) - 1)))
    first, second = unit * left, unit * ((left * left + ((one << drop) >> 1)) >> drop)
    total = (tl.load(l0 + e, mask=inside, other=0) << shift0) * unit
    total += (tl.load(l1 + e, mask=inside, other=0) << shift1) * first
    total += (tl.load(l2 + e, mask=inside, other=0) << shift2) * second
    tl.store(out + e, unit, mask=inside)
    tl.store(out + n + e, first, mask=inside)
    tl.store(out + 2 * n + e, second, mask=inside)
    tl.store(out + 3 * n + e, total, mask=inside)


def unit_vectors(lam: Tensor, size: int) -> Tensor:
    """For each entry the packed unit vector of `size` bits with bit lam mod size set."""
    n, words = lam.numel(), max(1, size // 64)
    out = lam.new_empty(n, words)
    with on_device(lam.device):
        unit_vectors_kernel[blocks(n * words, launch.BLOCK)](
            out, lam, n, SIZE=size, WORDS=words, BLOCK=launch.BLOCK, num_warps=launch.WARPS
        )
    return out


def unit_lookup(m: Tensor, bits: Tensor, table: Tensor) -> Tensor:
    """Per column and entry: the sum of table[c][(m - v) mod size] over the set bits v."""
    (columns, size), n = table.shape, m.numel()
    out = m.new_empty(columns, n)
    if not columns:
        return out
    together = 2 if columns <= 2 else 4
    with on_device(m.device):
        limbs, _ = limbs_of(table.unsqueeze(0), together)
        lookup_kernel[triton.cdiv(n, ROWS), triton.cdiv(columns, together)](
            out, m, bits.view(torch.int32), limbs, n, columns, limbs.shape[2], limbs.shape[3], SIZE=size,
            WORDS=2 * bits.shape[1], COLUMNS=together, ROWS=ROWS, num_warps=launch.WARPS,
        )  # fmt: skip
    return out


def lookup_around(m: Tensor, bits: Tensor, table: Tensor, rest: int, cuts: Sequence[int]) -> Tensor:
    """Per coefficient and entry: the sum, over the set bits v, of those of the entry (m >> rest) - v around m."""
    return _around(m, bits, table, rest, cuts, False)


def weighted_around(m: Tensor, weights: Tensor, table: Tensor, rest: int, cuts: Sequence[int]) -> Tensor:
    """The same with a weight for each v."""
    return _around(m, weights, table, rest, cuts, True)


def _around(m: Tensor, chosen: Tensor, table: Tensor, rest: int, cuts: Sequence[int], weighted: bool) -> Tensor:
    n, size = m.numel(), table.shape[1] // PARTS
    out = m.new_empty(3, n)
    with on_device(m.device):
        around_kernel[blocks(n, launch.BLOCK)](
            out, m, chosen, table, n, rest, *cuts, SIZE=size, WORDS=max(1, size // 64), PARTS=PARTS, WEIGHTED=weighted,
            BLOCK=launch.BLOCK, num_warps=launch.WARPS,
        )  # fmt: skip
    return out


def spline(
    values: Sequence[Tensor], powers: Sequence[Tensor | None], masks: Tensor, shifts: Sequence[int], first: int
) -> Tensor:
    """Share of the sum of values[i] powers[i] 2^shifts[i], less masks."""
    out, n = torch.empty_like(masks), masks.numel()
    given = [masks if power is None else power for power in powers]
    with on_device(masks.device):
        spline_kernel[blocks(n, launch.BLOCK)](
            out, *values, *given, masks, n, *shifts, SIGNED=powers[0] is not None, FIRST=bool(first), BLOCK=launch.BLOCK,
            num_warps=launch.WARPS,
        )  # fmt: skip
    return out


def deal_spline(
    masks: Sequence[Tensor], lam: Tensor, sign: Tensor | None, shifts: Sequence[int], rest: int, drop: int
) -> list[Tensor]:
    """The powers of what is left of t, times the sign, and the sum of their products with the masks of coefficients."""
    out, n = lam.new_empty(4, *lam.shape), lam.numel()
    with on_device(lam.device):
        deal_spline_kernel[blocks(n, launch.BLOCK)](
            out, *masks, lam, lam if sign is None else sign, n, *shifts, rest, drop, SIGNED=sign is not None,
            BLOCK=launch.BLOCK, num_warps=launch.WARPS,
        )  # fmt: skip
    return list(out)
