"""The arithmetic that has to be fast: ring products, comparisons on packed bits, key streams.

Every kernel is a pure function on buffers that knows no party and no network. Modules, bottom to top:
  twins      every kernel in plain torch; the definition of what is right, and what runs off the CPU
  variant    picks the compiled build for this CPU (csrc/ holds its C++), or the twins
  checks     argument checks the wrappers share
  keystream  ChaCha20
  linear     matrix products and convolutions
  planes     comparison and other work on packed bits
  pointwise  truncation, selection, fixed point
  tables     lookups at a secret index
  residues   products modulo one large number (imported from there)
"""

from protocols.kernels.keystream import chacha20
from protocols.kernels.linear import conv1d, conv2d, conv_transpose1d, conv_transpose2d, matmul
from protocols.kernels.planes import (
    combine,
    leaves,
    monomial_sets,
    monomials,
    msb_plane,
    pack_bits,
    thermometer,
    unpack_bits,
)
from protocols.kernels.pointwise import (
    bit_times,
    bit_to_ring,
    deal_truncation,
    decode,
    encode,
    select,
    select_truncated,
    truncate,
)
from protocols.kernels.tables import unit_lookup, unit_vectors
from protocols.kernels.twins import wrap_dtype
from protocols.kernels.variant import info, keep_freed_memory, use

__all__ = [
    "bit_times", "bit_to_ring", "chacha20", "combine", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d",
    "deal_truncation", "decode", "encode", "info", "keep_freed_memory", "leaves", "matmul", "monomial_sets",
    "monomials", "msb_plane", "pack_bits", "select", "select_truncated", "thermometer", "truncate", "unit_lookup",
    "unit_vectors", "unpack_bits", "use", "wrap_dtype",
]  # fmt: skip
