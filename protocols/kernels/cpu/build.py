"""The builds of the C++ kernels: one source compiled for several instruction sets.

`baseline` runs everywhere, `v3` needs AVX2 and `v4` needs AVX-512 (the x86-64 levels of those names).
"""

import importlib
import warnings
from types import ModuleType
from typing import Any

from protocols.errors import explain

INTERFACE = 6
"""Which functions the builds have, with which arguments: builds of other sources say another number, or none."""
_NEEDS = {
    "v3": {"avx2", "fma", "bmi", "bmi2"},
    "v4": {"avx2", "fma", "bmi", "bmi2", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}


def _load(name: str) -> ModuleType | None:
    try:
        module = importlib.import_module(f"protocols.kernels._native_{name}")
    except ImportError:
        return None
    if getattr(module, "interface", None) == INTERFACE:
        return module
    what = f"the kernels {module.__name__.rpartition('.')[2]} are those of other sources, and are left out"
    fix = "build them again: python setup.py build_ext --inplace, or pip install -e ."
    warnings.warn(explain(what, why="what Python calls of them has changed; without them all is slower", fix=fix))
    return None


def _discover() -> tuple[dict[str, ModuleType], tuple[str, ...]]:
    """Builds that exist and that this CPU can run, slowest first, and the CPU's features."""
    baseline = _load("baseline")
    if baseline is None:
        return {}, ()
    found, features = {"baseline": baseline}, tuple(baseline.cpu_features())
    for name, needed in _NEEDS.items():
        module = _load(name) if needed <= set(features) else None
        if module is not None:
            found[name] = module
    return found, features


builds, features = _discover()
module: Any = None
"""The build in use, a module, set by `protocols.kernels.variant`; None where the twins are in use."""
