"""Compiles ordinary PyTorch models into programs that several parties run without showing their data."""

from securemodel.compiler.compile import check, compile
from securemodel.compiler.lower import decomposes, lowers
from securemodel.compiler.plan import Network
from securemodel.errors import SecureModelError, UnsupportedOperator
from securemodel.program import Program
from securemodel.runtime.compare import compare
from securemodel.runtime.comparison import Comparison
from securemodel.runtime.remote import connect
from securemodel.runtime.session import Session, local

__version__ = "0.1.0"

__all__ = ["Comparison", "Network", "Program", "SecureModelError", "Session", "UnsupportedOperator", "check", "compare", "compile", "connect", "decomposes", "local", "lowers"]  # fmt: skip
