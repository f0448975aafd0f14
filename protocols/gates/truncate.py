"""Division by 2^f that never fails: floor or floor + 1, unbiased, for |x| < 2^62.

z = x + 2^62 is opened as m = z + l. With w = msb(l) (1 - msb(m)), the carry out of z + l,
    x >> f = (m >> f) - (l >> f) + w 2^(64-f) - 2^(62-f) - c,     c in {0, 1} the dropped low carry.
The dealer shares `high` = l >> f and `wrap` = msb(l), the latter modulo 2^f only, because it is multiplied by
2^(64-f): two bytes for f <= 16. 1 - msb(m) is public.
[Dalskov et al. 2019, section 5 (carry correction); Escudero et al. 2020.] Result additive.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocols import kernels
from protocols.gates.base import Dealt, Part, Shape
from protocols.shares import Masked, Role


class Truncate:
    """attrs: {"bits": f}, 1 <= f <= 61."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        return (Part("high", "add", tuple(shape)), Part("wrap", "add", tuple(shape), kernels.wrap_dtype(attrs["bits"])))

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        high, wrap = kernels.deal_truncation(masks[0], attrs["bits"])
        return {"high": high, "wrap": wrap}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Masked], dealt: Dealt) -> torch.Tensor:
        return kernels.truncate(operands[0].m, dealt["high"], dealt["wrap"], attrs["bits"], role.first)
