"""A GPU that is not there: tensors that say they are on it hold their values, and mix with no tensor of main memory.

What a party does on a GPU goes wrong in ways that no CPU shows: an operator is given a tensor of main memory, too, or one
for which that device has no whole numbers, or values are read without a copy. Here each of these raises, on any machine,
and the values are right. Operators of torch run on the CPU, one by one.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from protocols import devices, kernels
from protocols.kernels import twins

HERE = torch.device("cpu")
GPU = torch.device("lazy", 0)  # a build of torch for CPUs has a guard for it, and none for "cuda"
aten = torch.ops.aten
CROSSINGS = {aten._to_copy.default, aten.copy_.default}
NO_INTEGERS = {
    aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default, aten.dot.default, aten.mv.default,
    aten.convolution.default,
}  # fmt: skip
"""Operators that torch has on GPUs for real numbers alone."""


class OnGPU(torch.Tensor):
    """A tensor of the GPU; `inner` has its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnGPU:  # noqa: PYI034
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=GPU,
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"OnGPU({list(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return dispatched(func, args, kwargs or {})


class _Here(TorchDispatchMode):
    """Makes on the GPU what is asked to be made there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return dispatched(func, args, kwargs or {})


_NAMES = """
__lshift__ __rshift__ _to_copy _unsafe_view add add_ alias arange as_strided bitwise_and bitwise_not bitwise_or
bitwise_xor bitwise_xor_ bmm cat clone constant_pad_nd copy_ cumsum detach empty_like eq expand fill_ flip
floor_divide full_like gather index index_copy_ index_put_ index_select mm mul mul_ neg new_zeros ones_like permute
pow remainder rsub scatter_ select sign slice sort split_with_sizes squeeze stack sub sub_ sum t transpose unbind
unsqueeze view
where zeros_like
"""
KNOWN = frozenset(_NAMES.split())
"""Operators that torch has on GPUs for whole numbers of 64 bits (bmm and mm: for float64). The engine uses no others."""


crossed: list[tuple[str, int, str]] = []
"""Each copy from main memory or to it: "there" or "here", its bytes, and the function of the project that asked for it."""


def _asked_by() -> str:
    frame = sys._getframe(1)
    while frame:
        name = frame.f_code.co_filename
        if ("/protocols/" in name or "/securemodel/" in name) and "/tests/" not in name and "site-packages" not in name:
            return f"{name.rpartition('/')[2]}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "a test"


def _note_crossing(func: Any, given: list[torch.Tensor], moved: torch.device | None, made: Any) -> None:
    if func is aten.copy_.default:
        into, of = given
        ways = (isinstance(of, OnGPU), isinstance(into, OnGPU))
    elif moved is not None and given:
        ways = (any(isinstance(x, OnGPU) for x in given), moved.type == GPU.type)
    else:
        return
    if ways[0] != ways[1]:
        moving = given[-1] if func is aten.copy_.default else inner_of(made)
        crossed.append(("there" if ways[1] else "here", moving.numel() * moving.element_size(), _asked_by()))


def inner_of(x: Any) -> Any:
    """What stands for a tensor of the GPU; everything else as it is."""
    return x.inner if isinstance(x, OnGPU) else x


def dispatched(func: Any, args: tuple, kwargs: dict) -> Any:
    """Runs an operator where it would run. Raises RuntimeError where a GPU would."""
    given = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in given if isinstance(x, OnGPU)]
    wanted = kwargs.get("device")
    moved = torch.device(wanted) if wanted is not None else None
    if there:
        if func not in CROSSINGS and any(x.ndim and not isinstance(x, OnGPU) for x in given):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {GPU} and cpu")
        if func in NO_INTEGERS and not there[0].dtype.is_floating_point:
            raise RuntimeError(f"{func} is not implemented for {there[0].dtype} on a GPU")
        if func is aten._local_scalar_dense.default:
            raise RuntimeError("a value was read from the GPU without a copy")
        if func._schema.name.removeprefix("aten::") not in KNOWN:
            raise RuntimeError(f"{func}: see whether GPUs have it for {there[0].dtype}, and list it in KNOWN")
    options = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory", "non_blocking")}
    if func is aten._to_copy.default and moved is not None and options.get("dtype") is None:
        options["dtype"] = args[0].dtype  # else nothing is asked for, and nothing is copied
    if moved is not None:
        options["device"] = HERE
    made = func(*tree_map(inner_of, args), **tree_map(inner_of, options))
    _note_crossing(func, given, moved, made)
    if func._schema.is_mutable:
        return args[0]
    on_gpu = moved.type == GPU.type if moved is not None else bool(there)
    return tree_map(lambda x: OnGPU(x) if on_gpu and isinstance(x, torch.Tensor) else x, made)


def quick_streams(patch: pytest.MonkeyPatch) -> None:
    """Has key streams made in C++, from what the pretended GPU has: the twins are a thousand operators each."""
    if kernels.info()["variant"] == "twins":
        return
    one, many = kernels.chacha20, kernels.chacha20_many

    def chacha20(out: torch.Tensor, *rest: Any) -> torch.Tensor:
        one(inner_of(out), *rest)
        return out

    patch.setattr(twins, "chacha20", chacha20)
    patch.setattr(twins, "chacha20_many", lambda outs, *rest: many([inner_of(out) for out in outs], *rest))


@contextmanager
def _inside() -> Iterator[None]:
    """In this thread there is a GPU, and numbers of Python are brought there as tensors are."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Here():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


@contextmanager
def pretended() -> Iterator[None]:
    """Inside, in this thread and those that it starts, there is one GPU."""
    run = threading.Thread.run

    def run_inside(thread: threading.Thread) -> None:
        with _inside():
            run(thread)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "_gpu", lambda device: GPU)
        patch.setattr(devices, "_beside", set())
        patch.setattr(threading.Thread, "run", run_inside)
        with _inside():
            yield
