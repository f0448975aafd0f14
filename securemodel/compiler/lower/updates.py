"""What optimizers write as one operator: sums with products and quotients."""

from __future__ import annotations

import torch

from securemodel.compiler.builder import Builder
from securemodel.compiler.lower.arithmetic import add_scaled, div, mul, sub
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten


@lowers(aten.addcmul.default)
def addcmul(g: Builder, x, y, z, value=1):
    """x + value y z."""
    return add_scaled(g, x, mul(g, y, z) if y.secret or z.secret else g.pointwise(torch.mul, y, z), value)


@lowers(aten.addcdiv.default)
def addcdiv(g: Builder, x, y, z, value=1):
    """x + value y / z, on the domain of a division."""
    return add_scaled(g, x, div(g, y, z) if y.secret or z.secret else g.pointwise(torch.div, y, z), value)


@lowers(aten.lerp.Scalar)
def lerp(g: Builder, x, y, weight):
    """x + weight (y - x)."""
    return add_scaled(g, x, sub(g, y, x), weight)


@lowers(aten.lerp.Tensor)
def lerp_between(g: Builder, x, y, weight):
    """x + weight (y - x), with a weight for each element."""
    return add_scaled(g, x, mul(g, sub(g, y, x), weight))
