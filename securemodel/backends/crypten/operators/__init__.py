"""What runs each ATen operator on CrypTen's tensors; importing this package fills the table."""

from securemodel.backends.crypten.operators import arithmetic, functions, layers, layout
from securemodel.backends.crypten.operators.registry import OPERATORS, Operator

__all__ = ["OPERATORS", "Operator", "arithmetic", "functions", "layers", "layout"]
