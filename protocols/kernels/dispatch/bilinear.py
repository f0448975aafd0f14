"""Matrix products and convolutions, as they are called."""

import itertools

import torch
from torch import Tensor

from protocols.kernels.checks import (
    Padding,
    Pair,
    accumulation,
    check_out,
    conv_sizes,
    convolution,
    pair,
    ring,
    sides,
    within_memory,
)
from protocols.kernels.twins.bilinear import transposed_as_direct
from protocols.kernels.variant import kernels_for


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None, accumulate: str | None = None) -> Tensor:
    """a @ b with wrap-around, written, added ("add") or subtracted ("sub") into `out` when that is given.

    a: int64[*, M, K], b: int64[*, K, N]; batch dimensions broadcast as in torch.matmul; any strides.
    """
    if a.dtype is not torch.int64 or b.dtype is not torch.int64:
        raise TypeError(f"matmul: both operands must be int64, not {a.dtype} and {b.dtype}")
    if a.dim() < 2 or b.dim() < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: cannot multiply {tuple(a.shape)} by {tuple(b.shape)}; expected [*,M,K] and [*,K,N]")
    accumulation(out, accumulate, "matmul")
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    if b.dim() == 2 and (a.dim() == 2 or a.is_contiguous()):
        shape = (*a.shape[:-1], n)
    else:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        shape = (*batch, m, n)
        a, b = a.expand(*batch, m, k), b.expand(*batch, k, n)
    within_memory("matmul: the result", *shape)
    if out is not None:
        check_out(out, shape, "matmul")
    return kernels_for(a, b, out).matmul(a, b, out, accumulate)


def sign_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ sign(b) modulo 2^32: int32[M, K] and int8[K, N] make int32[M, N]."""
    if a.dtype is not torch.int32 or b.dtype is not torch.int8:
        raise TypeError(f"sign_product: takes int32 and int8, not {a.dtype} and {b.dtype}")
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"sign_product: cannot multiply {tuple(a.shape)} by {tuple(b.shape)}")
    return kernels_for(a, b).sign_product(a.contiguous(), b.contiguous())


def conv2d(
    x: Tensor, w: Tensor, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1, groups: int = 1,
    out: Tensor | None = None, accumulate: str | None = None,
) -> Tensor:  # fmt: skip
    """Two-dimensional convolution (as torch has it: no flip) with wrap-around.

    x: int64[N,C,H,W], w: int64[O,C/groups,kh,kw] -> int64[N,O,H',W']. padding: one number, (rows, columns) or
    ((top, bottom), (left, right)). out and accumulate as in `matmul`.
    """
    x, w = ring(x, "conv2d: x"), ring(w, "conv2d: w")
    convolution("conv2d", x, w, groups, False)
    accumulation(out, accumulate, "conv2d")
    step, gap, pads = pair(stride, "conv2d: stride", 1), pair(dilation, "conv2d: dilation", 1), sides(padding)
    (n, c, height, width), (o, _, kh, kw) = x.shape, w.shape
    rows, columns = conv_sizes(x.shape, w.shape, step, pads, gap)
    if rows < 1 or columns < 1:
        raise ValueError(f"conv2d: kernel {kh}x{kw} with dilation {gap} is larger than the padded image")
    within_memory("conv2d: the padded image", n, c, height + sum(pads[0]), width + sum(pads[1]))
    within_memory("conv2d: the result", n, o, rows, columns)
    if out is not None:
        check_out(out, (n, o, rows, columns), "conv2d")
    return kernels_for(x, w, out).conv2d(x, w, step, pads, gap, groups, out, accumulate)


def conv1d(
    x: Tensor, w: Tensor, stride: int = 1, padding: int | tuple[int, int] = 0, dilation: int = 1, groups: int = 1,
    out: Tensor | None = None, accumulate: str | None = None,
) -> Tensor:  # fmt: skip
    """One-dimensional convolution: x int64[N,C,L], w int64[O,C/groups,k]; padding one number or (left, right)."""
    ends = (padding, padding) if isinstance(padding, int) else padding
    wide_out = None if out is None else out.unsqueeze(2)
    y = conv2d(x.unsqueeze(2), w.unsqueeze(2), (1, stride), ((0, 0), ends), (1, dilation), groups, wide_out, accumulate)
    return y.squeeze(2) if out is None else out


def conv_transpose2d(
    x: Tensor, w: Tensor, stride: Pair = 1, padding: Pair = 0, output_padding: Pair = 0, dilation: Pair = 1,
    groups: int = 1, out: Tensor | None = None, accumulate: str | None = None,
) -> Tensor:  # fmt: skip
    """Transposed convolution: x int64[N,C,H,W], w int64[C,O/groups,kh,kw]; arguments as torch names them."""
    x, w = ring(x, "conv_transpose2d: x"), ring(w, "conv_transpose2d: w")
    convolution("conv_transpose2d", x, w, groups, True)
    step, gap = pair(stride, "conv_transpose2d: stride", 1), pair(dilation, "conv_transpose2d: dilation", 1)
    cut = pair(padding, "conv_transpose2d: padding", 0)
    extra = pair(output_padding, "conv_transpose2d: output_padding", 0)
    spread = []
    for size, taps, s, d, p, e in zip(x.shape[2:], w.shape[2:], step, gap, cut, extra, strict=True):
        if e >= max(s, d):
            raise ValueError(f"conv_transpose2d: output_padding {e} is not below stride {s} or dilation {d}")
        reach = d * (taps - 1)
        if (size - 1) * s + reach + e < 2 * p:
            raise ValueError(f"conv_transpose2d: padding {p} leaves nothing of the result")
        spread.append((size - 1) * s + 1 + max(reach - p, 0) + max(reach - p + e, 0))
    within_memory("conv_transpose2d: the image between its zeros", *x.shape[:2], *spread)
    sizes = [
        (size - 1) * s + d * (taps - 1) + 1 + e - 2 * p
        for size, taps, s, d, p, e in zip(x.shape[2:], w.shape[2:], step, gap, cut, extra, strict=True)
    ]
    between = step != (1, 1) or w.shape[1] < 16  # zeros between pixels, or too few channels for fast products
    if groups == 1 and between and 2 * sizes[0] * sizes[1] > 3 * x.shape[2] * x.shape[3]:
        return _transposed_by_taps(x, w, step, cut, extra, gap, out, accumulate)
    image, kernel = transposed_as_direct(x, w, step, cut, extra, gap, groups)
    return conv2d(image, kernel, 1, 0, gap, groups, out, accumulate)


def _transposed_by_taps(
    x: Tensor, w: Tensor, step: tuple[int, int], cut: tuple[int, int], extra: tuple[int, int], gap: tuple[int, int],
    out: Tensor | None, accumulate: str | None,
) -> Tensor:  # fmt: skip
    """One product for all taps of the kernel, each then added where it belongs: multiplies by no zeros between pixels."""
    (n, c, height, width), (_, o, kh, kw) = x.shape, w.shape
    rows, columns = ((size - 1) * s for size, s in zip((height, width), step, strict=True))
    whole = rows + gap[0] * (kh - 1) + 1 + extra[0], columns + gap[1] * (kw - 1) + 1 + extra[1]
    shape = n, o, whole[0] - 2 * cut[0], whole[1] - 2 * cut[1]
    accumulation(out, accumulate, "conv_transpose2d")
    if out is not None:
        check_out(out, shape, "conv_transpose2d")
    within_memory("conv_transpose2d: the taps", n, o * kh * kw, height, width)
    taps = matmul(w.reshape(c, -1).t(), x.reshape(n, c, -1)).view(n, o, kh, kw, height, width)
    y = x.new_zeros((n, o, *whole))
    for i, j in itertools.product(range(kh), range(kw)):
        top, left = i * gap[0], j * gap[1]
        y[:, :, top : top + rows + 1 : step[0], left : left + columns + 1 : step[1]] += taps[:, :, i, j]
    y = y[:, :, cut[0] : whole[0] - cut[0], cut[1] : whole[1] - cut[1]]
    if out is None:
        return y.contiguous()
    return out.copy_(y) if accumulate is None else (out.add_(y) if accumulate == "add" else out.sub_(y))


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
