"""Lookups in public tables in plain torch."""

import torch
from torch import Tensor

from protocols.kernels.twins.ring import shift_right


def unit_vectors(lam: Tensor, size: int) -> Tensor:
    """For each entry the packed unit vector of `size` bits with bit lam mod size set."""
    at = (lam.reshape(-1) & (size - 1)).unsqueeze(1)
    count = max(1, size // 64)
    word = torch.arange(count, device=lam.device).unsqueeze(0)
    return torch.where(word == at // 64, torch.ones_like(at) << (at % 64), torch.zeros_like(at))


def unit_lookup(m: Tensor, bits: Tensor, table: Tensor) -> Tensor:
    """Per column and entry: the sum of table[c][(m - v) mod size] over the set bits v."""
    size, flat = table.shape[1], m.reshape(-1)
    out = m.new_zeros(table.shape[0], flat.numel())
    for v in range(size):
        bit = shift_right(bits[:, v // 64], v % 64) & 1
        out += table[:, (flat - v) & (size - 1)] * bit
    return out
