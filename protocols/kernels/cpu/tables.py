"""Lookups in public tables in C++."""

import torch
from torch import Tensor, get_num_threads

from protocols.kernels.cpu import build
from protocols.kernels.twins.tables import unit_vectors  # a few words an entry, and the dealer alone makes them

__all__ = ["unit_lookup", "unit_vectors"]


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
