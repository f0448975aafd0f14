"""Comparison and other work on packed bits: 64 elements to a word, one plane per bit.

A plane of N bits is W = ceil(N / 64) int64 words, bit e in bit e % 64 of word e // 64. Bits beyond N may be anything.
"""

import torch
from torch import Tensor

from protocols.kernels import twins
from protocols.kernels.checks import plane, ring
from protocols.kernels.twins import monomial_sets
from protocols.kernels.variant import native


def pack_bits(bits: Tensor) -> Tensor:
    """Pack the lowest bit of each uint8 or bool entry, [N] -> int64[ceil(N/64)]."""
    if bits.dtype not in (torch.uint8, torch.bool):
        raise TypeError(f"pack_bits: bits must be uint8 or bool, not {bits.dtype}")
    bits = bits.reshape(-1).contiguous()
    kernels = native(bits)
    if kernels is None:
        return twins.pack_bits(bits)
    out = torch.empty((bits.numel() + 63) >> 6, dtype=torch.int64)
    kernels.pack_bits(out.data_ptr(), bits.data_ptr(), bits.numel())
    return out


def unpack_bits(words: Tensor, n: int) -> Tensor:
    """The first n bits of a plane, uint8[n]."""
    words = plane(words, n, "unpack_bits: words")
    kernels = native(words)
    if kernels is None:
        return twins.unpack_bits(words, n)
    out = torch.empty(n, dtype=torch.uint8)
    kernels.unpack_bits(out.data_ptr(), words.data_ptr(), n)
    return out


def msb_plane(x: Tensor, bit: int, offset: int = 0) -> Tensor:
    """Plane of bit number `bit` (0 to 63) of each element plus `offset`, 0 <= offset < 2^62."""
    x = ring(x, "msb_plane: x")
    if not 0 <= bit <= 63:
        raise ValueError(f"msb_plane: a 64-bit element has bits 0 to 63, no bit {bit}")
    kernels = native(x)
    if kernels is None:
        return twins.msb_plane(x, bit, offset)
    out = x.new_empty((x.numel() + 63) >> 6)
    kernels.bit_plane(out.data_ptr(), x.data_ptr(), x.numel(), bit, offset)
    return out


def _check_digits(low_bits: int, shift: int, what: str) -> int:
    if not 1 <= low_bits <= 68 or not -63 <= shift <= 64 - low_bits:
        raise ValueError(f"{what}: bits {shift} to {shift + low_bits - 1} are not within a 64-bit value")
    return (low_bits + 3) // 4


def thermometer(lam: Tensor, low_bits: int, shift: int = 0) -> Tensor:
    """For each element of lam and each 4-bit digit, the 16-bit word whose bit a says "digit >= a".

    lam: int64[N]; the digits cover bits shift to shift + low_bits - 1, lowest digit first -> int16[D,N]. A negative
    shift makes the lowest digits short or empty.
    """
    lam = ring(lam, "thermometer: lam")
    digits = _check_digits(low_bits, shift, "thermometer")
    kernels = native(lam)
    if kernels is None:
        return twins.thermometer(lam.view(-1), low_bits, shift)
    out = torch.empty((digits, lam.numel()), dtype=torch.int16)
    kernels.thermometer(out.data_ptr(), lam.data_ptr(), lam.numel(), low_bits, shift, torch.get_num_threads())
    return out


def leaves(m: Tensor, therm: Tensor, low_bits: int, shift: int = 0, offset: int = 0) -> Tensor:
    """Compare the digits of a public m + offset with masks given as shares of their thermometer words.

    m: int64[N], therm: int16[D,N], XOR share of `thermometer(lam, low_bits, shift)` -> int64[2D-1,W], shares of the
    planes lt0, lt1, eq1, lt2, eq2, ...; lt: digit of m + offset < digit of lam, eq: the digits are equal.
    """
    m = ring(m, "leaves: m")
    digits = _check_digits(low_bits, shift, "leaves")
    n = m.numel()
    if therm.dtype is not torch.int16 or therm.numel() != digits * n:
        raise ValueError(
            f"leaves: therm must be int16[{digits},{n}] for {low_bits} bits of {n} elements, "
            f"not {therm.dtype}{list(therm.shape)}"
        )
    therm = therm if therm.is_contiguous() else therm.contiguous()
    kernels = native(m)
    if kernels is None:
        return twins.leaves(m.view(-1), therm.view(digits, n), low_bits, shift, offset)
    out = m.new_empty((2 * digits - 1, (n + 63) >> 6))
    kernels.leaves(out.data_ptr(), m.data_ptr(), therm.data_ptr(), n, low_bits, shift, offset, torch.get_num_threads())
    return out


def _check_planes(t: Tensor, count: int, what: str) -> Tensor:
    t = ring(t, what)
    if t.dim() != 2 or t.shape[0] != count:
        raise ValueError(f"{what} must hold {count} planes, int64[{count},W], not {list(t.shape)}")
    return t


def _inputs(k: int, with_eq: bool, what: str) -> int:
    if not 2 <= k <= 4:
        raise ValueError(f"{what}: a group combines 2 to 4 digits, not {k}")
    return 2 * k if with_eq else 2 * k - 1


def monomials(masks: Tensor, k: int, with_eq: bool) -> Tensor:
    """Products of the mask planes of one group, int64[P,W] -> int64[Q,W], in the order of `monomial_sets`."""
    masks = _check_planes(masks, _inputs(k, with_eq, "monomials"), "monomials: masks")
    kernels = native(masks)
    if kernels is None:
        return twins.monomials(masks, k, with_eq)
    out = masks.new_empty((len(monomial_sets(k, bool(with_eq))), masks.shape[1]))
    kernels.monomials(out.data_ptr(), masks.data_ptr(), masks.shape[1], k, with_eq)
    return out


def combine(opened: Tensor, mask_share: Tensor, monomial_share: Tensor, k: int, with_eq: bool, first: bool) -> Tensor:
    """Share of "lower than" (and of "equal") for a group of k digits, from masked bits every party knows.

    LT = lt_{k-1} ^ eq_{k-1} lt_{k-2} ^ ..., EQ = eq_0 ... eq_{k-1}. opened, mask_share: int64[P,W], planes in the
    order lt0, (eq0 if with_eq), lt1, eq1, lt2, eq2, ...; monomial_share: int64[Q,W], XOR share of `monomials`.
    first: true at exactly one party. -> int64[1 + with_eq, W], XOR shares.
    """
    count = _inputs(k, with_eq, "combine")
    opened = _check_planes(opened, count, "combine: opened")
    mask_share = _check_planes(mask_share, count, "combine: mask_share")
    monomial_share = _check_planes(monomial_share, len(monomial_sets(k, bool(with_eq))), "combine: monomial_share")
    w = opened.shape[1]
    if mask_share.shape[1] != w or monomial_share.shape[1] != w:
        raise ValueError(
            f"combine: planes of {w}, {mask_share.shape[1]} and {monomial_share.shape[1]} words do not fit together"
        )
    kernels = native(opened)
    if kernels is None:
        return twins.combine(opened, mask_share, monomial_share, k, with_eq, first)
    out = opened.new_empty((2 if with_eq else 1, w))
    kernels.combine(
        out.data_ptr(), opened.data_ptr(), mask_share.data_ptr(), monomial_share.data_ptr(), w, k, with_eq, first
    )
    return out
