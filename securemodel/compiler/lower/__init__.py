"""Secure versions of ATen operators, grouped by kind; importing this registers all of them."""

from securemodel.compiler.lower import (  # noqa: F401
    activation,
    arithmetic,
    attention,
    choosing,
    comparison,
    layers,
    layout,
    normalization,
    pooling,
    positive,
    recurrent,
    smooth,
    sorting,
)
from securemodel.compiler.lower.registry import LOWERINGS, lowers

__all__ = ["LOWERINGS", "lowers"]
