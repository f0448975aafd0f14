"""Rows of a masked value in an order that one party alone knows.

The owner's positions s, all different, are opened as d = p^-1(s) for an order p that the owner draws with the dealer
(`protocols.correlations.hidden_order`): with p uniform, d is a uniform choice of different positions, whatever s is.
With x = m - l, where all know m and the dealer shares the rows of l in the order p,
    x[s] = m[s] - l[s] = m[s] - (l in the order p)[d],
so each party reads its share at d, and the owner adds m[s], which it alone can find. Whose mask l is does not matter:
with that of the party who gives x it is the permutation of shares of Chase, Ghosh, Poburinnaya, "Secret-Shared
Shuffle" (ASIACRYPT 2020), whose correlation the dealer makes here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from protocols.gates.base import Dealt, Part, Shape
from protocols.shares import Role


class Permute:
    """x[s] along the first axis, as additive shares. Operands: (positions as `Order`, x masked); the mask of the first is p."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        return (Part("rows", "add", tuple(shapes[1])),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        order, lam = masks
        return {"rows": lam.index_select(0, order)}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Any], dealt: Dealt) -> torch.Tensor:
        positions, x = operands
        out = -dealt["rows"].index_select(0, positions.at)
        if positions.order is None:
            return out
        return out.add_(x.m.index_select(0, positions.order.index_select(0, positions.at)))
