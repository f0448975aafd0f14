"""What a party or the dealer computes on: a device of its own choice, and how tensors get there and back.

The choice is no part of what parties agree on: the same program gives the same bits on every device. Messages are bytes
in main memory; beside a GPU they lie in pages that it reads and writes itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from protocols.errors import ConfigError, explain

Device = torch.device | str | None
"""A device as people name it; None is the CPU."""
CPU = torch.device("cpu")
_PINNED_BYTES = 1 << 16  # smaller messages are copied as fast from any page
_TOGETHER_BYTES = 1 << 20  # a copy of so much takes longer than to begin another one
_beside: set[torch.device] = set()
"""The GPUs that this process computes on."""


def chosen(name: Device) -> torch.device:
    """The device with this name ("cpu", "cuda", "cuda:1"; None: the CPU), of a process that will compute on it.

    From then on large messages of this process lie in pages for its GPU. Raises ConfigError where there is no such
    device, or none that has what the engine needs.
    """
    device = _named(name)
    if device.type == "cuda":
        device = _gpu(device)
        _beside.add(device)
    return device


def same_order() -> Callable[[], AbstractContextManager[object]]:
    """For work that other threads do for this one: inside of what this gives, GPUs do it in the order of this thread's.

    Torch has a current stream for each thread, and streams do not wait for each other: what one thread makes in its own,
    another would read before it is there, and memory that one gives back would be written while another reads it.
    """
    streams = [_current(device) for device in sorted(_beside, key=str) if device.type == "cuda"]

    @contextmanager
    def entered() -> Iterator[None]:
        with ExitStack() as stack:
            for stream in streams:
                stack.enter_context(_in_stream(stream))
            yield

    return entered if streams else nullcontext


def _current(device: torch.device) -> Any:
    return torch.cuda.current_stream(device)


def _in_stream(stream: Any) -> AbstractContextManager[object]:
    return torch.cuda.stream(stream)


def _named(name: Device) -> torch.device:
    try:
        device = CPU if name is None else torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(
            explain(f"no device is called {str(name)!r}", fix='use "cpu", "cuda", or "cuda:1" for the second GPU')
        ) from None
    if device.type not in ("cpu", "cuda"):
        why = "it lacks what the engine needs: whole numbers of 64 bits, and float64 for their products"
        raise ConfigError(
            explain(f"nothing here computes on the device {device.type!r}", why=why, fix='use "cpu" or "cuda"')
        )
    return CPU if device.type == "cpu" else device


def _gpu(device: torch.device) -> torch.device:
    what = f"this process cannot compute on {str(device)!r}"
    if not torch.backends.cuda.is_built():
        raise ConfigError(
            explain(
                what,
                why=f"torch {torch.__version__} was built without CUDA",
                fix="install a build of torch with CUDA (https://pytorch.org), or leave the device out",
            )
        )
    if not torch.cuda.is_available():
        fix = "look at `nvidia-smi` and CUDA_VISIBLE_DEVICES, or leave the device out"
        raise ConfigError(explain(what, why="torch finds no GPU, or no driver for it", fix=fix))
    count, index = torch.cuda.device_count(), device.index or 0
    if index >= count:
        raise ConfigError(
            explain(what, why=f"there are {count} GPUs, counted from 0", fix=f'use "cuda:{count - 1}" or one before')
        )
    return torch.device("cuda", index)


def host_bytes(nbytes: int) -> Tensor:
    """A new uint8 tensor in main memory, for a message; its contents are not initialized."""
    pinned = bool(_beside) and nbytes >= _PINNED_BYTES
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous tensors of one device in main memory, as bytes of messages; those that are there already as they are.

    They lie in one piece of memory. Small ones are put together first and cross in one copy, large ones in a copy each; all
    are on their way before the first is waited for.
    """
    if not tensors or tensors[0].device.type == "cpu":
        return list(tensors)
    order = sorted(range(len(tensors)), key=lambda at: -tensors[at].element_size())  # so each begins where its type may
    raw = [tensors[at].view(-1).view(torch.uint8) for at in order]
    sizes = [part.numel() for part in raw]
    whole = host_bytes(sum(sizes))
    if len(raw) > 1 and whole.numel() <= _TOGETHER_BYTES:
        raw, places = [torch.cat(raw)], [whole]
    else:
        places = list(whole.split_with_sizes(sizes))
    for place, part in zip(places, raw, strict=True):
        place.copy_(part, non_blocking=True)
    _wait(tensors[0].device)
    copies = dict(zip(order, whole.split_with_sizes(sizes), strict=True))
    return [copies[at].view(tensor.dtype).view(tensor.shape) for at, tensor in enumerate(tensors)]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, as it is where it is there. Nobody may change it afterwards: the copy may be on its way."""
    return tensor if tensor.device == device else tensor.to(device, non_blocking=device.type != "cpu")


def to_device_together(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Bytes of messages, flat uint8 tensors of main memory, on a device. Those that lie in one piece of memory, next to each
    other or with little between them, cross in one copy, and are views of it there.
    """
    if device.type == "cpu":
        return list(parts)
    pieces: dict[int, list[int]] = {}
    for at, part in enumerate(parts):
        pieces.setdefault(part.untyped_storage().data_ptr(), []).append(at)
    found: dict[int, Tensor] = {}
    for places in pieces.values():
        here = [parts[at] for at in places]
        begin = min(part.storage_offset() for part in here)
        size = max(part.storage_offset() + part.numel() for part in here) - begin
        if len(here) == 1 or size > 2 * sum(part.numel() for part in here):
            found.update((at, to_device(parts[at], device)) for at in places)
            continue
        whole = to_device(here[0].as_strided((size,), (1,), begin), device)
        for at, part in zip(places, here, strict=True):
            first = part.storage_offset() - begin
            found[at] = whole[first : first + part.numel()]
    return [found[at] for at in range(len(parts))]


def _wait(device: torch.device) -> None:
    """Until what this thread asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
