"""What a party or the dealer computes on: a device of its own choice, and how tensors get there and back.

The choice is no part of what parties agree on: the same program gives the same bits on every device. Messages are bytes
in main memory; beside a GPU they lie in pages that it reads and writes itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protocols.errors import ConfigError, explain

Device = torch.device | str | None
"""A device as people name it; None is the CPU."""
CPU = torch.device("cpu")
_PINNED_BYTES = 1 << 16  # smaller messages are copied as fast from any page
_beside_gpu = False


def chosen(name: Device) -> torch.device:
    """The device with this name ("cpu", "cuda", "cuda:1"; None: the CPU), of a process that will compute on it.

    From then on large messages of this process lie in pages for its GPU. Raises ConfigError where there is no such
    device, or none that has what the engine needs.
    """
    global _beside_gpu
    device = _named(name)
    if device.type == "cuda":
        device = _gpu(device)
        _beside_gpu = True
    return device


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
    pinned = _beside_gpu and nbytes >= _PINNED_BYTES
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous tensors of one device in main memory, as bytes of messages; those that are there already as they are.

    All copies are on their way before the first is waited for.
    """
    if not tensors or tensors[0].device.type == "cpu":
        return list(tensors)
    copies = []
    for tensor in tensors:
        copy = host_bytes(tensor.numel() * tensor.element_size()).view(tensor.dtype).view(tensor.shape)
        copies.append(copy.copy_(tensor, non_blocking=True))
    _wait(tensors[0].device)
    return copies


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, as it is where it is there. Nobody may change it afterwards: the copy may be on its way."""
    return tensor if tensor.device == device else tensor.to(device, non_blocking=device.type != "cpu")


def _wait(device: torch.device) -> None:
    """Until what this thread asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
