"""Images read between their pixels, at positions that are known to one party or to nobody.

A position is a row of weights of the pixels: its owner makes them in the clear. Secret ones are weights along each axis.
"""

from __future__ import annotations

import math

import torch

from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.activation import clipped
from securemodel.compiler.lower.comparison import ge
from securemodel.compiler.lower.layers import shaped
from securemodel.compiler.lower.positive import absolute
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten
_BILINEAR, _NEAREST = 0, 1
_ZEROS, _BORDER = 0, 1


def _weights(grid: torch.Tensor, size: tuple[int, ...], mode: int, padding: int, align_corners: bool) -> torch.Tensor:
    """[batch, pixels, positions]: what is read of images that are 1 at one pixel."""
    sample = aten.grid_sampler_2d if len(size) == 2 else aten.grid_sampler_3d
    pixels = torch.eye(math.prod(size)).reshape(1, -1, *size).expand(grid.shape[0], -1, *[-1] * len(size))
    return sample(pixels, grid.float(), mode, padding, align_corners).flatten(2)


@lowers(aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sample(g: Builder, x, grid, mode, padding, align_corners):
    """Pixels at positions from -1 to 1.

    At secret ones of images, linearly between pixels or at the nearest, with zeros or the border around them.
    """
    size, made = x.shape[2:], (*x.shape[:2], *grid.shape[1:-1])
    pixels, positions = math.prod(size), math.prod(grid.shape[1:-1])
    if not grid.secret:
        shape = (x.shape[0], pixels, positions)
        weights = g.float(_weights, grid, tuple(size), mode, padding, align_corners, shape=shape)
        return g.reshape(g.bilinear("matmul", shaped(g, x, (*x.shape[:2], pixels)), weights), made)
    if len(size) != 2 or mode not in (_BILINEAR, _NEAREST) or padding not in (_ZEROS, _BORDER):
        what = "volumes, cubic weights or reflection at secret positions"
        raise CannotLower(what, "use bilinear or nearest, with zeros or border, or positions that one party gives")
    (high, wide), (batch, channels) = size, x.shape[:2]
    flat = g.reshape(grid, (batch, 1, positions, 2))
    columns, rows = (
        _along(g, g.slice(flat, 3, at, at + 1), length, mode, padding, align_corners)
        for at, length in ((0, wide), (1, high))
    )
    read = g.bilinear(
        "matmul", shaped(g, x, (batch, channels * high, wide)), g.reshape(columns, (batch, wide, positions))
    )
    read = g.reshape(g.rescale(read), (batch, channels, high, positions))
    made_of = g.mul(read, g.reshape(rows, (batch, 1, high, positions)))
    return g.reshape(g.linear("sum", made_of, dims=[2], keepdim=False), made)


def _along(g: Builder, at: Value, size: int, mode: int, padding: int, align_corners: bool) -> Value:
    """[batch, size, positions]: the weights along one axis of positions [batch, 1, positions, 1]."""
    factor = (size - 1) / 2 if align_corners else size / 2
    at = g.offset(g.scale(g.reshape(at, at.shape[:3]), factor), (size - 1) / 2)
    if padding == _BORDER:
        at = clipped(g, at, 0.0, float(size - 1))
    if mode == _BILINEAR:
        pixels = g.constant(torch.arange(float(size)).reshape(1, size, 1))
        return g.relu(g.offset(g.linear("neg", absolute(g, g.sub(g.rescale(at), pixels))), 1.0))
    reached = ge(g, at, g.constant(torch.arange(size + 1.0).reshape(1, size + 1, 1) - 0.5))
    return g.linear("index_sub", reached, dim=1, plus=list(range(size)), minus=list(range(1, size + 1)))
