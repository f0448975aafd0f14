"""The ChaCha20 key stream in C++."""

from collections.abc import Sequence

import torch
from torch import Tensor

from protocols.kernels.cpu import build

_MODES = {"set": 0, "add": 1, "sub": 2, "xor": 3}


def chacha20(out: Tensor, key: bytes, nonce: bytes, mode: str = "set", offset: int = 0) -> Tensor:
    """Combine the key stream into `out`, in place."""
    lane = out.element_size()
    build.module.chacha20(
        out.data_ptr(), out.numel() * lane, key, nonce, _MODES[mode], lane, offset, torch.get_num_threads()
    )
    return out


def chacha20_many(outs: Sequence[Tensor], key: bytes, nonces: bytes, modes: Sequence[str]) -> None:
    """Combine the key stream of each nonce into the tensor in its place."""
    told: list[int] = []
    for out, mode in zip(outs, modes, strict=True):
        told += (out.data_ptr(), out.nbytes, _MODES[mode], out.itemsize)
    build.module.chacha20_many(told, key, nonces, torch.get_num_threads())
