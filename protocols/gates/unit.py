"""The unit vector of a secret index, from one opening of the index.

An index j in Z_K, K = 2^k, is opened as m = j + l mod K. The dealer shares the unit vector of l, and
    [j = v] = [l = m - v],
so each party reads its share of it in another order [Pika, Wagh 2022, section 4, with additive shares].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocols.gates.base import Dealt, Part, Shape, numel
from protocols.shares import Masked, Role

MAX_BITS = 20


class Unit:
    """[j = v] for v = 0 .. K-1 in a new last axis, as additive shares. attrs: {"size": K}."""

    def parts(self, attrs: dict, shapes: Sequence[Shape], shape: Shape) -> tuple[Part, ...]:
        return (Part("unit", "add", (numel(shapes[0]), attrs["size"])),)

    def deal(self, attrs: dict, masks: Sequence[torch.Tensor]) -> Dealt:
        at = (masks[0].reshape(-1) & (attrs["size"] - 1)).unsqueeze(1)
        return {"unit": at.new_zeros(at.numel(), attrs["size"]).scatter_(1, at, 1)}

    def evaluate(self, role: Role, attrs: dict, operands: Sequence[Masked], dealt: Dealt) -> torch.Tensor:
        (index,), size = operands, attrs["size"]
        at = (index.m.reshape(-1, 1) - torch.arange(size, device=index.m.device)) & (size - 1)
        return dealt["unit"].gather(1, at).reshape(*index.m.shape, size)
