"""Every kernel once more in plain torch: slow, short, on any device, and the definition of what is right.

Ring values are int64 tensors with wrap-around. A bit plane is an int64 tensor of W = ceil(N / 64) words: bit e of
the plane is bit e % 64 of word e // 64; bits beyond N mean nothing. Arguments are taken as correct: the functions
of `protocols.kernels` check them before any kernel runs.
"""

from protocols.kernels.twins.bilinear import conv2d, matmul, sign_product
from protocols.kernels.twins.keystream import chacha20, chacha20_many
from protocols.kernels.twins.openings import hide, join, narrow, widen
from protocols.kernels.twins.planes import (
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
from protocols.kernels.twins.pointwise import (
    bit_times,
    bit_to_ring,
    deal_truncation,
    decode,
    encode,
    select,
    select_truncated,
    truncate,
)
from protocols.kernels.twins.tables import (
    deal_spline,
    lookup_around,
    spline,
    unit_lookup,
    unit_vectors,
    weighted_around,
)

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
