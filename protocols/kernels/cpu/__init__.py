"""Every kernel in C++ (csrc/), for tensors on the CPU. Signatures and meaning are those of the twins.

Arguments are taken as correct, and ring values, planes and shares as contiguous: the functions of `protocols.kernels`
see to both before any kernel runs.
"""

from protocols.kernels.cpu.bilinear import conv2d, matmul, sign_product
from protocols.kernels.cpu.keystream import chacha20, chacha20_many
from protocols.kernels.cpu.openings import hide, join, narrow, widen
from protocols.kernels.cpu.planes import (
    combine,
    combine_layer,
    leaves,
    monomials,
    monomials_layer,
    msb_plane,
    pack_bits,
    thermometer,
    unpack_bits,
)
from protocols.kernels.cpu.pointwise import (
    bit_times,
    bit_to_ring,
    deal_truncation,
    decode,
    encode,
    select,
    select_truncated,
    truncate,
)
from protocols.kernels.cpu.tables import deal_spline, lookup_around, spline, unit_lookup, unit_vectors, weighted_around

__all__ = [
    "bit_times",
    "bit_to_ring",
    "chacha20",
    "chacha20_many",
    "combine",
    "combine_layer",
    "conv2d",
    "deal_spline",
    "deal_truncation",
    "decode",
    "encode",
    "hide",
    "join",
    "leaves",
    "lookup_around",
    "matmul",
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
    "weighted_around",
    "widen",
]  # fmt: skip
