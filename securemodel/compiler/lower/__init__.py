"""Secure versions of ATen operators, grouped by kind; importing this registers all of them."""

from securemodel.compiler.lower import activation, arithmetic, comparison, layers, layout, pooling, smooth  # noqa: F401
from securemodel.compiler.lower.registry import LOWERINGS, lowers

__all__ = ["LOWERINGS", "lowers"]
