"""Lookups in public tables at a secret index."""

import torch
from torch import Tensor, get_num_threads

from protocols.kernels import twins
from protocols.kernels.checks import ring, same_size
from protocols.kernels.variant import native

TABLE_SIZES = (8, 16, 32, 64, 128, 256)


def check_size(size: int, what: str) -> None:
    """ValueError unless a table may have `size` entries."""
    if size not in TABLE_SIZES:
        raise ValueError(f"{what}: a table has {', '.join(map(str, TABLE_SIZES))} entries, not {size}")


def unit_vectors(lam: Tensor, size: int) -> Tensor:
    """Packed unit vectors int64[N, max(1, size / 64)]: bit v of entry e is set where v = lam[e] mod size."""
    check_size(size, "unit_vectors")
    return twins.unit_vectors(ring(lam, "unit_vectors: lam"), size)


def unit_lookup(m: Tensor, bits: Tensor, table: Tensor) -> Tensor:
    """int64[C, N]: for each column c and entry e the sum of table[c][(m[e] - v) mod size] over the set bits v.

    m: int64 of N entries, read modulo size; bits: shares of what `unit_vectors` returns; table: int64[C, size].
    """
    m, table = ring(m, "unit_lookup: m"), ring(table, "unit_lookup: table")
    if table.dim() != 2:
        raise ValueError(f"unit_lookup: a table has columns of entries, int64[C, size], not {list(table.shape)}")
    columns, size = table.shape
    check_size(size, "unit_lookup")
    n = m.numel()
    bits = same_size(bits, n * max(1, size // 64), "unit_lookup: bits").view(n, max(1, size // 64))
    kernels = native(m)
    if kernels is None:
        return twins.unit_lookup(m, bits, table)
    turned = table.flip(1).roll(1, 1).repeat(1, 2).contiguous()
    out = torch.empty(columns, n, dtype=torch.int64)
    kernels.unit_lookup(
        out.data_ptr(), m.data_ptr(), bits.data_ptr(), turned.data_ptr(), n, size, columns, get_num_threads()
    )
    return out
