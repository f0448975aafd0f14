"""Secure versions of ATen operators, grouped by kind; importing this registers all of them."""

from securemodel.compiler.lower import (  # noqa: F401
    accuracy,
    activation,
    arithmetic,
    attention,
    comparison,
    layers,
    layout,
    normalization,
    pooling,
    positive,
    recurrent,
    smooth,
)
from securemodel.compiler.lower.registry import ACCURACY, LOWERINGS, lowers, page

__all__ = ["ACCURACY", "LOWERINGS", "lowers", "page"]
