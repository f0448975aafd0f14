"""Argument checks the kernel wrappers share, short because they run on every call."""

from math import prod

import torch
from torch import Tensor

from protocols.kernels.twins import wrap_dtype

CONTIGUOUS = torch.contiguous_format
MAX_BYTES = (1 << 63) - 1  # of a tensor, and of what a kernel makes beside it
MAX_STEP = (1 << 31) - 1  # of a stride, a padding, a dilation


def within_memory(what: str, *sizes: int) -> None:
    """ValueError for a tensor of int64 whose bytes no 64-bit number counts, or with an axis below zero."""
    if min(sizes) < 0 or prod(sizes) > MAX_BYTES // 8:
        raise ValueError(f"{what} would have the shape {list(sizes)}, which is no size of a tensor")


def ring(t: Tensor, what: str) -> Tensor:
    """The tensor itself, or a contiguous copy; TypeError unless it is int64."""
    if t.dtype is not torch.int64:
        raise TypeError(f"{what} must be an int64 tensor, not {t.dtype}; ring values and bit planes are int64")
    return t if t.is_contiguous() else t.contiguous()


def same_size(t: Tensor, numel: int, what: str) -> Tensor:
    """A contiguous int64 tensor of `numel` entries; ValueError for another size."""
    t = ring(t, what)
    if t.numel() != numel:
        raise ValueError(f"{what} has {t.numel()} entries, expected {numel}")
    return t


def plane(words: Tensor, n: int, what: str) -> Tensor:
    """A contiguous plane of n bits; ValueError when it holds another number of words."""
    words = ring(words, what)
    if n < 0:
        raise ValueError(f"{what}: there are no {n} bits")
    if words.numel() != (n + 63) >> 6:
        raise ValueError(f"{what} has {words.numel()} words, but {n} bits take {(n + 63) >> 6}")
    return words


def fraction(f: int, what: str) -> None:
    """ValueError unless a value can be truncated by f bits."""
    if not 1 <= f <= 62:
        raise ValueError(f"{what}: cannot truncate by {f} bits; choose 1 to 62")


def wrap(t: Tensor, numel: int, f: int, what: str) -> Tensor:
    """A contiguous tensor of `numel` wrap bits' shares for a truncation by f bits; TypeError for another type."""
    if t.dtype is not wrap_dtype(f):
        raise TypeError(f"{what} must be {wrap_dtype(f)} for a truncation by {f} bits, not {t.dtype}")
    if t.numel() != numel:
        raise ValueError(f"{what} has {t.numel()} entries, expected {numel}")
    return t if t.is_contiguous() else t.contiguous()


def check_out(out: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Refuse an output that the kernel cannot write in place."""
    if out.dtype is not torch.int64 or not out.is_contiguous():
        raise TypeError(f"{what}: out must be a contiguous int64 tensor, not {out.dtype} with strides {out.stride()}")
    if tuple(out.shape) != tuple(shape):
        raise ValueError(f"{what}: out has shape {tuple(out.shape)}, the result {tuple(shape)}")


def accumulation(out: Tensor | None, accumulate: str | None, what: str) -> int:
    """0 to write, 1 to add, 2 to subtract; ValueError for anything else, or when there is nothing to add to."""
    if accumulate is None:
        return 0
    if out is None:
        raise ValueError(f"{what}: accumulate={accumulate!r} needs out, the tensor to accumulate into")
    if accumulate not in ("add", "sub"):
        raise ValueError(f"{what}: accumulate must be None, 'add' or 'sub', not {accumulate!r}")
    return 1 if accumulate == "add" else 2
