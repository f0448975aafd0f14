"""A call of each family of kernels, for parity with the CPU and for times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from protocols import kernels
from protocols.gates.sign import groups, opened_planes
from protocols.kernels import Piece

KEY, NONCE = bytes(range(32)), bytes(12)
Call = Callable[[], Tensor | Sequence[Tensor]]


def ring(*shape: int) -> Tensor:
    """Ring values, the same each time."""
    return torch.randint(-(2**63), 2**63 - 1, shape, generator=torch.Generator().manual_seed(5))


def families(n: int, device: torch.device) -> dict[str, tuple[int, Call]]:
    """By name: how many bytes a call reads and writes at least, and the call, with operands on the device."""
    x, y, z = (t.to(device) for t in (ring(n), ring(n) >> 3, ring(n) * 5))
    bits, other = (ring(-(-n // 64)).to(device) + by for by in (0, 7))
    wrap = y.to(torch.int16)
    therm = kernels.thermometer(y, 63)
    layout, opened = groups(16), len(opened_planes(16))
    planes = ring(31, -(-n // 64)).to(device)
    masks = planes[:opened].contiguous()
    dealt = kernels.monomials_layer(masks, layout)
    table = ring(3, 256).to(device)
    vectors = kernels.unit_vectors(x, 256) ^ 5
    coefficients, shifts, cuts = [x, y, z], (8, 0, 8), (13, 9, 4)
    *powers, sums = kernels.deal_spline(coefficients, y, z, shifts, 13, 15)
    pieces_of, chosen, weights = ring(3, 2048).to(device), kernels.unit_vectors(x, 128) ^ 5, ring(n, 128).to(device)
    image = ring(1, 1, 8, 8).to(device)
    side = min(256, int(n**0.5))
    square = x[: side * side].view(side, side)
    pieces = [Piece(5), Piece(8, bits=True)]
    shared, hidden = [x, bits], [y, other]

    def joined() -> list[Tensor]:
        values, wires = kernels.hide(shared, hidden, pieces)
        kernels.join(values, torch.cat([wire.view(-1) for wire in wires]), pieces)
        return values

    plane = 8 * len(bits)
    return {
        "chacha20": (16 * n, lambda: kernels.chacha20(x.clone(), KEY, NONCE, "sub", 3)),
        "chacha20, 16 bits": (4 * n, lambda: kernels.chacha20(wrap.clone(), KEY, NONCE, "add")),
        "matmul": (24 * side * side, lambda: kernels.matmul(square, square.t())),
        "conv2d": (8 * 64, lambda: kernels.conv2d(image, image[..., :3, :3].contiguous(), 1, 1)),
        "msb_plane": (8 * n + plane, lambda: kernels.msb_plane(x, 63, 9)),
        "thermometer": (40 * n, lambda: kernels.thermometer(x, 63)),
        "leaves": (40 * n + 31 * plane, lambda: kernels.leaves(x, therm, 63, 0, 5)),
        "monomials": ((opened + len(dealt)) * plane, lambda: kernels.monomials_layer(masks, layout)),
        "combine": ((2 * opened + len(dealt) + 11) * plane,
                    lambda: kernels.combine_layer(masks ^ 5, masks, dealt, planes, layout, 1)),
        "deal_truncation": (18 * n, lambda: kernels.deal_truncation(x, 16)),
        "truncate": (34 * n + plane, lambda: kernels.truncate(x, y, wrap, 16, 1, 1 << 15, bits, z)),
        "select": (32 * n + plane, lambda: kernels.select(bits, x, None, y, z, 1)),
        "select_truncated": (60 * n + 2 * plane, lambda: kernels.select_truncated(
            bits, x, y, wrap, z, x, wrap, 16, 1, 1 << 15, other, y, z)),
        "bit_to_ring": (16 * n + plane, lambda: kernels.bit_to_ring(bits, y, 1)),
        "bit_times": (16 * n + plane, lambda: kernels.bit_times(bits, y, n)),
        "unpack_bits": (n + plane, lambda: kernels.unpack_bits(bits, n)),
        "unit_vectors": (40 * n, lambda: kernels.unit_vectors(x, 256)),
        "unit_lookup": (64 * n, lambda: kernels.unit_lookup(x, vectors, table)),
        "lookup_around": (48 * n, lambda: kernels.lookup_around(x, chosen, pieces_of, 13, cuts)),
        "weighted_around": (1056 * n, lambda: kernels.weighted_around(x, weights, pieces_of, 13, cuts)),
        "deal_spline": (8 * 9 * n, lambda: kernels.deal_spline(coefficients, y, z, shifts, 13, 15)),
        "spline": (8 * 8 * n, lambda: kernels.spline(coefficients, powers, sums, shifts, 1)),
        "openings": (5 * 8 * n, joined),
        "narrow, widen": (2 * (8 + 5) * n, lambda: kernels.widen(kernels.narrow([x], [5]), [5], [x.shape])),
    }  # fmt: skip


def parts(made: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """What a call gives, in main memory."""
    return [t.cpu() for t in ([made] if isinstance(made, Tensor) else made)]
