"""Checks of kernels' arguments, short because they run on every call."""

from collections.abc import Sequence
from functools import cache
from math import prod

import torch
from torch import Tensor

from protocols.kernels.twins.bilinear import Sides
from protocols.kernels.twins.planes import monomial_sets
from protocols.kernels.twins.pointwise import wrap_dtype

Groups = tuple[tuple[int, int], ...]
Pair = int | tuple[int, int]
Padding = int | tuple[int, int] | Sides

TABLE_SIZES = (8, 16, 32, 64, 128, 256)
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


def whole_or_nothing(first: int, what: str) -> None:
    """ValueError unless a party has all of a public term or none of it; kernels have no other share of it."""
    if first not in (0, 1):
        raise ValueError(f"{what}: a party adds the public term once or not at all, not {first} times")


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


def accumulation(out: Tensor | None, accumulate: str | None, what: str) -> None:
    """ValueError unless `accumulate` is None, "add" or "sub", and has something to accumulate into."""
    if accumulate is None:
        return
    if out is None:
        raise ValueError(f"{what}: accumulate={accumulate!r} needs out, the tensor to accumulate into")
    if accumulate not in ("add", "sub"):
        raise ValueError(f"{what}: accumulate must be None, 'add' or 'sub', not {accumulate!r}")


def pair(value: Pair, what: str, low: int) -> tuple[int, int]:
    """One or two numbers as two; ValueError unless they are integers from `low` to MAX_STEP."""
    two = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(two) != 2 or not all(isinstance(n, int) and low <= n <= MAX_STEP for n in two):
        raise ValueError(f"{what} must be one or two integers from {low} to {MAX_STEP}, not {value}")
    return two


def sides(padding: Padding) -> Sides:
    """A padding as ((top, bottom), (left, right))."""
    rows, columns = padding if isinstance(padding, (tuple, list)) and len(padding) == 2 else (padding, padding)
    return pair(rows, "conv2d: padding", 0), pair(columns, "conv2d: padding", 0)


def convolution(what: str, x: Tensor, w: Tensor, groups: int, turned: bool) -> None:
    """ValueError unless an image and a kernel have elements and fit together in so many groups."""
    if 0 in (*x.shape, *w.shape) or groups < 1:
        raise ValueError(
            f"{what}: image {tuple(x.shape)} and kernel {tuple(w.shape)} in {groups} groups have nothing to multiply; "
            "every axis has at least one element, and there is at least one group"
        )
    if (
        x.dim() != 4
        or w.dim() != 4
        or x.shape[1] != (w.shape[0] if turned else w.shape[1] * groups)
        or w.shape[0] % groups
    ):
        kernel = "[C,O/groups,kh,kw]" if turned else "[O,C/groups,kh,kw]"
        raise ValueError(
            f"{what}: image {tuple(x.shape)} and kernel {tuple(w.shape)} do not fit with groups={groups}; "
            f"expected [N,C,H,W] and {kernel}"
        )


def conv_sizes(
    x: Sequence[int], w: Sequence[int], stride: tuple[int, int], padding: Sides, dilation: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of the convolution of an image and a kernel of these shapes; below one where none fits."""
    (top, bottom), (left, right) = padding
    rows = (x[2] + top + bottom - dilation[0] * (w[2] - 1) - 1) // stride[0] + 1
    return rows, (x[3] + left + right - dilation[1] * (w[3] - 1) - 1) // stride[1] + 1


def digits(low_bits: int, shift: int, what: str) -> int:
    """How many 4-bit digits `low_bits` bits from bit `shift` on take; ValueError where a value has no such bits."""
    if not 1 <= low_bits <= 68 or not -63 <= shift <= 64 - low_bits:
        raise ValueError(f"{what}: bits {shift} to {shift + low_bits - 1} are not within a 64-bit value")
    return (low_bits + 3) // 4


def planes(t: Tensor, count: int, what: str) -> Tensor:
    """Contiguous int64[count, W]; ValueError for another number of planes."""
    t = ring(t, what)
    if t.dim() != 2 or t.shape[0] != count:
        raise ValueError(f"{what} must hold {count} planes, int64[{count},W], not {list(t.shape)}")
    return t


def group_inputs(k: int, with_eq: bool, what: str) -> int:
    """Planes that are opened of a group of k digits; ValueError for a group of another size than 2 to 4."""
    if not 2 <= k <= 4:
        raise ValueError(f"{what}: a group combines 2 to 4 digits, not {k}")
    return 2 * k - 1 if with_eq else 2 * k - 2


def table_size(size: int, what: str) -> None:
    """ValueError unless a table may have `size` entries."""
    if size not in TABLE_SIZES:
        raise ValueError(f"{what}: a table has {', '.join(map(str, TABLE_SIZES))} entries, not {size}")


def places(bits: Sequence[int], what: str) -> None:
    """ValueError unless these are numbers of bits by which ring values can be moved."""
    if not all(0 <= n <= 63 for n in bits):
        raise ValueError(f"{what}: ring values cannot be moved by {list(bits)} bits")


@cache
def layer_planes(groups: Groups, what: str) -> tuple[int, int, int]:
    """(Planes opened, monomials, planes of all digits) of a layer's groups; ValueError for groups that are none."""
    at, inputs, products = 0, 0, 0
    for start, count in groups:
        if start != at or not 1 <= count <= 4:
            raise ValueError(f"{what}: {list(groups)} are not groups of 1 to 4 digits, from digit 0 on without a gap")
        if count > 1:
            inputs += 2 * count - 1 - (start == 0)
            products += len(monomial_sets(count, start > 0))
        at += count
    return inputs, products, 2 * at - 1
