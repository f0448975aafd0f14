"""The builds of the C++ kernels: one source compiled for several instruction sets.

`baseline` runs everywhere, `v3` needs AVX2 and `v4` needs AVX-512 (the x86-64 levels of those names).
"""

import importlib
from types import ModuleType
from typing import Any

_NEEDS = {
    "v3": {"avx2", "fma", "bmi", "bmi2"},
    "v4": {"avx2", "fma", "bmi", "bmi2", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}


def _load(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"protocols.kernels._native_{name}")
    except ImportError:
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
