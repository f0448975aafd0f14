"""Product of two masked values under any bilinear map B.

x = m_x - l_x and y = m_y - l_y, so
    B(x, y) = B(m_x, m_y) - B(m_x, l_y) - B(l_x, m_y) + B(l_x, l_y)
and the dealer shares B(l_x, l_y): one ring element per element of the result
[Beaver 1991; ABY2.0, Patra et al. 2021, section 3]. The result is additive.

Where one party knows y, it is dealt B(l_x - l, l_y), with its share l of l_x, and finishes with m_x - l and y; the others
only prepare (docs/protocol.md, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocols.bilinear import bilinear
from protocols.gates.base import Dealt, Part, Shape, ring_part
from protocols.shares import Masked, Role, public_share, to_additive


class Bilinear:
    """attrs: {"kind": a key of protocols.bilinear.BILINEAR, "attrs": its attributes}."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        return (ring_part("product", shape, attrs),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        x_lam, y_lam = masks
        return {"product": bilinear(attrs["kind"], x_lam, y_lam, attrs["attrs"])}

    def prepare(self, attrs: dict, x_lam: torch.Tensor | None, y_m: torch.Tensor, dealt: Dealt) -> Dealt:
        """The half that does not depend on x: B(l_x, l_y) - B(l_x, m_y), computed before m_x arrives."""
        if x_lam is not None:
            bilinear(attrs["kind"], x_lam, y_m, attrs["attrs"], out=dealt["product"], accumulate="sub")
        return dealt

    def finish(self, attrs: dict, x_m: torch.Tensor, y_share: torch.Tensor | None, dealt: Dealt) -> torch.Tensor:
        """The other half: B(m_x, this party's additive share of y), one ring product; consumes `dealt`."""
        if y_share is None:
            return dealt["product"]
        return bilinear(attrs["kind"], x_m, y_share, attrs["attrs"], out=dealt["product"], accumulate="add")

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Masked], dealt: Dealt) -> torch.Tensor:
        x, y = operands
        return self.finish(attrs, x.m, to_additive(y, role), self.prepare(attrs, x.lam, y.m, dealt))


class Square:
    """x^2 = m^2 - 2 m l + l^2; the dealer shares l^2."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        return (ring_part("square", shape, attrs),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        return {"square": masks[0] * masks[0]}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Masked], dealt: Dealt) -> torch.Tensor:
        (x,) = operands
        out = dealt["square"]
        if role.public and (known := public_share(x.m * x.m, role)) is not None:
            out = out + known
        return out if x.lam is None else out - 2 * x.m * x.lam
