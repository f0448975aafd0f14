"""What is opened in one round in Triton: hidden and packed for the wire, and put together with what peers sent."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from protocols.kernels.gpu import launch
from protocols.kernels.gpu.launch import blocks, elements, on_device
from protocols.kernels.twins.openings import Piece, row_index

BLOCK = 256
"""Elements of a program."""


@triton.jit
def hide_kernel(value, wire, share, mask, n, size, WIDTH: tl.constexpr, BITS: tl.constexpr, SHARED: tl.constexpr,
                BLOCK: tl.constexpr):  # fmt: skip
    """One piece of `hide`; size: bytes of the wire, zeros where no element has them. SHARED: whether there is a share."""
    e = elements(BLOCK)
    inside = e < n
    hidden = tl.load(mask + e, mask=inside, other=0)
    if SHARED:
        own = tl.load(share + e, mask=inside, other=0)
        if BITS:
            hidden = hidden ^ own
        else:
            hidden = hidden + own
    tl.store(value + e, hidden, mask=inside)
    if WIDTH < 8:
        byte = tl.arange(0, 8)[None, :]
        at = e[:, None] * WIDTH + byte
        tl.store(wire + at, (hidden[:, None] >> (8 * byte)).to(tl.uint8), mask=(byte < WIDTH) & (at < size))


@triton.jit
def join_kernel(value, part, n, WIDTH: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """One piece of `join`; part: its bytes."""
    e = elements(BLOCK)
    inside = e < n
    byte = tl.arange(0, 8)[None, :]
    each = tl.load(part + e[:, None] * WIDTH + byte, mask=inside[:, None] & (byte < WIDTH), other=0)
    sent = tl.sum(each.to(tl.int64) << (8 * byte), axis=1)
    own = tl.load(value + e, mask=inside, other=0)
    if BITS:
        own = own ^ sent
    else:
        own = own + sent
    tl.store(value + e, own, mask=inside)


def _hidden(share: Tensor | None, mask: Tensor, piece: Piece) -> tuple[Tensor, Tensor]:
    if share is not None and piece.rows is not None:
        share = share.index_select(0, row_index(piece.rows, share.device))
    value, n = torch.empty_like(mask), mask.numel()
    wire = value if piece.width == 8 else value.new_empty(piece.wire_bytes(mask.shape), dtype=torch.uint8)
    grid = blocks(-(-wire.numel() // piece.width) if piece.width < 8 else n, BLOCK)
    hide_kernel[grid](
        value, wire, mask if share is None else share, mask, n, wire.numel(), WIDTH=piece.width, BITS=piece.bits,
        SHARED=share is not None, BLOCK=BLOCK, num_warps=launch.WARPS,
    )  # fmt: skip
    return value, wire.view(-1).view(torch.uint8)


def hide(
    shares: Sequence[Tensor | None], masks: Sequence[Tensor], pieces: Sequence[Piece]
) -> tuple[list[Tensor], list[Tensor]]:
    """The sums, and the bytes to send of each."""
    with on_device(masks[0].device):
        made = [_hidden(*each) for each in zip(shares, masks, pieces, strict=True)]
    return [value for value, _ in made], [wire for _, wire in made]


def join(values: Sequence[Tensor], wire: Tensor, pieces: Sequence[Piece]) -> None:
    """Adds a peer's parts to values in place."""
    at = 0
    with on_device(wire.device):
        for value, piece in zip(values, pieces, strict=True):
            size, n = piece.wire_bytes(value.shape), value.numel()
            join_kernel[blocks(n, BLOCK)](
                value, wire[at : at + size], n, WIDTH=piece.width, BITS=piece.bits, BLOCK=BLOCK, num_warps=launch.WARPS
            )
            at += size


def narrow(values: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
    """The low bytes of each, as `hide` sends them."""
    pieces = [Piece(width) for width in widths]
    return [hide([None], [value], [piece])[1][0] for value, piece in zip(values, pieces, strict=True)]


def widen(parts: Sequence[Tensor], widths: Sequence[int], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The numbers, with zero high bytes."""
    values = [part.new_zeros(tuple(shape), dtype=torch.int64) for part, shape in zip(parts, shapes, strict=True)]
    for value, part, width in zip(values, parts, widths, strict=True):
        join([value], part, [Piece(width)])
    return values
