"""What is opened in one round in plain torch: hidden and packed for the wire, and put together with what peers sent."""

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """What is sent of one value: the low `width` bytes of each element, padded to whole words.

    bits: whether shares are put together by exclusive or. rows: which rows of the share are opened (None: all of it).
    """

    width: int = 8
    bits: bool = False
    rows: tuple[int, ...] | None = None

    def wire_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a value of this shape on the wire."""
        return -(-prod(shape) * self.width // 8) * 8


@cache
def row_index(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Row numbers as an index on a device."""
    return torch.tensor(rows, device=device)


def hide(
    shares: Sequence[Tensor | None], masks: Sequence[Tensor], pieces: Sequence[Piece]
) -> tuple[list[Tensor], list[Tensor]]:
    """The sums, and the bytes to send of each."""
    values, wires = [], []
    for share, mask, piece in zip(shares, masks, pieces, strict=True):
        if share is not None and piece.rows is not None:
            share = share.index_select(0, row_index(piece.rows, share.device))
        hidden = mask.clone() if share is None else share ^ mask if piece.bits else share + mask
        hidden = hidden.view(mask.shape)
        values.append(hidden)
        low = hidden.view(-1).view(torch.uint8)
        if piece.width < 8:
            low = low.view(-1, 8)[:, : piece.width].reshape(-1)
            low = torch.nn.functional.pad(low, (0, piece.wire_bytes(mask.shape) - low.numel()))
        wires.append(low)
    return values, wires


def join(values: Sequence[Tensor], wire: Tensor, pieces: Sequence[Piece]) -> None:
    """Adds a peer's parts to values in place."""
    at = 0
    for value, piece in zip(values, pieces, strict=True):
        part = torch.zeros_like(value)
        raw = wire[at : at + value.numel() * piece.width]
        part.view(-1).view(torch.uint8).view(-1, 8)[:, : piece.width] = raw.view(-1, piece.width)
        value.bitwise_xor_(part) if piece.bits else value.add_(part)
        at += piece.wire_bytes(value.shape)


def narrow(values: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
    """The low bytes of each, as `hide` sends them."""
    wires = []
    for value, width in zip(values, widths, strict=True):
        low = value.reshape(-1).view(torch.uint8).view(-1, 8)[:, :width].reshape(-1)
        wires.append(torch.nn.functional.pad(low, (0, -low.numel() % 8)))
    return wires


def widen(parts: Sequence[Tensor], widths: Sequence[int], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The numbers, with zero high bytes."""
    values = []
    for part, width, shape in zip(parts, widths, shapes, strict=True):
        value = torch.zeros(tuple(shape), dtype=torch.int64, device=part.device)
        value.view(-1).view(torch.uint8).view(-1, 8)[:, :width] = part[: value.numel() * width].view(-1, width)
        values.append(value)
    return values
