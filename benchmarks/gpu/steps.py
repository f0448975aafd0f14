"""One step of `benchmarks/gpu/run.sh`: `python -m benchmarks.gpu.steps STEP FILE [--dry-run]`."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.families import KEY, NONCE, families, parts, ring
from benchmarks.gpu.place import Place
from protocols import devices, kernels


def look_at_machine(place: Place) -> None:
    """Versions, and how fast bytes move on the device and between it and main memory."""
    name = platform.machine() if place.dry else torch.cuda.get_device_name(place.device)
    place.say(step="machine", device=name, cores=os.cpu_count(), torch=torch.__version__, python=platform.python_version(),
              **kernels.info())  # fmt: skip
    x = ring(1 << (16 if place.dry else 26)).to(place.device)
    moved: dict[str, tuple[Callable[[], object], int]] = {
        "copy": (x.clone, 2),
        "to the host": (lambda: devices.to_host([x]), 1),
    }
    host = devices.to_host([x])[0]
    moved["from the host"] = (lambda: devices.to_device(host, place.device), 1)
    for what, (call, times) in moved.items():
        place.say(step="machine", what=what, gb_per_s=times * 8 * x.numel() / place.seconds(call) / 1e9)


def compare(place: Place) -> None:
    """Every family of kernels on the device against the same on the CPU, bit for bit. Raises SystemExit."""
    for n in (64, 1000, 5000 if place.dry else 1 << 20):
        here, there = families(n, devices.CPU), families(n, place.device)
        for what in here:
            pairs = list(zip(parts(here[what][1]()), parts(there[what][1]()), strict=True))
            same = all(a.dtype == b.dtype and bool(torch.equal(a, b)) for a, b in pairs)
            place.say(step="parity", what=what, elements=n, equal=same)
            if not same:
                sys.exit(f"{what} of {n} elements differs on {place.device}")


def time_kernels(place: Place) -> None:
    """Bytes a second of every family, beside the twins, and products in 10^12 operations (two for each multiplication)."""
    streams = torch.empty(1 << (12 if place.dry else 27), dtype=torch.int64, device=place.device)
    took = place.seconds(partial(kernels.chacha20, streams, KEY, NONCE))
    place.say(step="kernels", what="chacha20, set", gb_per_s=8 * streams.numel() / took / 1e9)
    sizes = ((128, 768, 3072), (1024, 1024, 1024), (4096, 4096, 4096))
    for m, k, n in ((16, 32, 16),) if place.dry else sizes:
        a, b = ring(m, k).to(place.device), ring(k, n).to(place.device)
        for which, took in _own_and_twins(place, partial(kernels.matmul, a, b)):
            place.say(step="kernels", what=f"matmul {m}x{k}x{n}", kernels=which, tera_per_s=2 * m * k * n / took / 1e12)
    count = 1000 if place.dry else 1 << 22
    for what, (nbytes, call) in families(count, place.device).items():
        if what not in ("matmul", "conv2d"):
            for which, took in _own_and_twins(place, call):
                place.say(step="kernels", what=what, kernels=which, elements=count, seconds=took,
                          gb_per_s=nbytes / took / 1e9)  # fmt: skip


def _own_and_twins(place: Place, call: Callable[[], object]) -> list[tuple[str, float]]:
    found = []
    for which in ("own", "twins"):
        with kernels.use("twins") if which == "twins" else nullcontext():
            found.append((which, place.seconds(call)))
    return found


def time_cases(place: Place, kind: str) -> None:
    """Whole programs; what they need is imported here, as the other steps do without it."""
    from benchmarks.gpu import cases

    if kind in ("functions", "models"):
        cases.time_all(place, kind)
    else:
        cases.time_between(place, kind, (1, _DRY)[place.dry] * _LIMITS[kind])


_LIMITS, _DRY = {"processes": 80.0, "threads": 40.0}, 4
"""A little below those of run.sh, in seconds, and how often they are taken with a dry run."""
STEPS: dict[str, Callable[[Place], None]] = {
    "machine": look_at_machine,
    "parity": compare,
    "kernels": time_kernels,
    **{kind: partial(time_cases, kind=kind) for kind in ("functions", "models", "processes", "threads")},
}

if __name__ == "__main__":
    step, file, *rest = sys.argv[1:]
    STEPS[step](Place(Path(file), "--dry-run" in rest))
