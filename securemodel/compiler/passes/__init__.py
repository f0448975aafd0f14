"""From the lowered graph to a program that can run, one pass after the other."""

from securemodel.compiler.passes.fold import fold_owner_scales
from securemodel.compiler.passes.masks import narrow_masks, place_masks
from securemodel.compiler.passes.scales import place_truncations
from securemodel.compiler.passes.schedule import order_nodes
from securemodel.compiler.passes.together import compare_together

__all__ = [
    "compare_together", "fold_owner_scales", "narrow_masks", "order_nodes", "place_masks",
    "place_truncations",
]  # fmt: skip
