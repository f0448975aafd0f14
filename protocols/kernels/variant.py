"""Which build of the native kernels runs: the best one this CPU supports, or the torch twins.

One C++ source is compiled for several instruction sets. `baseline` runs everywhere, `v3` needs AVX2 and `v4`
needs AVX-512 (the x86-64 levels of those names). Tensors on other devices always go to the twins.
"""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

_NEEDS = {
    "v3": {"avx2", "fma", "bmi", "bmi2"},
    "v4": {"avx2", "fma", "bmi", "bmi2", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}
_TWINS = "twins"


def _load(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"protocols.kernels._native_{name}")
    except ImportError:
        return None


def _discover() -> tuple[dict[str, ModuleType | None], tuple[str, ...]]:
    """Variants that were built and that this CPU can run, slowest first, and the CPU's features."""
    found: dict[str, ModuleType | None] = {_TWINS: None}
    baseline = _load("baseline")
    if baseline is None:
        return found, ()
    found["baseline"] = baseline
    features = tuple(baseline.cpu_features())
    for name, needed in _NEEDS.items():
        module = _load(name) if needed <= set(features) else None
        if module is not None:
            found[name] = module
    return found, features


_variants, _features = _discover()
_current: str = list(_variants)[-1]
_module: ModuleType | None = _variants[_current]


def native(tensor: Tensor) -> ModuleType | None:
    """The compiled kernels to use for a tensor, or None for the twins."""
    return _module if tensor.is_cpu else None


def info() -> dict[str, object]:
    """What runs here: the variant in use, those available, CPU features and threads."""
    return {
        "variant": _current,
        "available": list(_variants),
        "cpu": list(_features),
        "threads": torch.get_num_threads(),
    }


def keep_freed_memory() -> bool:
    """Lets this process keep up to 512 MiB of freed memory, which saves a third of the time of large programs.

    Secure programs allocate and free tensors of the same sizes over and over; handing each back to the system
    means clearing its pages again. Only with glibc; elsewhere nothing happens and the result is False.
    """
    return _module is not None and _module.keep_freed_memory()


@contextmanager
def use(variant: str) -> Iterator[None]:
    """Run the kernels of one variant inside a `with` block (for tests and benchmarks; holds for all threads).

    Raises ValueError for a variant that was not built or that this CPU cannot run.
    """
    global _current, _module
    if variant not in _variants:
        raise ValueError(
            f"kernels.use: variant {variant!r} is not available here, only {', '.join(_variants)}; it was not built "
            "(reinstall with a C++ compiler) or this CPU lacks its instructions (see kernels.info()['cpu'])"
        )
    before = _current
    _current, _module = variant, _variants[variant]
    try:
        yield
    finally:
        _current, _module = before, _variants[before]
