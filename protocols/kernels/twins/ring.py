"""What torch lacks for 64-bit lanes that count from zero."""

import torch
from torch import Tensor


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of 64-bit lanes."""
    if bits == 0:
        return x.clone()
    return (x >> bits) & ((1 << (64 - bits)) - 1) if bits < 64 else torch.zeros_like(x)
