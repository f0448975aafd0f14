"""Comparison and other work on packed bits in C++."""

from functools import cache

import torch
from torch import Tensor

from protocols.kernels.cpu import build
from protocols.kernels.twins.planes import monomial_sets

_RING = 1 << 64


def pack_bits(bits: Tensor) -> Tensor:
    """Plane of the lowest bit of each entry, [N] -> int64[W]."""
    out = torch.empty((bits.numel() + 63) >> 6, dtype=torch.int64)
    build.module.pack_bits(out.data_ptr(), bits.data_ptr(), bits.numel())
    return out


def unpack_bits(words: Tensor, n: int) -> Tensor:
    """The first n bits of a plane, uint8[n]."""
    out = torch.empty(n, dtype=torch.uint8)
    build.module.unpack_bits(out.data_ptr(), words.data_ptr(), n)
    return out


def msb_plane(x: Tensor, bit: int, offset: int = 0) -> Tensor:
    """Plane of bit number `bit` of each element plus `offset`."""
    out = x.new_empty((x.numel() + 63) >> 6)
    build.module.bit_plane(out.data_ptr(), x.data_ptr(), x.numel(), bit, offset % _RING)
    return out


def thermometer(lam: Tensor, low_bits: int, shift: int = 0) -> Tensor:
    """For each 4-bit digit the word whose bit a says digit >= a, int16[D,N]."""
    out = torch.empty(((low_bits + 3) // 4, lam.numel()), dtype=torch.int16)
    build.module.thermometer(
        out.data_ptr(), lam.data_ptr(), lam.numel(), low_bits, shift, torch.get_num_threads()
    )  # fmt: skip
    return out


def leaves(m: Tensor, therm: Tensor, low_bits: int, shift: int = 0, offset: int = 0) -> Tensor:
    """Shares of "digit of m + offset < digit of lam" and "digits equal", planes lt0, lt1, eq1, lt2, eq2, ..."""
    n = m.numel()
    out = m.new_empty((2 * ((low_bits + 3) // 4) - 1, (n + 63) >> 6))
    build.module.leaves(
        out.data_ptr(), m.data_ptr(), therm.data_ptr(), n, low_bits, shift, offset % _RING, torch.get_num_threads()
    )
    return out


def monomials(masks: Tensor, k: int, with_eq: bool) -> Tensor:
    """Products of mask planes, int64[Q,W], in the order of `monomial_sets`."""
    out = masks.new_empty((len(monomial_sets(k, with_eq)), masks.shape[1]))
    build.module.monomials(out.data_ptr(), masks.data_ptr(), masks.shape[1], k, with_eq)
    return out


def combine(
    opened: Tensor, mask_share: Tensor, monomial_share: Tensor, top: Tensor, k: int, with_eq: bool, first: bool
) -> Tensor:
    """XOR share of LT (and EQ) of a group of digits."""
    w = opened.shape[1]
    out = opened.new_empty((2 if with_eq else 1, w))
    pointers = [x.data_ptr() for x in (out, opened, mask_share, monomial_share, top)]
    build.module.combine(*pointers, w, k, with_eq, first)
    return out


@cache
def _told(groups: tuple[tuple[int, int], ...]) -> list[int]:
    """Each group's lowest digit, number of digits and number of monomials."""
    counted = ((start, count, len(monomial_sets(count, start > 0)) if count > 1 else 0) for start, count in groups)
    return [number for group in counted for number in group]


def monomials_layer(masks: Tensor, groups: tuple[tuple[int, int], ...]) -> Tensor:
    """`monomials` of each group of several digits."""
    told = _told(groups)
    out = masks.new_empty((sum(told[2::3]), masks.shape[1]))
    build.module.monomials_layer(out.data_ptr(), masks.data_ptr(), masks.shape[1], told)
    return out


def combine_layer(
    opened: Tensor, mask_share: Tensor, monomial_share: Tensor, bits: Tensor, groups: tuple[tuple[int, int], ...],
    first: bool,
) -> Tensor:  # fmt: skip
    """`combine` of each group of several digits; a digit alone goes on as it is."""
    w = bits.shape[1]
    out = bits.new_empty((2 * len(groups) - 1, w))
    build.module.combine_layer(
        out.data_ptr(), opened.data_ptr(), mask_share.data_ptr(), monomial_share.data_ptr(), bits.data_ptr(), w,
        _told(groups), first,
    )  # fmt: skip
    return out
