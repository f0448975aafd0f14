"""Kernels in Triton against their twins, in Triton's interpreter, which needs no GPU; and what the compiler makes of them.

The interpreter is chosen when a kernel is defined, so both have a process of their own (`triton_cases.py`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("triton_cases.py")
ROOT = CASES.parents[2]
needs_triton = pytest.mark.skipif(
    sys.platform != "linux" and find_spec("triton") is None, reason="Triton is for Linux alone"
)
KINDS = ("streams", "products", "pointwise", "planes", "tables", "openings", "package")
ENGINE = ("smooth function, two parties", "relu, in measured ranges, two parties", "network, three parties")


def ran(script: Path, interpret: str, *words: str) -> str:
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, str(script), *words], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert not ended.returncode, ended.stderr[-3000:]
    return ended.stdout


def kernels_in_triton() -> set[str]:
    texts = [path.read_text() for path in (ROOT / "protocols/kernels/gpu").glob("*.py")]
    return {name for text in texts for name in re.findall(r"def (\w+_kernel)\(", text)}


@needs_triton
@pytest.mark.parametrize("what", KINDS)
def test_kernels_give_what_their_twins_give(what):
    assert ran(CASES, "1", what).endswith("all equal\n")


@needs_triton
@pytest.mark.parametrize("case", [ENGINE[0], *(pytest.param(case, marks=pytest.mark.slow) for case in ENGINE[1:])])
def test_programs_on_these_kernels_send_and_give_the_same_bits(case):
    assert ran(CASES, "1", "engine", case).endswith("all equal\n")


MOST_REGISTERS = {
    "stream": 96, "product 128x64, 1 parts": 168, "product 128x64, 4 parts": 168, "product 16x64, 4 parts": 96,
    "select_truncated": 80, "combine": 96, "lookup of 256, 4 columns": 96, "lookup of 64, 2 columns": 80,
    "coefficients, bits": 104, "coefficients, weights": 88,
}  # fmt: skip
"""Of a lane, so that enough programs are on a multiprocessor at once; 64 for others."""
WIDE = ("truncate", "select_truncated", "select", "bit_to_ring", "bit_times", "deal_truncation", "msb_plane", "thermometer",
        "leaves", "spline", "deal_spline", "hide 8 bytes", "join 8 bytes")  # fmt: skip


@needs_triton
@pytest.mark.slow
def test_what_is_compiled_for_a_gpu_keeps_to_its_registers_and_uses_tensor_cores():
    lines = ran(CASES.with_name("triton_compiled.py"), "0").splitlines()
    found = {name: numbers for line in lines for name, numbers in [json.loads(line)]}
    for name, numbers in found.items():
        assert numbers["stack"] == numbers["local"] == numbers["spilled"] == 0, (name, numbers)
        assert numbers["registers"] <= MOST_REGISTERS.get(name, 64), (name, numbers)
    assert found["stream"]["rotations"] >= 30
    for tile in ("product 128x64, 1 parts", "product 128x64, 4 parts", *(name for name in found if "lookup" in name)):
        assert found[tile]["IGMMA"] >= 2, tile
    assert found["product 16x64, 4 parts"]["IMMA"] >= 4
    assert all(found[name]["loads of 16 bytes"] for name in WIDE)
    assert found["combine"]["loads"] == 139 and found["monomials"]["loads"] == 27  # each plane is read once


@needs_triton
@pytest.mark.slow
def test_every_kernel_compiles_as_it_is_called():
    """With the types and sizes that calls give, one element among them."""
    found = json.loads(ran(CASES.with_name("triton_launched.py"), "0"))
    assert set(found) == kernels_in_triton() and found["truncate_kernel"] > 4 and found["hide_kernel"] > 8


@needs_triton
def test_every_kernel_is_compiled_ahead_of_time_in_the_test_above():
    text = CASES.with_name("triton_compiled.py").read_text()
    assert kernels_in_triton() == set(re.findall(r"\w+\.(\w+_kernel)\b", text))
