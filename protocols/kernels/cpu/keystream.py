"""The ChaCha20 key stream in C++."""

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
