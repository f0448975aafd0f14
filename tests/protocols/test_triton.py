"""Kernels in Triton against their twins, in Triton's interpreter, which needs no GPU; and what the compiler makes of them.

The interpreter is chosen when a kernel is defined, so both have a process of their own (`triton_cases.py`).
"""

from __future__ import annotations

import json
import os
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


def ran(what: str, interpret: str) -> str:
    environment = {**os.environ, "TRITON_INTERPRET": interpret, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, str(CASES), what], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert not ended.returncode, ended.stderr[-3000:]
    return ended.stdout


@needs_triton
@pytest.mark.parametrize("what", ["streams", "products", "package"])
def test_kernels_give_what_their_twins_give(what):
    assert ran(what, "1").endswith("all equal\n")


@needs_triton
@pytest.mark.slow
def test_what_is_compiled_for_a_gpu_keeps_to_its_registers_and_uses_tensor_cores():
    found = {name: numbers for line in ran("compiled", "0").splitlines() for name, numbers in [json.loads(line)]}
    assert all(numbers["stack"] == 0 and numbers["local"] == 0 for numbers in found.values()), found
    assert found["stream"]["registers"] <= 96 and found["stream"]["rotations"] >= 30
    assert found["limbs"]["registers"] <= 64
    for tile in ("product 128x64, 1 part", "product 128x64, 4 parts"):
        assert found[tile]["registers"] <= 168 and found[tile]["IGMMA"] >= 2
    assert found["product 16x64, 4 parts"]["IMMA"] >= 4
