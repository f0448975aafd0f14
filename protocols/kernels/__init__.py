"""The arithmetic that has to be fast: ring products, comparisons on packed bits, key streams.

Every kernel is a pure function on buffers that knows no party and no network. Modules, bottom to top:
  twins     every kernel in plain torch; the definition of what is right, and what runs off the CPU
  checks    checks of arguments
  cpu       every kernel in C++ (csrc/ has its source), with the twins' signatures
  gpu       kernels in Triton, with the same signatures; imported where a tensor is on a GPU
  variant   picks the kernels for a device, and the compiled build for this CPU
  dispatch  the functions to call, by families: they check arguments and run the kernels of their operands' device
  residues  products modulo one large number (imported from there)
"""

from protocols.kernels.dispatch import (
    bit_times,
    bit_to_ring,
    chacha20,
    chacha20_many,
    combine,
    combine_layer,
    conv1d,
    conv2d,
    conv_transpose1d,
    conv_transpose2d,
    deal_spline,
    deal_truncation,
    decode,
    encode,
    hide,
    join,
    leaves,
    lookup_around,
    matmul,
    monomials,
    monomials_layer,
    msb_plane,
    narrow,
    pack_bits,
    select,
    select_truncated,
    sign_product,
    spline,
    thermometer,
    truncate,
    unit_lookup,
    unit_vectors,
    unpack_bits,
    weighted_around,
    widen,
)
from protocols.kernels.twins.openings import Piece
from protocols.kernels.twins.planes import monomial_sets
from protocols.kernels.twins.pointwise import wrap_dtype
from protocols.kernels.twins.tables import PARTS
from protocols.kernels.variant import info, keep_freed_memory, use

__all__ = [
    "PARTS",
    "Piece",
    "bit_times",
    "bit_to_ring",
    "chacha20",
    "chacha20_many",
    "combine",
    "combine_layer",
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
    "deal_spline",
    "deal_truncation",
    "decode",
    "encode",
    "hide",
    "info",
    "join",
    "keep_freed_memory",
    "leaves",
    "lookup_around",
    "matmul",
    "monomial_sets",
    "monomials",
    "monomials_layer",
    "msb_plane",
    "narrow",
    "pack_bits",
    "select",
    "select_truncated",
    "sign_product",
    "spline",
    "thermometer",
    "truncate",
    "unit_lookup",
    "unit_vectors",
    "unpack_bits",
    "use",
    "weighted_around",
    "widen",
    "wrap_dtype",
]  # fmt: skip
