"""What is opened in one round: see `protocols.kernels.dispatch`."""

from collections.abc import Sequence
from functools import cache
from math import prod

import torch
from torch import Tensor

from protocols.kernels.checks import ring, same_size
from protocols.kernels.twins.openings import Piece
from protocols.kernels.variant import kernels_for


def hide(
    shares: Sequence[Tensor | None], masks: Sequence[Tensor], pieces: Sequence[Piece]
) -> tuple[list[Tensor], list[Tensor]]:
    """Shares under masks, as new tensors of the masks' shapes, and what is sent of them: uint8 buffers to join in order.

    shares: int64 with as many elements as the mask or, where the piece names rows, with rows as large as its own; None is
    zero. Per piece share + mask, or their exclusive or; low bytes of each element, padded to whole words.
    """
    given, hidden_by = [], []
    for share, mask, (width, _, rows) in zip(shares, masks, pieces, strict=True):
        if mask.dtype is not torch.int64 or not mask.is_contiguous():
            mask = ring(mask, "hide: a mask")
        n = mask.numel()
        if not 1 <= width <= 8 or (rows is not None and width < 8):
            raise ValueError(f"hide: {width} bytes of each element; there are 1 to 8, and of rows all are sent")
        if rows is not None and share is not None:
            share = _rows(share, n, rows)
        elif share is not None and (share.dtype is not torch.int64 or not share.is_contiguous() or share.numel() != n):
            share = same_size(share, n, "hide: a share")
        given.append(share)
        hidden_by.append(mask)
    if not given:
        return [], []
    return kernels_for(*hidden_by, *given).hide(given, hidden_by, pieces)


def _rows(share: Tensor, n: int, rows: tuple[int, ...]) -> Tensor:
    """A contiguous share of which these rows have n elements; ValueError otherwise."""
    share = ring(share, "hide: a share")
    count, size = (share.shape[0], prod(share.shape[1:])) if share.dim() > 1 else (0, 0)
    if size * len(rows) != n or not _are_rows(rows, count):
        raise ValueError(f"hide: rows {list(rows)} of a share of {list(share.shape)} do not make {n} elements")
    return share


@cache
def _are_rows(rows: tuple[int, ...], count: int) -> bool:
    """Whether there are rows of these numbers among so many."""
    return bool(rows) and min(rows) >= 0 and max(rows) < count


def join(values: Sequence[Tensor], wire: Tensor, pieces: Sequence[Piece]) -> None:
    """Puts together, in place, values that `hide` made and what a peer sent of the same pieces, uint8 on their device."""
    size = 0
    for value, (width, _, _) in zip(values, pieces, strict=True):
        if value.dtype is not torch.int64 or not value.is_contiguous() or not 1 <= width <= 8:
            raise TypeError(f"join: values must be contiguous int64 tensors, not {value.dtype} with {value.stride()}")
        size += -(-value.numel() * width // 8) * 8
    if wire.dtype is not torch.uint8 or wire.dim() != 1 or wire.numel() != size or not wire.is_contiguous():
        raise ValueError(f"join: {size} bytes belong to these values, not {wire.dtype} of {list(wire.shape)}")
    if values:
        kernels_for(wire, *values).join(values, wire, pieces)


def narrow(values: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
    """The low `width` bytes of each element of int64 tensors, padded to whole words: a uint8 tensor for each."""
    given = []
    for value, width in zip(values, widths, strict=True):
        if value.dtype is not torch.int64 or not value.is_contiguous():
            value = ring(value, "narrow: a value")
        if not 1 <= width <= 8:
            raise ValueError(f"narrow: {width} bytes of each element; there are 1 to 8")
        given.append(value)
    return kernels_for(*given).narrow(given, widths) if given else []


def widen(parts: Sequence[Tensor], widths: Sequence[int], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The inverse of `narrow`, with zero high bytes: new int64 tensors of these shapes."""
    for part, width, shape in zip(parts, widths, shapes, strict=True):
        size = -(-prod(shape) * width // 8) * 8
        if part.dtype is not torch.uint8 or part.dim() != 1 or part.numel() != size or not part.is_contiguous():
            raise ValueError(
                f"widen: {width} bytes of each of {list(shape)} are {size}, not {part.dtype} of {list(part.shape)}"
            )
        if not 1 <= width <= 8:
            raise ValueError(f"widen: {width} bytes of each element; there are 1 to 8")
    return kernels_for(*parts).widen(parts, widths, shapes) if parts else []
