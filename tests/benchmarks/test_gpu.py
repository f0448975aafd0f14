"""The script that measures a GPU goes through all its steps on a CPU, and tells nothing of one that is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def ran(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OUT": str(out), "PYTHON": sys.executable}
    script = ["bash", str(ROOT / "benchmarks/gpu/run.sh"), *words]
    return subprocess.run(script, env=environment, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.slow
def test_a_dry_run_makes_every_step(tmp_path):
    ended = ran(tmp_path, "--dry-run")
    assert not ended.returncode, ended.stderr
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows} == {"machine", "parity", "kernels", "cases"}
    assert all(row["dry_run"] and row.get("equal", True) for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_stops_before_it_measures(tmp_path):
    ended = ran(tmp_path)
    assert ended.returncode and "cannot compute on 'cuda'" in ended.stderr
    assert "step parity ended" in ended.stderr and "step kernels" not in ended.stderr
