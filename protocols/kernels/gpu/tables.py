"""Lookups in public tables, and splines, in Triton.

The sum over the set bits v of an element's vector of table[c][(m - v) mod size] is the sum over j of table[c][j] times bit
(m - j) mod size: a product of a matrix of bits, which is put together in registers, and the table. Its entries are cut
into 8 digits of 8 bits with signs, so tensor cores make it; a sum of 256 such digits stays below 2^31.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from protocols.kernels.gpu import launch
from protocols.kernels.gpu.bilinear import limbs_of
from protocols.kernels.gpu.launch import blocks, elements, on_device

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
def _power(products, e, inside, n, I: tl.constexpr, SIGNED: tl.constexpr, FIRST: tl.constexpr):
    """A share of the sign times lam^I."""
    if SIGNED:
        made = tl.load(products + I * n + e, mask=inside, other=0)
    elif I > 0:
        made = tl.load(products + (I - 1) * n + e, mask=inside, other=0)
    else:
        made = e * 0
        if FIRST:
            made += 1
    return made


@triton.jit
def _term(coefficient, power, mixed, e, inside):
    return coefficient * power - tl.load(mixed + e, mask=inside, other=0)


@triton.jit
def spline_kernel(out, coefficients, t, products, mixed, n, TERMS: tl.constexpr, SIGNED: tl.constexpr,
                  FIRST: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`spline`; mixed: of the products those with the coefficients' masks."""
    e = elements(BLOCK)
    n = tl.cast(n, tl.int64)
    inside = e < n
    x = tl.load(t + e, mask=inside, other=0)
    power0 = _power(products, e, inside, n, 0, SIGNED, FIRST)
    total = _term(tl.load(coefficients + e, mask=inside, other=0), power0, mixed, e, inside)
    if TERMS > 1:
        power1 = _power(products, e, inside, n, 1, SIGNED, FIRST)
        c = tl.load(coefficients + n + e, mask=inside, other=0)
        total += x * _term(c, power0, mixed + n, e, inside) - _term(c, power1, mixed + 2 * n, e, inside)
    if TERMS > 2:
        power2 = _power(products, e, inside, n, 2, SIGNED, FIRST)
        c = tl.load(coefficients + 2 * n + e, mask=inside, other=0)
        middle = x * _term(c, power0, mixed + 3 * n, e, inside) - 2 * _term(c, power1, mixed + 4 * n, e, inside)
        total += x * middle + _term(c, power2, mixed + 5 * n, e, inside)
    tl.store(out + e, total, mask=inside)


@triton.jit
def deal_spline_kernel(out, mixed, masks, lam, sign, n, TERMS: tl.constexpr, SIGNED: tl.constexpr,
                       BLOCK: tl.constexpr):  # fmt: skip
    """`deal_spline`; mixed: where in `out` the products with the coefficients' masks begin."""
    e = elements(BLOCK)
    n = tl.cast(n, tl.int64)
    inside = e < n
    x, power, to = tl.load(lam + e, mask=inside, other=0), tl.full((BLOCK,), 1, tl.int64), out
    if SIGNED:
        power = tl.load(sign + e, mask=inside, other=0)
    for i in tl.static_range(TERMS):
        if SIGNED or i > 0:
            tl.store(to + e, power, mask=inside)
            to += n
        for r in tl.static_range(i, TERMS):
            mask = tl.load(masks + r * n + e, mask=inside, other=0)
            tl.store(mixed + (r * (r + 1) // 2 + i) * n + e, mask * power, mask=inside)
        power *= x


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


def spline(coefficients: Tensor, t: Tensor, products: Tensor, signed: bool, first: bool) -> Tensor:
    """Share of the sum of c_r t^r."""
    out, n, terms = torch.empty_like(t), t.numel(), coefficients.shape[0]
    with on_device(t.device):
        spline_kernel[blocks(n, launch.BLOCK)](
            out, coefficients, t, products, products[terms - (not signed) :], n, TERMS=terms, SIGNED=bool(signed),
            FIRST=bool(first), BLOCK=launch.BLOCK, num_warps=launch.WARPS,
        )  # fmt: skip
    return out


def deal_spline(masks: Tensor, lam: Tensor, sign: Tensor | None) -> Tensor:
    """Powers of lam times the sign, and their products with the coefficients' masks."""
    terms, n, signed = masks.shape[0], lam.numel(), sign is not None
    own = terms - (not signed)
    out = lam.new_empty(own + terms * (terms + 1) // 2, *lam.shape)
    with on_device(lam.device):
        deal_spline_kernel[blocks(n, launch.BLOCK)](
            out, out[own:], masks, lam, sign if signed else lam, n, TERMS=terms, SIGNED=signed, BLOCK=launch.BLOCK,
            num_warps=launch.WARPS,
        )  # fmt: skip
    return out
