"""Compiles ordinary PyTorch programs into programs that several parties run without showing their data."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from securemodel.version import __version__ as __version__

if TYPE_CHECKING:
    from securemodel.api import check, compile, connect, local
    from securemodel.compiler.lower import decomposes, lowers
    from securemodel.compiler.lower.orders import permute
    from securemodel.compiler.tuning import Tuning
    from securemodel.errors import SecureModelError, UnsupportedOperator
    from securemodel.family import Family, compile_service
    from securemodel.inspect.compare import compare
    from securemodel.inspect.differences import Comparison
    from securemodel.inspect.tuned import TunedProgram
    from securemodel.inspect.tuning import tune
    from securemodel.planning.costs import Network
    from securemodel.program import Program
    from securemodel.sessions.remote import arriving
    from securemodel.sessions.session import Session
    from securemodel.training import DP, compile_training, dataset, owned, rows

__all__ = ["DP", "Comparison", "Family", "Network", "Program", "SecureModelError", "Session", "TunedProgram", "Tuning", "UnsupportedOperator", "arriving", "check", "compare", "compile", "compile_service", "compile_training", "connect", "dataset", "decomposes", "local", "lowers", "owned", "permute", "rows", "tune"]  # fmt: skip

_WHERE = {
    "api": ("check", "compile", "connect", "local"),
    "compiler.lower": ("decomposes", "lowers"),
    "compiler.lower.orders": ("permute",),
    "compiler.tuning": ("Tuning",),
    "errors": ("SecureModelError", "UnsupportedOperator"),
    "family": ("Family", "compile_service"),
    "inspect.compare": ("compare",),
    "inspect.differences": ("Comparison",),
    "inspect.tuned": ("TunedProgram",),
    "inspect.tuning": ("tune",),
    "planning.costs": ("Network",),
    "program": ("Program",),
    "sessions.remote": ("arriving",),
    "sessions.session": ("Session",),
    "training": ("DP", "compile_training", "dataset", "owned", "rows"),
}
"""Where each name is defined: it is imported when it is first asked for, so that small clients need no torch."""
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module(f"{__name__}.api")  # whole, so that no part of it is imported half-way by another
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
