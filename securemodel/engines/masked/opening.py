"""Openings: for each operator that talks, what a party sends, and how the parts of all parties make the value.

input      its owner sends m = x + lam; lam is its own. As of a mask, it sends the low bytes that are read
positions  their owner sends where they stand in an order that it and the dealer alone know
mask       all send their share of x plus their share of lam, and the sum is m. Where comparisons alone read the value,
           they send the low bytes of each element, and the sum is right in these
mask_bits  all send their share of the bits, exclusive or their share of beta; the exclusive or is hat. Of digits, they
           leave out the planes that the next layer reads as shares
reveal     all send their shares to those who may learn the value, which is the sum

The wire is bytes in main memory, whatever a party computes on: what goes out is copied there when a round's message is put
together, and what comes in is copied from there here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch

from protocols import kernels
from protocols.correlations import hidden_positions
from protocols.devices import to_device
from protocols.errors import BadFrame, explain
from protocols.gates import numel
from protocols.gates.sign import layer_of, opened_bits, opened_planes
from protocols.kernels import Piece
from protocols.shares import RING_BITS, Masked, MaskedBits, Order
from securemodel.compiler.ir import Node
from securemodel.compiler.wire import sent_bits


@dataclass(repr=False, slots=True)
class Part:
    """What one party adds to an opening, and its share of the mask that hides the value (None: nothing hides it)."""

    share: torch.Tensor
    lam: torch.Tensor | None


def part_of(node: Node, share: torch.Tensor | None, lam: torch.Tensor | None) -> Part:
    """This party's part, from its share of the value (None: zero) and of the mask. Without a mask, a share is there."""
    if lam is None:
        return Part(cast(torch.Tensor, share).contiguous(), None)
    if node.form == "masked_bits":
        return Part(opened_bits(node.attrs, cast(torch.Tensor, share)) ^ lam, lam)
    if node.form == "order":
        return Part(hidden_positions(cast(torch.Tensor, share), lam), lam)
    return Part(lam.clone() if share is None else (share + lam).contiguous(), lam)


def outgoing(node: Node, part: Part) -> torch.Tensor:
    """The bytes of a part, as a contiguous tensor where the party computes."""
    return _narrow(part.share, node)


def opened(
    node: Node, mine: Part | None, received: Iterable[torch.Tensor], device: torch.device
) -> Masked | MaskedBits | Order | torch.Tensor:
    """The value, from this party's part (None: it has none) and the bytes of the others'.

    A masked value takes the place of this party's part in memory. What is revealed is in main memory.
    """
    others = [_widen(to_device(part, device), node) for part in received]
    if node.form == "order":
        return Order(others[0], None) if mine is None else Order(mine.share, mine.lam)
    if mine is None:  # an input of another party, which alone has a share of its mask
        (m,) = others
        return Masked(m, None)
    if node.form == "masked_bits":
        for hat in others:
            mine.share.bitwise_xor_(hat)
        return MaskedBits(mine.share, cast(torch.Tensor, mine.lam))
    total = mine.share.clone() if mine.lam is None else mine.share
    for share in others:
        total += share
    return total.cpu() if mine.lam is None else Masked(total, mine.lam)


def check(node: Node, part: torch.Tensor, sender: str) -> None:
    """Looks at what a party sent before it is used. Raises BadFrame for positions outside of their rows, or twice the same."""
    if node.form != "order":
        return
    numbers, width = torch.zeros(numel(node.shape), 8, dtype=torch.uint8), sent_bits(node) // 8
    numbers[:, :width] = part[: numel(node.shape) * width].view(-1, width)
    positions, size = numbers.view(torch.int64).view(-1), node.attrs["size"]
    if bool((positions >= size).any()) or int(positions.bincount().max()) > 1:
        what = f"party {sender!r} sent positions outside of {size} rows, or one of them twice"
        fix = "start again; if it happens again, that party runs other software"
        raise BadFrame(sender, explain(what, where=f"%{node.id} = positions", fix=fix))


def without_filling(share: torch.Tensor, rows: int) -> torch.Tensor:
    """A share of a result of which only the first `rows` rows count: those that only fill up are nobody's."""
    share = share.clone()
    share[rows:] = 0
    return share


def piece_of(node: Node) -> Piece:
    """What of a value goes on the wire, and how parts are put together."""
    rows = opened_planes(*layer_of(node.attrs)) if node.op == "mask_bits" and "digits" in node.attrs else None
    return Piece(sent_bits(node) // 8, node.form == "masked_bits", rows)


def _narrow(m: torch.Tensor, node: Node) -> torch.Tensor:
    """The low bytes of each element, padded to whole words."""
    if sent_bits(node) == RING_BITS:
        return m
    (wire,) = kernels.narrow([m], [sent_bits(node) // 8])
    return wire


def _widen(part: torch.Tensor, node: Node) -> torch.Tensor:
    """The inverse of `_narrow`, with zero high bytes."""
    if sent_bits(node) == RING_BITS:
        return part.view(torch.int64).view(node.shape)
    (out,) = kernels.widen([part], [sent_bits(node) // 8], [node.shape])
    return out
