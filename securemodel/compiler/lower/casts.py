"""Changes of type."""

from __future__ import annotations

import torch

from securemodel.compiler.builder import Builder
from securemodel.compiler.lower.logic import truth
from securemodel.compiler.lower.registry import lowers
from securemodel.compiler.lower.rounding import trunc

aten = torch.ops.aten
_NARROW = (torch.int8, torch.int16, torch.int32)


@lowers(aten._to_copy.default)
def to_copy(g: Builder, x, dtype=None, **kwargs):
    """Other types: floats stay as they are, whole numbers are cut toward zero, booleans say what is not zero.

    Whole numbers of a narrow type are in its range, and so are compared in fewer bits where they are sorted.
    """
    if dtype is None or dtype.is_floating_point:
        return x
    if dtype == torch.bool:
        return truth(g, x)
    made = trunc(g, x)
    if dtype in _NARROW:
        g.notes["bits", made.id] = torch.iinfo(dtype).bits - 1
    return made
