"""Kernels for NVIDIA's GPUs in Triton, which comes with builds of torch for them. Signatures and meaning are those of the
twins, and so are the kernels that are not written in Triton.

Arguments are taken as correct, and ring values, planes and shares as contiguous: the functions of `protocols.kernels`
see to both before any kernel runs. Importing this needs Triton.
"""

from protocols.kernels.gpu.bilinear import conv2d, matmul, sign_product
from protocols.kernels.gpu.keystream import chacha20, chacha20_many
from protocols.kernels.gpu.openings import hide, join, narrow, widen
from protocols.kernels.gpu.planes import (
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
from protocols.kernels.gpu.pointwise import (
    bit_times,
    bit_to_ring,
    deal_truncation,
    select,
    select_truncated,
    truncate,
)
from protocols.kernels.gpu.tables import (
    deal_spline,
    lookup_around,
    spline,
    unit_lookup,
    unit_vectors,
    weighted_around,
)
from protocols.kernels.twins.pointwise import decode, encode

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
