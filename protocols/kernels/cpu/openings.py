"""What is opened in one round in C++: hidden and packed for the wire, and put together with what peers sent."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from protocols.kernels.cpu import build
from protocols.kernels.twins.openings import Piece

_SENT_AS_IT_IS = 1 << 13
"""Elements from which on a value that is sent whole is not copied onto the wire."""


@cache
def _runs(rows: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """Rows that follow each other: (the first of them, how many, their place among all)."""
    found: list[tuple[int, int, int]] = []
    for place, row in enumerate(rows):
        first, count, start = found[-1] if found else (row, 0, 0)
        if found and row == first + count:
            found[-1] = (first, count + 1, start)
        else:
            found.append((row, 1, place))
    return tuple(found)


def hide(
    shares: Sequence[Tensor | None], masks: Sequence[Tensor], pieces: Sequence[Piece]
) -> tuple[list[Tensor], list[Tensor]]:
    """The sums, and the bytes to send of all, in few buffers."""
    values: list[Tensor] = []
    told: list[int] = []
    cuts: list[tuple[int, Tensor]] = []
    at = 0
    for share, mask, (width, bits, rows) in zip(shares, masks, pieces, strict=True):
        value, n = torch.empty_like(mask), mask.numel()
        values.append(value)
        if width == 8 and n >= _SENT_AS_IT_IS:
            cuts.append((at, value))
            width = 0
        to, hidden_by = value.data_ptr(), mask.data_ptr()
        if share is None or rows is None:
            told += (to, 0 if share is None else share.data_ptr(), hidden_by, n, width, bits)
        else:
            row, start = n // len(rows), share.data_ptr()
            for first, count, place in _runs(rows):
                skip = 8 * row * place
                told += (to + skip, start + 8 * row * first, hidden_by + skip, count * row, width, bits)
        at += -(-n * width // 8) * 8
    packed = torch.empty(at, dtype=torch.uint8)
    build.module.hide(packed.data_ptr(), told, torch.get_num_threads())
    if not cuts:
        return values, [packed]
    wires, begin = [], 0
    for end, value in cuts:
        wires += [packed[begin:end], value.view(-1).view(torch.uint8)]
        begin = end
    return values, [wire for wire in (*wires, packed[begin:]) if wire.numel()]


def join(values: Sequence[Tensor], wire: Tensor, pieces: Sequence[Piece]) -> None:
    """Adds a peer's parts to values in place."""
    told: list[int] = []
    for value, (width, bits, _) in zip(values, pieces, strict=True):
        told += (value.data_ptr(), value.numel(), width, bits)
    build.module.join(wire.data_ptr(), told, torch.get_num_threads())


def narrow(values: Sequence[Tensor], widths: Sequence[int]) -> list[Tensor]:
    """The low bytes of each, as parts of one tensor."""
    sizes = [-(-value.numel() * width // 8) * 8 for value, width in zip(values, widths, strict=True)]
    packed = torch.empty(sum(sizes), dtype=torch.uint8)
    at, told = packed.data_ptr(), list[int]()
    for value, width, size in zip(values, widths, sizes, strict=True):
        told += (at, value.data_ptr(), value.numel(), width)
        at += size
    build.module.narrow(told, torch.get_num_threads())
    return list(packed.split_with_sizes(sizes))


def widen(parts: Sequence[Tensor], widths: Sequence[int], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """The numbers, with zero high bytes."""
    values: list[Tensor] = []
    told: list[int] = []
    for part, width, shape in zip(parts, widths, shapes, strict=True):
        value = torch.empty(shape, dtype=torch.int64)
        values.append(value)
        told += (part.data_ptr(), value.data_ptr(), value.numel(), width)
    build.module.widen(told, torch.get_num_threads())
    return values
