"""Correlated randomness: how what a dealer makes reaches the online parties.

The dealer shares one 32-byte key with each online party. Masks are the sum (exclusive or, for bits) of
the parties' streams, so they cost nothing to hand out. A dealt value v is shared as: stream output at
every rank but the last, and the correction v minus those outputs at the last rank, to which alone bytes
are sent (docs/protocol.md, section 1). All of them are made on the device of the stream they are drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from protocols import kernels
from protocols.gates.base import Dealt, Part
from protocols.kernels import Piece
from protocols.prg import Draws, Place, Stream, Use

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


def dealt_places(node: int, parts: Sequence[Part]) -> list[Place]:
    """Where the shares of dealt values are in the stream of any rank but the last."""
    return [Place(node, Use.DEALT, part.shape, part.dtype, index) for index, part in enumerate(parts)]


def taken_places(node: int, parts: Sequence[Part]) -> list[Place]:
    """The same, to be taken from the values: what is left is the last party's shares."""
    places = zip(dealt_places(node, parts), parts, strict=True)
    return [replace(place, mode=_MODES[part.sharing]) for place, part in places]


def packed(share: torch.Tensor, part: Part) -> torch.Tensor:
    """The last party's share as it is sent: of ring elements the low bytes alone, where no more are read."""
    if part.low is None:
        return share
    _, (sent,) = kernels.hide([None], [share], [Piece(part.low)])
    return sent


def unpacked(sent: torch.Tensor, part: Part) -> torch.Tensor:
    """The share, from what `packed` made of it; bytes that were left out are zero."""
    if part.low is None:
        return sent.view(part.dtype).view(part.shape)
    share = torch.zeros(part.shape, dtype=torch.int64, device=sent.device)
    kernels.join([share], sent, [Piece(part.low)])
    return share


def expand_share(stream: Stream, epoch: int, node: int, parts: Sequence[Part]) -> Dealt:
    """The shares of dealt values at any rank but the last, from its stream alone."""
    drawn = Draws(dealt_places(node, parts)).draw(stream, epoch)
    return {part.name: share for part, share in zip(parts, drawn, strict=True)}


def corrections(
    streams: Sequence[Stream], epoch: int, node: int, parts: Sequence[Part], values: Dealt
) -> list[torch.Tensor]:
    """The last party's shares: each value minus the streams of all other ranks. Changes `values` in place."""
    out, draws = [values[part.name].contiguous() for part in parts], Draws(taken_places(node, parts))
    for stream in streams:
        draws.fill(stream, epoch, out)
    return out
