"""Bytes in and out of tensors without copying them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from protocols.devices import host_bytes
from protocols.errors import InputError, explain

Buffer = Any  # a contiguous CPU tensor, or anything that supports memoryview (bytes, bytearray, numpy array)

_NUMPY_INTEGERS = frozenset((torch.int64, torch.uint8, torch.int32, torch.int16))
_SMALL_BYTES = 4096  # below this, copying a buffer is cheaper than one more write
_RECORD_BYTES = 16384  # largest TLS record
_GATHERED_BYTES = 1 << 16  # of several messages at most: one record


def byte_view(buffer: Buffer) -> memoryview:
    """A flat view of a buffer's bytes, not a copy. Raises InputError if the buffer has no contiguous CPU bytes."""
    if isinstance(buffer, torch.Tensor):
        if not buffer.is_cpu or not buffer.is_contiguous():
            raise InputError(
                explain(
                    f"cannot send a tensor of shape {tuple(buffer.shape)} on {buffer.device}",
                    why="only contiguous tensors in main memory can be sent",
                    fix="call .cpu().contiguous() first",
                )
            )
        if not buffer.numel():
            return memoryview(b"")
        if buffer.dtype not in _NUMPY_INTEGERS:
            buffer = buffer.detach().view(-1).view(torch.uint8)
        return memoryview(buffer.numpy()).cast("B")
    view = memoryview(buffer)
    if not view.contiguous:
        raise InputError(explain("cannot send a buffer that is not contiguous", fix="copy it into bytes first"))
    return view.cast("B") if view.nbytes else memoryview(b"")


def fresh(nbytes: int) -> torch.Tensor:
    """A new uint8 tensor with room for `nbytes`; its contents are not initialized."""
    return host_bytes(nbytes)


def writable(tensor: torch.Tensor) -> memoryview:
    """The bytes of a uint8 tensor, to be received into."""
    return tensor.numpy().data


def coalesce(header: bytes, views: Sequence[memoryview]) -> list[memoryview]:
    """Header and payload as few pieces: a small message, or small neighbors, are copied together, large buffers stay
    where they are."""
    if len(header) + sum(map(len, views)) <= _GATHERED_BYTES:
        return [memoryview(b"".join((header, *views)))]
    pieces: list[memoryview] = []
    small = bytearray(header)
    for view in views:
        if len(view) <= _SMALL_BYTES:
            small += view
            continue
        if small:
            room = _RECORD_BYTES - len(small) % _RECORD_BYTES
            small += view[:room]  # fill the encryption record that the small pieces started
            pieces.append(memoryview(small))
            small = bytearray()
            view = view[room:]
        if view:
            pieces.append(view)
    if small:
        pieces.append(memoryview(small))
    return pieces


def gather_first(pieces: deque[memoryview]) -> None:
    """Copies small pieces that follow each other at the front into one, of whole messages or parts of them."""
    if len(pieces[0]) + len(pieces[1]) > _GATHERED_BYTES:
        return
    together = bytearray()
    while pieces and len(together) + len(pieces[0]) <= _GATHERED_BYTES:
        together += pieces.popleft()
    pieces.appendleft(memoryview(together))


def gather(views: Sequence[memoryview], nbytes: int) -> torch.Tensor:
    """One new tensor with all bytes of the views, in order."""
    tensor = fresh(nbytes)
    if nbytes:
        target, start = writable(tensor), 0
        for view in views:
            target[start : start + len(view)] = view
            start += len(view)
    return tensor
