"""Run by test_triton.py in a process of its own: every kernel is called as it is on a GPU, and what is called compiled.

The interpreter takes what Python gives it; a GPU has kernels of types and of sizes, some made anew where a size is 1 or a
multiple of 16. Here a call ends where its kernel is compiled for compute capability 9.0, as none can be run.
"""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from benchmarks.gpu.families import families
from protocols import kernels
from protocols.kernels import Piece, gpu, variant

CPU = torch.device("cpu")
SIZES = (1, 64, 1001)
made: dict[str, set[str]] = {}


class _Nowhere:
    """What Triton asks of a driver before it launches anything."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def only_compiled(function: JITFunction, *given: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> Any:
    """In place of a launch. Raises what the compiler says, and TypeError for a grid that is none."""
    if not 1 <= len(grid) <= 3 or not all(isinstance(size, int) and size >= 0 for size in grid):
        raise TypeError(f"{function.__name__}: {grid} is no grid")
    kernel = run(function, *given, grid=grid, warmup=True, **options)
    made.setdefault(function.__name__, set()).add(kernel.hash)
    return kernel


run = JITFunction.run


def main() -> None:
    assert os.environ["TRITON_INTERPRET"] == "0"
    JITFunction.run = only_compiled
    triton.runtime.driver.set_active(_Nowhere())
    variant._by_device[CPU] = SimpleNamespace(**vars(gpu))
    for n in SIZES:
        for _, call in families(n, CPU).values():
            call()
    x = torch.zeros(8, dtype=torch.int64)
    for first in (0, 1):
        kernels.truncate(x, x, x, 40, first)
        kernels.truncate(x, x, x.int(), 30, first, -(1 << 61), x[:1], x)
        kernels.select(x[:1], x, x, x, x, first)
        kernels.spline([x, x, x], [None, x, x], x, (0, 63, 8), first)
        kernels.combine_layer(x.view(8, 1)[:2], x.view(8, 1)[:2], x.view(8, 1)[:1], x.view(8, 1)[:3], ((0, 2),), first)
    for width in (1, 2, 3, 8):
        values, wires = kernels.hide([None, x], [x, x], [Piece(width), Piece(width)])
        kernels.join(values, torch.cat(wires), [Piece(width), Piece(width)])
    for size, columns in ((8, 1), (16, 2), (32, 5), (128, 1)):
        kernels.unit_lookup(x, kernels.unit_vectors(x, size), torch.zeros(columns, size, dtype=torch.int64))
    for low_bits, shift in ((1, 63), (66, -3)):
        kernels.leaves(x, kernels.thermometer(x, low_bits, shift), low_bits, shift, 1 << 40)
    kernels.pack_bits(x.bool())
    kernels.matmul(x.view(2, 1, 4), x.view(2, 4, 1))
    print(json.dumps({name: len(hashes) for name, hashes in sorted(made.items())}))


if __name__ == "__main__":
    main()
