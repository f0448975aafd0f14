"""Products of ring matrices in Triton, from 8-bit limbs on tensor cores.

A number of 64 bits is the sum of 8 digits from -128 to 127, each times 2^(8 i). Of the 64 products of digits those with
i + j < 8 count modulo 2^64: 36, added up by i + j in 32 bits and then shifted. Such a sum may pass 2^31 only where
what is shifted out of 64 bits hides it (i + j >= 4), as K is cut where it would for the others.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from protocols.kernels.gpu.launch import on_device
from protocols.kernels.twins.bilinear import Sides, convolved, store

LIMBS = 8
ROWS, COLUMNS, DEPTH = 128, 64, 64
"""Of a tile."""
WARPS, STAGES = 8, 3
_MOST_DEPTH = 1 << 14  # 4 products of digits, each at most 2^14, for so many k stay below 2^31
_MANY_TILES = 128  # fewer do not fill a GPU, and their diagonals are shared out
_CUT_ROWS, _CUT_COLUMNS = 16, 64


@triton.jit
def limbs_kernel(x, out, rows, columns, batch_step, row_step, column_step, padded_rows, padded_columns,
                 LIMBS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """int64[batch, rows, columns] of any strides -> int8[batch, 8, padded_rows, padded_columns], zeros around."""
    batch = tl.program_id(2).to(tl.int64)
    r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    c = (tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)[None, :]
    inside = (r < rows) & (c < columns)
    value = tl.load(x + batch * batch_step + r * row_step + c * column_step, mask=inside, other=0)
    plane = padded_rows.to(tl.int64) * padded_columns
    at = out + batch * LIMBS * plane + r * padded_columns + c
    for i in tl.static_range(LIMBS):
        digit = ((value + 128) & 255) - 128
        tl.store(at + i * plane, digit.to(tl.int8), mask=(r < padded_rows) & (c < padded_columns))
        value = (value - digit) >> 8


@triton.jit
def product_kernel(a, b, out, m, n, padded_m, padded_n, depth, a_step, b_step,
                   ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PARTS: tl.constexpr,
                   MOST: tl.constexpr):  # fmt: skip
    """Parts of a b, int64[PARTS, batch, m, n], from limbs of a, [batch, 8, padded_m, depth], and of b's transpose, [batch,
    8, padded_n, depth].

    Part p has the diagonals i + j = s with s or 7 - s equal to p modulo PARTS: as many products in each of 1, 2 or 4.
    """
    tiles = tl.cdiv(n, COLUMNS)
    tile, part, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    first_row, first_column = tile // tiles * ROWS, tile % tiles * COLUMNS
    r, c, k = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    a_plane, b_plane = padded_m.to(tl.int64) * depth, padded_n.to(tl.int64) * depth
    a_tile = a + batch * a_step + first_row.to(tl.int64) * depth
    b_tile = b + batch * b_step + first_column.to(tl.int64) * depth
    a_at, b_at = r[:, None] * depth + k[None, :], c[None, :] * depth + k[:, None]
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.int64)
    for start in range(0, depth, MOST):
        end = tl.minimum(start + MOST, depth)
        for s in range(8):
            if (tl.minimum(s, 7 - s) % PARTS) == part:
                sums = tl.zeros((ROWS, COLUMNS), dtype=tl.int32)
                for i in range(s + 1):
                    for at in range(start, end, DEPTH):
                        left = tl.load(a_tile + i * a_plane + at + a_at)
                        right = tl.load(b_tile + (s - i) * b_plane + at + b_at)
                        sums = tl.dot(left, right, sums, out_dtype=tl.int32)
                total += sums.to(tl.int64) << (8 * s)
    made = out + ((part * tl.num_programs(2) + batch) * m + first_row) * n + first_column
    inside = (first_row + r[:, None] < m) & (first_column + c[None, :] < n)
    tl.store(made + (r[:, None] * n + c[None, :]), total, mask=inside)


def _up(size: int, tile: int) -> int:
    return -(-size // tile) * tile


def limbs_of(x: Tensor, tile: int) -> tuple[Tensor, int]:
    """Limbs of matrices [batch, rows, columns], and how far apart those of two of them are: not at all for one repeated."""
    if x.stride(0) == 0:
        x = x[:1]
    batch, rows, columns = x.shape
    padded = _up(rows, tile), _up(columns, DEPTH)
    out = torch.empty((batch, LIMBS, *padded), dtype=torch.int8, device=x.device)
    grid = (triton.cdiv(padded[0], _CUT_ROWS), triton.cdiv(padded[1], _CUT_COLUMNS), batch)
    limbs_kernel[grid](x, out, rows, columns, *x.stride(), *padded, LIMBS=LIMBS, ROWS=_CUT_ROWS, COLUMNS=_CUT_COLUMNS)
    return out, 0 if batch == 1 else LIMBS * padded[0] * padded[1]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """[batch, M, K] @ [batch, K, N]."""
    (batch, m, depth), n = a.shape, b.shape[2]
    if not (batch and m and n and depth):
        return a.new_zeros(batch, m, n)
    rows, columns = (min(most, max(16, triton.next_power_of_2(size))) for size, most in ((m, ROWS), (n, COLUMNS)))
    tiles = triton.cdiv(m, rows) * triton.cdiv(n, columns)
    parts = 1 if tiles * batch >= _MANY_TILES else 4
    out = a.new_empty(parts, batch, m, n)
    with on_device(a.device):
        (left, left_step), (right, right_step) = limbs_of(a, rows), limbs_of(b.transpose(1, 2), columns)
        product_kernel[(tiles, parts, batch)](
            left, right, out, m, n, left.shape[2], right.shape[2], left.shape[3], left_step, right_step,
            ROWS=rows, COLUMNS=columns, DEPTH=DEPTH, PARTS=parts, MOST=_MOST_DEPTH,
            num_warps=WARPS if rows * columns >= 1 << 13 else 4, num_stages=STAGES,
        )  # fmt: skip
    return out[0] if parts == 1 else out.sum(0)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the ring, batch dimensions broadcast."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return _product(_batched(a, batch), _batched(b, batch)).view(*batch, a.shape[-2], b.shape[-1])


def _batched(x: Tensor, batch: tuple[int, ...]) -> Tensor:
    """[*, R, C] as [batch, R, C]; matrices that are all the same are not repeated in memory."""
    count, matrix = torch.Size(batch).numel(), x.shape[-2:]
    if x.dim() == 2 or all(step == 0 or size == 1 for size, step in zip(x.shape[:-2], x.stride(), strict=False)):
        return x[(0,) * (x.dim() - 2)].expand(count, *matrix) if count else x.new_empty(0, *matrix)
    return x.expand(*batch, *matrix).reshape(count, *matrix)


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None, accumulate: str | None = None) -> Tensor:
    """a @ b, batch dimensions broadcast."""
    if b.dim() == 2 and (a.dim() == 2 or a.is_contiguous()):  # one product of all rows
        flat = a.reshape(1, a.shape[:-1].numel(), a.shape[-1])
        made = _product(flat, b.unsqueeze(0)).view(*a.shape[:-1], b.shape[1])
    else:
        made = product(a, b)
    return store(made, out, accumulate)


def sign_product(a: Tensor, b: Tensor) -> Tensor:
    """int32 a @ sign(int8 b), modulo 2^32."""
    return product(a.long(), b.sign().long()).to(torch.int32)


def conv2d(
    x: Tensor, w: Tensor, stride: tuple[int, int] = (1, 1), padding: Sides = ((0, 0), (0, 0)),
    dilation: tuple[int, int] = (1, 1), groups: int = 1, out: Tensor | None = None, accumulate: str | None = None,
) -> Tensor:  # fmt: skip
    """Cross-correlation of x[N,C,H,W] with w[O,C/groups,kh,kw], by unfolding."""
    return store(convolved(product, x, w, stride, padding, dilation, groups), out, accumulate)
