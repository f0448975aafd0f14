"""Every kernel as the rest of the project calls it: arguments are checked here, and nowhere else, and whose kernel runs
is decided here by the device of the operands.

Ring values are int64 tensors that wrap around. A plane of N bits is W = ceil(N / 64) int64 words, bit e in bit e % 64 of
word e // 64; bits beyond N may be anything. Element by element, values keep the shape of their first ring argument,
and bits come as one packed plane over its elements in row-major order. `first` is true at exactly one party, which
adds the public terms; m is the opened masked value, x = m - lam. Formulas: docs/protocol.md. All raise TypeError or
ValueError when dtypes, shapes or devices do not fit.
"""

from protocols.kernels.dispatch.bilinear import conv1d, conv2d, conv_transpose1d, conv_transpose2d, matmul, sign_product
from protocols.kernels.dispatch.keystream import chacha20, chacha20_many
from protocols.kernels.dispatch.openings import hide, join, narrow, widen
from protocols.kernels.dispatch.planes import (
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
from protocols.kernels.dispatch.pointwise import (
    bit_times,
    bit_to_ring,
    deal_truncation,
    decode,
    encode,
    select,
    select_truncated,
    truncate,
)
from protocols.kernels.dispatch.tables import (
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
    "conv1d",
    "conv2d",
    "conv_transpose1d",
    "conv_transpose2d",
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
