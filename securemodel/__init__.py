"""Compiles ordinary PyTorch models into programs that several parties run without showing their data."""

from securemodel.api import check, compile, connect, local
from securemodel.compiler.lower import decomposes, lowers
from securemodel.compiler.lower.orders import permute
from securemodel.errors import SecureModelError, UnsupportedOperator
from securemodel.inspect.compare import compare
from securemodel.inspect.differences import Comparison
from securemodel.planning.costs import Network
from securemodel.program import Program
from securemodel.sessions.session import Session
from securemodel.training import DP, compile_training, dataset, owned, rows
from securemodel.version import __version__ as __version__

__all__ = ["DP", "Comparison", "Network", "Program", "SecureModelError", "Session", "UnsupportedOperator", "check", "compare", "compile", "compile_training", "connect", "dataset", "decomposes", "local", "lowers", "owned", "permute", "rows"]  # fmt: skip
