"""Lookups at a secret index, and splines, in C++."""

from collections.abc import Sequence

import torch
from torch import Tensor, get_num_threads

from protocols.kernels.cpu import build
from protocols.kernels.twins.tables import PARTS

__all__ = ["deal_spline", "lookup_around", "spline", "unit_lookup", "unit_vectors", "weighted_around"]


def unit_vectors(lam: Tensor, size: int) -> Tensor:
    """For each entry the packed unit vector of `size` bits with bit lam mod size set."""
    out = torch.empty(lam.numel(), max(1, size // 64), dtype=torch.int64)
    build.module.unit_vectors(out.data_ptr(), lam.data_ptr(), lam.numel(), size)
    return out


def unit_lookup(m: Tensor, bits: Tensor, table: Tensor) -> Tensor:
    """Per column and entry: the sum of table[c][(m - v) mod size] over the set bits v."""
    columns, size = table.shape
    n = m.numel()
    turned = table.flip(1).roll(1, 1).repeat(1, 2).contiguous()
    out = torch.empty(columns, n, dtype=torch.int64)
    build.module.unit_lookup(
        out.data_ptr(), m.data_ptr(), bits.data_ptr(), turned.data_ptr(), n, size, columns, get_num_threads()
    )
    return out


def lookup_around(m: Tensor, bits: Tensor, table: Tensor, rest: int, cuts: Sequence[int]) -> Tensor:
    """Per coefficient and entry: the sum, over the set bits v, of those of the entry (m >> rest) - v around m."""
    narrow = _fits_half_lanes(table, table.shape[1] // PARTS, rest, cuts)
    return _around(m, bits, table, rest, cuts, False, narrow)


def weighted_around(m: Tensor, weights: Tensor, table: Tensor, rest: int, cuts: Sequence[int]) -> Tensor:
    """The same with a weight for each v."""
    return _around(m, weights, table, rest, cuts, True, False)


def _around(
    m: Tensor, chosen: Tensor, table: Tensor, rest: int, cuts: Sequence[int], weighted: bool, narrow: bool
) -> Tensor:
    size, n = table.shape[1] // PARTS, m.numel()
    turned = table.view(3, size, PARTS).flip(1).roll(1, 1).repeat(1, 2, 1).permute(2, 0, 1)
    rows = turned.to(torch.int32 if narrow else torch.int64).contiguous()
    out = torch.empty(3, n, dtype=torch.int64)
    build.module.lookup_around(
        out.data_ptr(), m.data_ptr(), chosen.data_ptr(), rows.data_ptr(), n, size, rest, *cuts, weighted, narrow,
        get_num_threads(),
    )  # fmt: skip
    return out


def _fits_half_lanes(table: Tensor, size: int, rest: int, cuts: Sequence[int]) -> bool:
    """Whether no number on the way, and no sum, leaves 32 bits."""
    c0, c1, c2 = (max(-int(row.min()), int(row.max())) for row in table)
    r = 1 << rest >> PARTS.bit_length()
    products = (2 * c2 * r + (1 << cuts[1]), (c1 + (c2 * r >> cuts[1]) + 1) * r + (1 << cuts[0]))
    linear = c1 + (2 * c2 * r >> cuts[1]) + 1
    sums = size * max(c0 + (products[1] >> cuts[0]) + 1, (linear >> cuts[2]) + 1, c2)
    return max(*products, linear + (1 << cuts[2]), sums) < 1 << 31


def spline(
    values: Sequence[Tensor], powers: Sequence[Tensor | None], masks: Tensor, shifts: Sequence[int], first: int
) -> Tensor:
    """Share of the sum of values[i] powers[i] 2^shifts[i], less masks."""
    out = torch.empty_like(masks, memory_format=torch.contiguous_format)
    addresses = [0 if t is None else t.data_ptr() for t in (*values, *powers)]
    build.module.spline(out.data_ptr(), *addresses, masks.data_ptr(), masks.numel(), *shifts, first, get_num_threads())
    return out


def deal_spline(
    masks: Sequence[Tensor], lam: Tensor, sign: Tensor | None, shifts: Sequence[int], rest: int, drop: int
) -> list[Tensor]:
    """The powers of what is left of t, times the sign, and the sum of their products with the masks of coefficients."""
    out = lam.new_empty((4, *lam.shape))
    build.module.deal_spline(
        out.data_ptr(), *(mask.data_ptr() for mask in masks), lam.data_ptr(), 0 if sign is None else sign.data_ptr(),
        lam.numel(), *shifts, rest, drop, get_num_threads(),
    )  # fmt: skip
    return list(out)
