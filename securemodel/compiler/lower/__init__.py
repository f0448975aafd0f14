"""Secure versions of ATen operators, grouped by kind; importing this registers all of them."""

from securemodel.compiler.lower import (  # noqa: F401
    activation,
    arithmetic,
    attention,
    casts,
    comparison,
    extremes,
    indexing,
    layers,
    layout,
    logic,
    normalization,
    norms,
    pooling,
    positive,
    powers,
    recurrent,
    rounding,
    smooth,
    trig,
    windows,
)
from securemodel.compiler.lower.registry import LOWERINGS, lowers

__all__ = ["LOWERINGS", "lowers"]
