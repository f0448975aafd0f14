"""Correlated randomness: how what a dealer makes reaches the online parties.

The dealer shares one 32-byte key with each online party. Masks are the sum (exclusive or, for bits) of
the parties' streams, so they cost nothing to hand out. A dealt value v is shared as: stream output at
every rank but the last, and the correction v minus those outputs at the last rank, to which alone bytes
are sent (docs/protocol.md, section 1). All of them are made on the device of the stream they are drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocols.gates.base import Dealt, Part
from protocols.prg import Stream, Use

_MODES = {"add": "sub", "xor": "xor"}


def mask_share(stream: Stream, epoch: int, node: int, shape: Sequence[int]) -> torch.Tensor:
    """One party's share of the ring mask of a node."""
    return stream.draw(shape, epoch, node, Use.MASK)


def bit_mask_share(stream: Stream, epoch: int, node: int, shape: Sequence[int]) -> torch.Tensor:
    """One party's share of the mask of packed bit planes."""
    return stream.draw(shape, epoch, node, Use.BIT_MASK)


def full_mask(streams: Sequence[Stream], epoch: int, node: int, shape: Sequence[int]) -> torch.Tensor:
    """The whole ring mask of a node, from the streams of the parties that contribute to it."""
    out = mask_share(streams[0], epoch, node, shape)
    for stream in streams[1:]:
        stream.fill(out, epoch, node, Use.MASK, mode="add")
    return out


def full_bit_mask(streams: Sequence[Stream], epoch: int, node: int, shape: Sequence[int]) -> torch.Tensor:
    """The whole mask of packed bit planes."""
    out = bit_mask_share(streams[0], epoch, node, shape)
    for stream in streams[1:]:
        stream.fill(out, epoch, node, Use.BIT_MASK, mode="xor")
    return out


def hidden_order(stream: Stream, epoch: int, node: int, size: int) -> torch.Tensor:
    """The order of positions 0 .. size-1 that a party and the dealer know of a node: each is as likely as the others.

    It sorts random numbers of 128 bits. Two of them are equal with a chance below size^2 / 2^129, and no more than that
    does the order differ from a uniform one.
    """
    high, low = stream.draw((2, size), epoch, node, Use.MASK)
    first = low.argsort(stable=True)
    return first.index_select(0, high.index_select(0, first).argsort(stable=True))


def hidden_positions(positions: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Where positions stand in an order: at, with order[at] = positions."""
    where = torch.empty_like(order)
    where[order] = torch.arange(order.numel(), device=order.device)
    return where.index_select(0, positions)


def expand_share(stream: Stream, epoch: int, node: int, parts: Sequence[Part]) -> Dealt:
    """The shares of dealt values at any rank but the last, from its stream alone."""
    return {
        part.name: stream.draw(part.shape, epoch, node, Use.DEALT, part.dtype, index)
        for index, part in enumerate(parts)
    }


def corrections(
    streams: Sequence[Stream], epoch: int, node: int, parts: Sequence[Part], values: Dealt
) -> list[torch.Tensor]:
    """The last party's shares: each value minus the streams of all other ranks. Changes `values` in place."""
    out = []
    for index, part in enumerate(parts):
        share = values[part.name].contiguous()
        for stream in streams:
            stream.fill(share, epoch, node, Use.DEALT, mode=_MODES[part.sharing], index=index)
        out.append(share)
    return out
