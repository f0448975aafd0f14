"""Correlated randomness: how what a dealer makes reaches the online parties.

The dealer shares one 32-byte key with each online party. Masks are the sum (exclusive or, for bits) of
the parties' streams, so they cost nothing to hand out. A dealt value v is shared as: stream output at
every rank but the last, and the correction v minus those outputs at the last rank, to which alone bytes
are sent (docs/protocol.md, section 1). All of them are made on the device of the stream they are drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch

from protocols import kernels
from protocols.gates.base import Dealt, Part
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


def packed(shares: Sequence[torch.Tensor], parts: Sequence[Part]) -> list[torch.Tensor]:
    """The last party's shares as they are sent: of ring elements the low bytes alone, where no more are read."""
    sent = list(shares)
    low = [at for at, part in enumerate(parts) if part.low is not None]
    if low:
        cut = kernels.narrow([shares[at] for at in low], [cast(int, parts[at].low) for at in low])
        for at, wire in zip(low, cut, strict=True):
            sent[at] = wire
    return sent


def unpacked(sent: Sequence[Sequence[tuple[Part, torch.Tensor]]]) -> list[Dealt]:
    """By gate, the shares, from what `packed` made of them; bytes that were left out are zero."""
    dealt: list[Dealt] = []
    low: list[tuple[Dealt, Part, torch.Tensor]] = []
    for of_gate in sent:
        shares: Dealt = {}
        for part, cut in of_gate:
            if part.low is None:
                shares[part.name] = cut.view(part.dtype).view(part.shape)
            else:
                low.append((shares, part, cut))
        dealt.append(shares)
    if low:
        widths, shapes = [cast(int, part.low) for _, part, _ in low], [part.shape for _, part, _ in low]
        for (shares, part, _), share in zip(low, kernels.widen([cut for *_, cut in low], widths, shapes), strict=True):
            shares[part.name] = share
    return dealt


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
