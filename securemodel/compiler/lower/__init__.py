"""Secure versions of ATen operators, grouped by kind; importing this registers all of them."""

from securemodel.compiler.lower import (  # noqa: F401
    accuracy,
    activation,
    arithmetic,
    attention,
    casts,
    choosing,
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
    sorting,
    trig,
    windows,
)
from securemodel.compiler.lower.registry import ACCURACY, DECOMPOSITIONS, LOWERINGS, decomposes, lowers, page

__all__ = ["ACCURACY", "DECOMPOSITIONS", "LOWERINGS", "decomposes", "lowers", "page"]
