"""What runs each ATen operator on CrypTen's tensors; importing this package fills the table."""

from securemodel.engines.crypten.operators import arithmetic, functions, layout, products
from securemodel.engines.crypten.operators.registry import OPERATORS, Operator

__all__ = ["OPERATORS", "Operator", "arithmetic", "functions", "layout", "products"]
