"""Division by 2^f, for |x| < 2^62: the nearest multiple with the carry of the low bits, else the floor or one more.

z = x + offset + 2^62 is opened as m = z + l (x is opened, and all add the public numbers). With w = msb(l) (1 - msb(m)),
the carry out of z + l, and c = [m mod 2^f < l mod 2^f], the carry out of its low bits,
    (x + offset) >> f = (m >> f) - (l >> f) + w 2^(64-f) - 2^(62-f) - c.
The dealer shares `high` = l >> f and `wrap` = msb(l), the latter modulo 2^f only, because it is multiplied by
2^(64-f): two bytes for f <= 16. 1 - msb(m) is public. Result additive.
[Dalskov et al. 2019, section 5 (carry correction); Escudero et al. 2020.]

Two operands: c is a masked bit c = hat ^ gamma (sign.py makes it), and the dealer shares gamma as a ring element. The
result is exact, and with offset = 2^(f-1) the nearest whole number, halves upward. One operand: c is left out, and the
result is floor or floor + 1, unbiased; which one depends on l.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from protocols import kernels
from protocols.gates.base import Dealt, Part, Shape, numel, ring_part
from protocols.shares import Role


def carry_mask(bits: torch.Tensor, shape: Shape) -> torch.Tensor:
    """The mask of the carry as ring elements."""
    return kernels.bit_times(bits, None, numel(shape)).reshape(shape)


def wrap_part(name: str, shape: Shape, attrs: dict) -> Part:
    """What is multiplied by 2^(64 - f): its lowest f bits count."""
    dtype = kernels.wrap_dtype(attrs["bits"])
    return (
        ring_part(name, shape, attrs, attrs["bits"]) if dtype == torch.int64 else Part(name, "add", tuple(shape), dtype)
    )


class Truncate:
    """attrs: {"bits": f}, 1 <= f <= 61; with a carry also {"offset"}."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        wrap = wrap_part("wrap", shape, attrs)
        names = ("high", "carry") if len(shapes) > 1 else ("high",)
        return (*(ring_part(name, shape, attrs) for name in names), wrap)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        high, wrap = kernels.deal_truncation(masks[0], attrs["bits"])
        dealt = {"high": high, "wrap": wrap}
        return {**dealt, "carry": carry_mask(masks[1], high.shape)} if len(masks) > 1 else dealt

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Any], dealt: Dealt) -> torch.Tensor:
        x, *carry = operands
        exact: tuple[Any, ...] = (attrs["offset"], carry[0].hat, dealt["carry"]) if carry else ()
        return kernels.truncate(x.m, dealt["high"], dealt["wrap"], attrs["bits"], role.public, *exact)
