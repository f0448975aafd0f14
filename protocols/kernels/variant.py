"""Which kernels run: the best build of the compiled ones that this CPU supports, or the torch twins.

Kernels are chosen by the device of their operands. The CPU has compiled ones (`cpu`), GPUs of NVIDIA those in Triton
(`gpu`) where it is installed, as it is with builds of torch for them; every other device has the twins.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from protocols.kernels import cpu, twins
from protocols.kernels.cpu import build

_TWINS = "twins"
_CPU = torch.device("cpu")
_current = _TWINS
_plain = False
_by_device: dict[torch.device, ModuleType] = {}


def _choose(variant: str) -> None:
    global _current
    _current, build.module = variant, build.builds.get(variant)
    _by_device[_CPU] = twins if build.module is None else cpu


_choose(next(reversed(build.builds), _TWINS))


def kernels_for(first: Tensor, *others: Tensor | None) -> ModuleType:
    """The kernels for the device that all operands are on; ValueError when they are on several."""
    if first.is_cpu:
        for other in others:
            if other is not None and not other.is_cpu:
                break
        else:
            return _by_device[_CPU]
    device = first.device
    for other in others:
        if other is not None and other.device != device:
            raise ValueError(f"a kernel's operands must be on one device, not on {device} and {other.device}")
    return _by_device.get(device) or (_of_gpus() if device.type == "cuda" and not _plain else twins)


@cache
def _of_gpus() -> ModuleType:
    """The kernels in Triton, which is imported where the first tensor is on a GPU."""
    try:
        from protocols.kernels import gpu
    except ImportError:
        return twins
    return gpu


def info() -> dict[str, object]:
    """What runs here: the variant in use, those available, CPU features and threads."""
    return {
        "variant": _current,
        "available": [_TWINS, *build.builds],
        "cpu": list(build.features),
        "threads": torch.get_num_threads(),
    }


def keep_freed_memory() -> bool:
    """Lets this process keep up to 512 MiB of freed memory, which saves a third of the time of large programs.

    Secure programs allocate and free tensors of the same sizes over and over; handing each back to the system
    means clearing its pages again. Only with glibc; elsewhere nothing happens and the result is False.
    """
    return build.module is not None and build.module.keep_freed_memory()


@contextmanager
def use(variant: str) -> Iterator[None]:
    """Run the kernels of one variant inside a `with` block (for tests and benchmarks; holds for all threads).

    Raises ValueError for a variant that was not built or that this CPU cannot run.
    """
    if variant != _TWINS and variant not in build.builds:
        raise ValueError(
            f"kernels.use: variant {variant!r} is not available here, only {', '.join([_TWINS, *build.builds])}; it was "
            "not built (reinstall with a C++ compiler) or this CPU lacks its instructions (see kernels.info()['cpu'])"
        )
    global _plain
    before, plain = _current, _plain
    _choose(variant)
    _plain = variant == _TWINS
    try:
        yield
    finally:
        _choose(before)
        _plain = plain
