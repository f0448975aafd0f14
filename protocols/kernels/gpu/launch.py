"""What every kernel in Triton needs when it is called."""

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl

BLOCK = 512
"""Elements of a program of a kernel that goes element by element."""
WARPS = 4


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Inside, kernels run on this GPU; in main memory they are interpreted, for tests."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def blocks(n: int, block: int) -> tuple[int]:
    """A grid of programs of `block` elements each."""
    return (triton.cdiv(n, block),)


@triton.jit
def elements(BLOCK: tl.constexpr):
    """The numbers of this program's elements."""
    return tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def bit_of(words, e, inside):
    """Bit e of a plane, as int64 0 or 1."""
    return (tl.load(words + (e >> 6), mask=inside, other=0) >> (e & 63)) & 1


@triton.jit
def shifted_right(x, by):
    """Logical right shift of int64, by 0 to 63."""
    return (x.to(tl.uint64) >> by).to(tl.int64)
