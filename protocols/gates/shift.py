"""A masked value without its low bits, masked by its mask without them: floor(x / 2^k), or one more, with nothing opened.

x is opened as m = x + l modulo 2^64, so that modulo 2^(64-k)
    (m >> k) - (l >> k)  =  floor(x / 2^k) + c,      c = 1 where the low k bits of m are below those of l, else 0
whatever x is. m >> k is public, and the dealer shares l >> k: that is a masked form of the left side, right in its low
64 - k bits, in which it is the result of truncate.py with one operand.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocols.gates.base import Dealt, Part, Shape, ring_part
from protocols.shares import Masked, Role


class Shift:
    """attrs: {"bits": k}, 1 <= k <= 61, and {"read": r}, where r <= 64 - k low bits of the result are read. Result masked."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        return (ring_part("mask", shape, attrs),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        return {"mask": masks[0] >> attrs["bits"]}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Masked], dealt: Dealt) -> Masked:
        return Masked(operands[0].m >> attrs["bits"], dealt["mask"])
