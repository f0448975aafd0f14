"""Matrix products and convolutions of ring values."""

from math import prod

import torch
from torch import Tensor

from protocols.kernels import twins
from protocols.kernels.checks import MAX_STEP, accumulation, check_out, ring, within_memory
from protocols.kernels.variant import native

Pair = int | tuple[int, int]
Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None, accumulate: str | None = None) -> Tensor:
    """a @ b with wrap-around, written, added ("add") or subtracted ("sub") into `out` when that is given.

    a: int64[*, M, K], b: int64[*, K, N]; batch dimensions broadcast as in torch.matmul; any strides.
    Raises TypeError or ValueError when dtypes or shapes do not fit.
    """
    if a.dtype is not torch.int64 or b.dtype is not torch.int64:
        raise TypeError(f"matmul: both operands must be int64, not {a.dtype} and {b.dtype}")
    if a.dim() < 2 or b.dim() < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: cannot multiply {tuple(a.shape)} by {tuple(b.shape)}; expected [*,M,K] and [*,K,N]")
    mode = accumulation(out, accumulate, "matmul")
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    if b.dim() == 2 and (a.dim() == 2 or a.is_contiguous()):
        batch: tuple[int, ...] = ()
        shape = (*a.shape[:-1], n)
        rows = prod(shape[:-1])
    else:
        batch = tuple(torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]))
        shape = (*batch, m, n)
        rows = m
        a, b = a.expand(*batch, m, k), b.expand(*batch, k, n)
    within_memory("matmul: the result", *shape)
    if out is not None:
        check_out(out, shape, "matmul")
    kernels = native(a)
    if kernels is None:
        return twins.matmul(a, b, out, accumulate)
    if out is None:
        out = a.new_empty(shape)
    a = a if batch else a.reshape(rows, k)  # an axis of size one may have any stride, also in a contiguous tensor
    sa, sb = a.stride(), b.stride()
    kernels.matmul(
        out.data_ptr(), a.data_ptr(), b.data_ptr(), rows, n, k, sa[-2], sa[-1], sb[-2], sb[-1], mode,
        batch, sa[:-2] if batch else (), sb[:-2] if batch else (), torch.get_num_threads(),
    )  # fmt: skip
    return out


def _pair(value: Pair, what: str, low: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(n, int) and low <= n <= MAX_STEP for n in pair):
        raise ValueError(f"{what} must be one or two integers from {low} to {MAX_STEP}, not {value}")
    return pair


def _padding(value: Padding) -> tuple[tuple[int, int], tuple[int, int]]:
    rows, columns = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value, value)
    return _pair(rows, "conv2d: padding", 0), _pair(columns, "conv2d: padding", 0)


def _check_parts(what: str, x: Tensor, w: Tensor, groups: int) -> None:
    """ValueError for an image or a kernel without elements, and for less than one group."""
    if 0 in (*x.shape, *w.shape) or groups < 1:
        raise ValueError(
            f"{what}: image {tuple(x.shape)} and kernel {tuple(w.shape)} in {groups} groups have nothing to multiply; "
            "every axis has at least one element, and there is at least one group"
        )


def conv2d(
    x: Tensor, w: Tensor, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1, groups: int = 1,
    out: Tensor | None = None, accumulate: str | None = None,
) -> Tensor:  # fmt: skip
    """Two-dimensional convolution (as torch has it: no flip) with wrap-around.

    x: int64[N,C,H,W], w: int64[O,C/groups,kh,kw] -> int64[N,O,H',W']. padding: one number, (rows, columns) or
    ((top, bottom), (left, right)). out and accumulate as in `matmul`.
    Raises TypeError or ValueError when dtypes or shapes do not fit.
    """
    x, w = ring(x, "conv2d: x"), ring(w, "conv2d: w")
    _check_parts("conv2d", x, w, groups)
    if x.dim() != 4 or w.dim() != 4 or x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise ValueError(
            f"conv2d: image {tuple(x.shape)} and kernel {tuple(w.shape)} do not fit with groups={groups}; "
            "expected [N,C,H,W] and [O,C/groups,kh,kw]"
        )
    mode = accumulation(out, accumulate, "conv2d")
    (sh, sw), (dh, dw) = _pair(stride, "conv2d: stride", 1), _pair(dilation, "conv2d: dilation", 1)
    (top, bottom), (left, right) = _padding(padding)
    n, c, height, width = x.shape
    o, _, kh, kw = w.shape
    rows = (height + top + bottom - dh * (kh - 1) - 1) // sh + 1
    columns = (width + left + right - dw * (kw - 1) - 1) // sw + 1
    if rows < 1 or columns < 1:
        raise ValueError(f"conv2d: kernel {kh}x{kw} with dilation {dh, dw} is larger than the padded image")
    within_memory("conv2d: the padded image", n, c, height + top + bottom, width + left + right)
    within_memory("conv2d: the result", n, o, rows, columns)
    if out is not None:
        check_out(out, (n, o, rows, columns), "conv2d")
    kernels = native(x)
    if kernels is None:
        return twins.conv2d(
            x, w, (sh, sw), ((top, bottom), (left, right)), (dh, dw), groups, out, accumulate
        )  # fmt: skip
    if out is None:
        out = x.new_empty((n, o, rows, columns))
    kernels.conv2d(
        out.data_ptr(), x.data_ptr(), w.data_ptr(),
        (n, c, height, width, o, kh, kw, rows, columns, sh, sw, dh, dw, top, left, groups),
        mode, torch.get_num_threads(),
    )  # fmt: skip
    return out


def conv1d(
    x: Tensor, w: Tensor, stride: int = 1, padding: int | tuple[int, int] = 0, dilation: int = 1, groups: int = 1,
    out: Tensor | None = None, accumulate: str | None = None,
) -> Tensor:  # fmt: skip
    """One-dimensional convolution: x int64[N,C,L], w int64[O,C/groups,k]; padding one number or (left, right)."""
    sides = (padding, padding) if isinstance(padding, int) else padding
    wide_out = None if out is None else out.unsqueeze(2)
    y = conv2d(
        x.unsqueeze(2), w.unsqueeze(2), (1, stride), ((0, 0), sides), (1, dilation), groups, wide_out, accumulate
    )
    return y.squeeze(2) if out is None else out


def conv_transpose2d(
    x: Tensor, w: Tensor, stride: Pair = 1, padding: Pair = 0, output_padding: Pair = 0, dilation: Pair = 1,
    groups: int = 1, out: Tensor | None = None, accumulate: str | None = None,
) -> Tensor:  # fmt: skip
    """Transposed convolution: x int64[N,C,H,W], w int64[C,O/groups,kh,kw]; arguments as torch names them."""
    x, w = ring(x, "conv_transpose2d: x"), ring(w, "conv_transpose2d: w")
    _check_parts("conv_transpose2d", x, w, groups)
    if x.dim() != 4 or w.dim() != 4 or x.shape[1] != w.shape[0] or w.shape[0] % groups:
        raise ValueError(
            f"conv_transpose2d: image {tuple(x.shape)} and kernel {tuple(w.shape)} do not fit with groups={groups}; "
            "expected [N,C,H,W] and [C,O/groups,kh,kw]"
        )
    step, gap = _pair(stride, "conv_transpose2d: stride", 1), _pair(dilation, "conv_transpose2d: dilation", 1)
    cut = _pair(padding, "conv_transpose2d: padding", 0)
    extra = _pair(output_padding, "conv_transpose2d: output_padding", 0)
    sides = []
    for size, taps, s, d, p, e in zip(x.shape[2:], w.shape[2:], step, gap, cut, extra, strict=True):
        if e >= max(s, d):
            raise ValueError(f"conv_transpose2d: output_padding {e} is not below stride {s} or dilation {d}")
        reach = d * (taps - 1)
        if (size - 1) * s + reach + e < 2 * p:
            raise ValueError(f"conv_transpose2d: padding {p} leaves nothing of the result")
        sides.append((size - 1) * s + 1 + max(reach - p, 0) + max(reach - p + e, 0))
    within_memory("conv_transpose2d: the image between its zeros", *x.shape[:2], *sides)
    image, kernel = twins.transposed_as_direct(x, w, step, cut, extra, gap, groups)
    return conv2d(image, kernel, 1, 0, gap, groups, out, accumulate)


def conv_transpose1d(
    x: Tensor, w: Tensor, stride: int = 1, padding: int = 0, output_padding: int = 0, dilation: int = 1,
    groups: int = 1, out: Tensor | None = None, accumulate: str | None = None,
) -> Tensor:  # fmt: skip
    """Transposed one-dimensional convolution: x int64[N,C,L], w int64[C,O/groups,k]."""
    wide_out = None if out is None else out.unsqueeze(2)
    y = conv_transpose2d(
        x.unsqueeze(2), w.unsqueeze(2), (1, stride), (0, padding), (0, output_padding), (1, dilation), groups,
        wide_out, accumulate,
    )  # fmt: skip
    return y.squeeze(2) if out is None else out
