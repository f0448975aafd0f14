"""Matrix products and convolutions in plain torch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from protocols.kernels.twins.ring import shift_right

Sides = tuple[tuple[int, int], tuple[int, int]]


def product(a: Tensor, b: Tensor, exact_integers: bool | None = None) -> Tensor:
    """a @ b in the ring. Where a device multiplies no integer matrices, by 16-bit limbs in float64.

    A limb product is below 2^32, so sums over up to 2^21 of them are exact; longer ones are cut.
    """
    if a.device.type == "cpu" if exact_integers is None else exact_integers:
        return torch.matmul(a, b)
    total: Tensor | int = 0
    for start in range(0, a.shape[-1], 1 << 20):
        left, right = (
            [(shift_right(t, 16 * i) & 0xFFFF).double() for i in range(4)]
            for t in (a[..., start : start + (1 << 20)], b[..., start : start + (1 << 20), :])
        )
        for i in range(4):
            for j in range(4 - i):
                total = total + (torch.matmul(left[i], right[j]).to(torch.int64) << (16 * (i + j)))
    return total if isinstance(total, Tensor) else torch.matmul(a.double(), b.double()).to(torch.int64)


def store(value: Tensor, out: Tensor | None, accumulate: str | None) -> Tensor:
    """Return `value`, or write, add or subtract it into `out`."""
    if out is None:
        return value
    if accumulate is None:
        return out.copy_(value)
    return out.add_(value) if accumulate == "add" else out.sub_(value)


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None, accumulate: str | None = None) -> Tensor:
    """a @ b, batch dimensions broadcast."""
    return store(product(a, b), out, accumulate)


def sign_product(a: Tensor, b: Tensor) -> Tensor:
    """int32 a @ sign(int8 b), modulo 2^32."""
    return product(a.long(), b.sign().long()).to(torch.int32)


def conv2d(
    x: Tensor, w: Tensor, stride: tuple[int, int] = (1, 1), padding: Sides = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1), groups: int = 1, out: Tensor | None = None, accumulate: str | None = None,
) -> Tensor:  # fmt: skip
    """Cross-correlation of x[N,C,H,W] with w[O,C/groups,kh,kw], by unfolding."""
    return store(convolved(product, x, w, stride, padding, dilation, groups), out, accumulate)


def convolved(
    times: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor, stride: tuple[int, int], padding: Sides,
    dilation: tuple[int, int], groups: int,
) -> Tensor:  # fmt: skip
    """The same from products of matrices that `times` makes."""
    (top, bottom), (left, right) = padding
    x = F.pad(x, (left, right, top, bottom)).contiguous()
    n, c, height, width = x.shape
    o, _, kh, kw = w.shape
    rows = (height - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    columns = (width - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    sn, sc, sh, sw = x.stride()
    patches = x.as_strided(
        (n, c, kh, kw, rows, columns),
        (sn, sc, sh * dilation[0], sw * dilation[1], sh * stride[0], sw * stride[1]),
    ).reshape(n, groups, c // groups * kh * kw, rows * columns)
    return times(w.reshape(1, groups, o // groups, -1), patches).reshape(n, o, rows, columns)


def transposed_as_direct(x: Tensor, w: Tensor, stride, padding, output_padding, dilation, groups: int):
    """The image and kernel whose plain convolution (stride 1, no padding) is the transposed one of x and w."""
    n, c, height, width = x.shape
    spread = x.new_zeros(n, c, (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1)
    spread[:, :, :: stride[0], :: stride[1]] = x
    kh, kw = w.shape[2:]
    reach = (dilation[0] * (kh - 1), dilation[1] * (kw - 1))
    rows = (reach[0] - padding[0], reach[0] - padding[0] + output_padding[0])
    columns = (reach[1] - padding[1], reach[1] - padding[1] + output_padding[1])
    image = F.pad(spread, [max(side, 0) for side in (*columns, *rows)])
    cut = [
        slice(max(-low, 0), size - max(-high, 0))
        for (low, high), size in zip((rows, columns), image.shape[2:], strict=True)
    ]
    kernel = w.reshape(groups, c // groups, w.shape[1], kh, kw).transpose(1, 2).flip(3, 4)
    return image[:, :, cut[0], cut[1]], kernel.reshape(groups * w.shape[1], c // groups, kh, kw)
