"""Comparison and other work on packed bits in Triton.

Bits become words by sums over 64 lanes. Groups of digits are put together by programs of one group each, whose polynomials
are written out when the kernel is compiled.
"""

from collections.abc import Iterator
from functools import cache
from itertools import combinations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import constexpr_function

from protocols.kernels.gpu import launch
from protocols.kernels.gpu.launch import blocks, elements, on_device, shifted_right
from protocols.kernels.twins.planes import monomial_sets, product_sets

WORDS = 16
"""Of 64 elements, that a program packs."""
BLOCK = 128
"""Words of a plane that a program combines."""
Layer = tuple[tuple[int, ...], ...]


@triton.jit
def _word(bits, lane):
    return tl.sum(bits.to(tl.int64) << lane, axis=1)


def _expanded(k: int, with_eq: bool, first: bool) -> Iterator[tuple[int, ...]]:
    """What is added up: (0 for LT, 1 for EQ), the share that is a factor (of a mask, behind those of a monomial, or -1 for
    none), and the opened planes that are."""
    place = {planes: at for at, planes in enumerate(monomial_sets(k, with_eq))}
    count = 2 * k - 2 + with_eq
    for which, group in enumerate(product_sets(k, with_eq)):
        for planes in group:
            for size in range(0 if first else 1, len(planes) + 1):
                for masked in combinations(planes, size):
                    share = -1 if not size else masked[0] if size == 1 else count + place[masked]
                    yield which, share, *(p for p in planes if p not in masked)


_SIZES = [(k, with_eq) for k in (2, 3, 4) for with_eq in (False, True)]
_SETS = tl.constexpr(tuple(monomial_sets(*size) for size in _SIZES))
_TERMS = tl.constexpr(tuple(tuple(_expanded(*size, first)) for size in _SIZES for first in (False, True)))
"""What kernels are compiled from, as part of what Triton keeps them by."""


@constexpr_function
def _sets(k, with_eq):
    return _SETS.value[2 * k - 4 + with_eq]


@constexpr_function
def _terms(k, with_eq, first):
    return _TERMS.value[2 * (2 * k - 4 + with_eq) + first]


@triton.jit(do_not_specialize=("offset", "bit"))
def plane_kernel(out, x, n, words, offset, bit, WORDS: tl.constexpr):
    """Bit number `bit` of x + offset, packed; zeros beyond n."""
    w = elements(WORDS)
    lane = tl.arange(0, 64)[None, :]
    e = w[:, None] * 64 + lane
    inside = e < n
    value = tl.load(x + e, mask=inside, other=0).to(tl.int64) + offset
    packed = _word(tl.where(inside, (value >> bit) & 1, 0), lane)
    tl.store(out + w, packed, mask=w < words)


@triton.jit
def unpack_kernel(out, words, n, BLOCK: tl.constexpr):
    """`unpack_bits`."""
    e = elements(BLOCK)
    inside = e < n
    tl.store(out + e, launch.bit_of(words, e, inside).to(tl.uint8), mask=inside)


@triton.jit
def _digit(x, d, low_bits, shift):
    """Digit d of the `low_bits` bits from bit `shift` on, as int32."""
    by = shift + 4 * d
    kept = (1 << tl.minimum(low_bits - 4 * d, 4)) - 1
    return shifted_right(x << tl.maximum(-by, 0), tl.maximum(by, 0)).to(tl.int32) & kept


@triton.jit(do_not_specialize=("digits", "low_bits", "shift"))
def thermometer_kernel(out, lam, n, digits, low_bits, shift, BLOCK: tl.constexpr):
    """`thermometer`."""
    e = elements(BLOCK)
    inside = e < n
    x, to = tl.load(lam + e, mask=inside, other=0), out + e
    two = tl.full((BLOCK,), 2, tl.int32)
    for d in range(digits):
        tl.store(to, ((two << _digit(x, d, low_bits, shift)) - 1).to(tl.int16), mask=inside)
        to += n


@triton.jit(do_not_specialize=("digits", "low_bits", "shift", "offset"))
def leaves_kernel(out, m, therm, n, words, digits, low_bits, shift, offset, WORDS: tl.constexpr):
    """`leaves`; zeros beyond n."""
    w = elements(WORDS)
    lane = tl.arange(0, 64)[None, :]
    e = w[:, None] * 64 + lane
    inside = e < n
    x = tl.load(m + e, mask=inside, other=0) + offset
    there, to = therm + e, out + w
    for d in range(digits):
        seen = (tl.load(there, mask=inside, other=0).to(tl.int32) & 0xFFFF) >> _digit(x, d, low_bits, shift)
        less = (seen >> 1) & 1
        tl.store(to, _word(less, lane), mask=w < words)
        tl.store(to + words, _word((seen & 1) ^ less, lane), mask=(w < words) & (d > 0))
        to += words * tl.minimum(d + 1, 2)
        there += n


@triton.jit
def _planes(at, words, inside, COUNT: tl.constexpr):
    """Words of COUNT planes, one after the other."""
    made = ()
    for i in tl.static_range(COUNT):
        made = made + (tl.load(at + i * words, mask=inside, other=0),)  # type: ignore[assignment]  # grows as it is compiled
    return made


@triton.jit
def monomials_kernel(out, masks, words, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """Of each group the products of its masks. GROUPS: (first plane of the masks, first monomial, digits, whether EQ)."""
    w = elements(BLOCK)
    inside = w < words
    for g in tl.static_range(len(GROUPS)):
        if tl.program_id(1) == g:
            k: tl.constexpr = GROUPS[g][2]
            sets: tl.constexpr = _sets(k, GROUPS[g][3])
            planes = _planes(masks + GROUPS[g][0] * words + w, words, inside, 2 * k - 2 + GROUPS[g][3])
            to = out + GROUPS[g][1] * words + w
            for q in tl.static_range(len(sets)):
                product = planes[sets[q][0]]
                for p in tl.static_range(1, len(sets[q])):
                    product &= planes[sets[q][p]]
                tl.store(to + q * words, product, mask=inside)


@triton.jit
def combine_kernel(out, opened, masks, monomials, bits, words, GROUPS: tl.constexpr, FIRST: tl.constexpr,
                   BLOCK: tl.constexpr):  # fmt: skip
    """Of each group LT and EQ. GROUPS: as of `monomials_kernel`, then the row of `bits` with its highest lt (of one digit:
    with its lt), and the row of `out`."""
    w = elements(BLOCK)
    inside = w < words
    for g in tl.static_range(len(GROUPS)):
        if tl.program_id(1) == g:
            k: tl.constexpr = GROUPS[g][2]
            with_eq: tl.constexpr = GROUPS[g][3]
            less = tl.load(bits + GROUPS[g][4] * words + w, mask=inside, other=0)
            if k == 1:
                equal = tl.load(bits + (GROUPS[g][4] + with_eq) * words + w, mask=inside, other=0)
            else:
                terms: tl.constexpr = _terms(k, with_eq, FIRST)
                inputs: tl.constexpr = 2 * k - 2 + with_eq
                known = _planes(opened + GROUPS[g][0] * words + w, words, inside, inputs)
                dealt = _planes(masks + GROUPS[g][0] * words + w, words, inside, inputs)
                products = _planes(monomials + GROUPS[g][1] * words + w, words, inside, len(_sets(k, with_eq)))
                dealt = dealt + products
                equal = tl.zeros((BLOCK,), tl.int64)
                for t in tl.static_range(len(terms)):
                    term = dealt[terms[t][1]] if terms[t][1] >= 0 else tl.full((BLOCK,), -1, tl.int64)
                    for p in tl.static_range(2, len(terms[t])):
                        term &= known[terms[t][p]]
                    if terms[t][0] == 0:
                        less ^= term
                    else:
                        equal ^= term
            to = out + GROUPS[g][5] * words + w
            tl.store(to, less, mask=inside)
            if with_eq:
                tl.store(to + words, equal, mask=inside)


@cache
def layer_of(groups: tuple[tuple[int, int], ...]) -> Layer:
    """What `combine_kernel` is told of each group of a layer."""
    made, opened, products, row = [], 0, 0, 0
    for start, count in groups:
        with_eq = int(start > 0)
        top = 2 * (start + count) - 3 if count > 1 else max(2 * start - 1, 0)
        made.append((opened, products, count, with_eq, top, row))
        if count > 1:
            opened, products = opened + 2 * count - 2 + with_eq, products + len(monomial_sets(count, bool(with_eq)))
        row += 1 + with_eq
    return tuple(made)


def _monomials(masks: Tensor, layer: Layer) -> Tensor:
    several, words = tuple(group[:4] for group in layer if group[2] > 1), masks.shape[1]
    out = masks.new_empty(sum(len(monomial_sets(group[2], bool(group[3]))) for group in several), words)
    if several:
        with on_device(masks.device):
            monomials_kernel[triton.cdiv(words, BLOCK), len(several)](
                out, masks, words, GROUPS=several, BLOCK=BLOCK, num_warps=launch.WARPS
            )
    return out


def _combine(
    opened: Tensor, mask_share: Tensor, monomial_share: Tensor, bits: Tensor, layer: Layer, first: bool
) -> Tensor:
    words = bits.shape[-1]
    out = bits.new_empty(sum(1 + group[3] for group in layer), words)
    with on_device(bits.device):
        combine_kernel[triton.cdiv(words, BLOCK), len(layer)](
            out, opened, mask_share, monomial_share, bits, words, GROUPS=layer, FIRST=bool(first), BLOCK=BLOCK,
            num_warps=launch.WARPS,
        )  # fmt: skip
    return out


def _packed(x: Tensor, bit: int, offset: int) -> Tensor:
    n, words = x.numel(), -(-x.numel() // 64)
    out = x.new_empty(words, dtype=torch.int64)
    with on_device(x.device):
        plane_kernel[blocks(words, WORDS)](out, x, n, words, offset, bit, WORDS=WORDS, num_warps=launch.WARPS)
    return out


def pack_bits(bits: Tensor) -> Tensor:
    """Plane of the lowest bit of each entry: [N] -> int64[W]."""
    return _packed(bits.view(torch.uint8), 0, 0)


def unpack_bits(words: Tensor, n: int) -> Tensor:
    """The first n bits of a plane, uint8[n]."""
    out = words.new_empty(n, dtype=torch.uint8)
    with on_device(words.device):
        unpack_kernel[blocks(n, launch.BLOCK)](out, words, n, BLOCK=launch.BLOCK, num_warps=launch.WARPS)
    return out


def msb_plane(x: Tensor, bit: int, offset: int = 0) -> Tensor:
    """Plane of bit number `bit` of each element plus `offset`."""
    return _packed(x, bit, offset)


def thermometer(lam: Tensor, low_bits: int, shift: int = 0) -> Tensor:
    """For each 4-bit digit the word whose bit a says digit >= a, int16[D,N]."""
    n, digits = lam.numel(), -(-low_bits // 4)
    out = lam.new_empty(digits, n, dtype=torch.int16)
    with on_device(lam.device):
        thermometer_kernel[blocks(n, launch.BLOCK)](
            out, lam, n, digits, low_bits, shift, BLOCK=launch.BLOCK, num_warps=launch.WARPS
        )
    return out


def leaves(m: Tensor, therm: Tensor, low_bits: int, shift: int = 0, offset: int = 0) -> Tensor:
    """Shares of "digit of m + offset < digit of lam" and "digits equal", planes lt0, lt1, eq1, lt2, eq2, ..."""
    n, words, digits = m.numel(), -(-m.numel() // 64), -(-low_bits // 4)
    out = m.new_empty(2 * digits - 1, words)
    with on_device(m.device):
        leaves_kernel[blocks(words, WORDS)](
            out, m, therm, n, words, digits, low_bits, shift, offset, WORDS=WORDS, num_warps=launch.WARPS
        )
    return out


def monomials(masks: Tensor, k: int, with_eq: bool) -> Tensor:
    """Products of mask planes, int64[Q,W], in the order of `monomial_sets`."""
    return _monomials(masks, ((0, 0, k, int(with_eq)),))


def combine(
    opened: Tensor, mask_share: Tensor, monomial_share: Tensor, top: Tensor, k: int, with_eq: bool, first: bool
) -> Tensor:
    """XOR share of LT (and EQ): every product of (opened ^ mask) multiplied out over the subsets of its planes."""
    return _combine(opened, mask_share, monomial_share, top, ((0, 0, k, int(with_eq), 0, 0),), first)


def monomials_layer(masks: Tensor, groups: tuple[tuple[int, int], ...]) -> Tensor:
    """`monomials` of each group of several digits."""
    return _monomials(masks, layer_of(groups))


def combine_layer(
    opened: Tensor, mask_share: Tensor, monomial_share: Tensor, bits: Tensor, groups: tuple[tuple[int, int], ...],
    first: bool,
) -> Tensor:  # fmt: skip
    """`combine` of each group of several digits; a digit alone goes on as it is."""
    return _combine(opened, mask_share, monomial_share, bits, layer_of(groups), first)
