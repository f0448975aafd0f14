"""Matrix products and convolutions in C++."""

from math import prod

import torch
from torch import Tensor

from protocols.kernels.checks import Sides, conv_sizes
from protocols.kernels.cpu import build

_STORE = {None: 0, "add": 1, "sub": 2}


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None, accumulate: str | None = None) -> Tensor:
    """a @ b: b has two axes and a can be seen as one matrix, or both have the same batch dimensions; any strides."""
    k, n = b.shape[-2:]
    if out is None:
        out = a.new_empty((*a.shape[:-1], n))
    if b.dim() == 2:
        batch: tuple[int, ...] = ()
        rows = prod(a.shape[:-1])
        a = a.reshape(rows, k)  # an axis of size one may have any stride, also in a contiguous tensor
    else:
        batch, rows = a.shape[:-2], a.shape[-2]
    sa, sb = a.stride(), b.stride()
    build.module.matmul(
        out.data_ptr(), a.data_ptr(), b.data_ptr(), rows, n, k, sa[-2], sa[-1], sb[-2], sb[-1], _STORE[accumulate],
        batch, sa[:-2], sb[:-2], torch.get_num_threads(),
    )  # fmt: skip
    return out


def sign_product(a: Tensor, b: Tensor) -> Tensor:
    """int32 a @ sign(int8 b), modulo 2^32."""
    out = a.new_empty(len(a), b.shape[1])
    build.module.sign_product(
        out.data_ptr(), a.data_ptr(), b.data_ptr(), len(a), b.shape[1], len(b), torch.get_num_threads()
    )
    return out


def conv2d(
    x: Tensor, w: Tensor, stride: tuple[int, int] = (1, 1), padding: Sides = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1), groups: int = 1, out: Tensor | None = None, accumulate: str | None = None,
) -> Tensor:  # fmt: skip
    """Cross-correlation of x[N,C,H,W] with w[O,C/groups,kh,kw]."""
    n, c, height, width = x.shape
    o, _, kh, kw = w.shape
    rows, columns = conv_sizes(x.shape, w.shape, stride, padding, dilation)
    if out is None:
        out = x.new_empty((n, o, rows, columns))
    build.module.conv2d(
        out.data_ptr(), x.data_ptr(), w.data_ptr(),
        (n, c, height, width, o, kh, kw, rows, columns, *stride, *dilation, padding[0][0], padding[1][0], groups),
        _STORE[accumulate], torch.get_num_threads(),
    )  # fmt: skip
    return out
