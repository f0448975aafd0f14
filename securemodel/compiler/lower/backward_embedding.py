"""Gradients of tables: what was read at a position is added there."""

from __future__ import annotations

import torch

from securemodel.compiler.builder import Builder, CannotLower
from securemodel.compiler.lower.choosing import added_at
from securemodel.compiler.lower.registry import lowers

aten = torch.ops.aten


@lowers(aten.embedding_dense_backward.default)
def embedding_dense_backward(g: Builder, dy, index, count, padding_idx, scale_grad_by_freq):
    """Sums of dy over the places of each row of a table."""
    if scale_grad_by_freq:
        raise CannotLower("gradients scaled by how often a token is there", "use scale_grad_by_freq=False")
    made = added_at(g, index, dy, count)
    if not 0 <= padding_idx < count:
        return made
    kept = torch.ones(count, 1, dtype=torch.int64)
    kept[padding_idx] = 0
    return g.mul(made, g.constant(kept))
