"""Changes of type."""

from __future__ import annotations

import torch

from securemodel.compiler.builder import Builder
from securemodel.compiler.lower.logic import truth
from securemodel.compiler.lower.registry import lowers
from securemodel.compiler.lower.rounding import trunc

aten = torch.ops.aten


@lowers(aten._to_copy.default)
def to_copy(g: Builder, x, dtype=None, **kwargs):
    """Other types: floats stay as they are, whole numbers are cut toward zero, booleans say what is not zero."""
    if dtype is None or dtype.is_floating_point:
        return x
    return truth(g, x) if dtype == torch.bool else trunc(g, x)
