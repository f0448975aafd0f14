"""Lookups at a secret index, and splines, in C++."""

import torch
from torch import Tensor, get_num_threads

from protocols.kernels.cpu import build

__all__ = ["deal_spline", "spline", "unit_lookup", "unit_vectors"]


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


def spline(coefficients: Tensor, t: Tensor, products: Tensor, signed: bool, first: bool) -> Tensor:
    """Share of the sum of c_r t^r."""
    out = torch.empty_like(t, memory_format=torch.contiguous_format)
    build.module.spline(
        out.data_ptr(), coefficients.data_ptr(), t.data_ptr(), products.data_ptr(), t.numel(), coefficients.shape[0],
        signed, first, get_num_threads(),
    )  # fmt: skip
    return out


def deal_spline(masks: Tensor, lam: Tensor, sign: Tensor | None) -> Tensor:
    """Powers of lam times the sign, and their products with the coefficients' masks."""
    terms = masks.shape[0]
    out = lam.new_empty((terms - (sign is None) + terms * (terms + 1) // 2, *lam.shape))
    build.module.deal_spline(
        out.data_ptr(), masks.data_ptr(), lam.data_ptr(), 0 if sign is None else sign.data_ptr(), lam.numel(), terms,
        get_num_threads(),
    )  # fmt: skip
    return out
