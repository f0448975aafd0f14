"""The script that measures a GPU goes through all its steps on a CPU, and tells nothing of one that is not there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import cases, steps
from benchmarks.gpu.place import Place
from benchmarks.gpu.work import names
from protocols import kernels

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu/run.sh"


def ran(out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OUT": str(out), "PYTHON": sys.executable}
    script = ["bash", str(SCRIPT), *words]
    return subprocess.run(script, env=environment, capture_output=True, text=True, timeout=290, check=False)


def rows_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_a_dry_run_makes_every_step(tmp_path):
    ended = ran(tmp_path, "--dry-run")
    assert not ended.returncode, ended.stderr
    rows = rows_of(tmp_path / "results.jsonl")
    assert {row["step"] for row in rows} == {"machine", "parity", "kernels", "cases"}
    assert all(row["dry_run"] and row.get("equal", True) and "problem" not in row for row in rows)
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.get("case", ""), set()).add(row.get("digest") or "")
    assert set(found) == {"", *names("functions"), *names("models")}
    assert all(
        len(digests) == 2 for case, digests in found.items() if case and "train" not in case
    )  # "" where there is none
    forms = {(row.get("what"), row.get("transport")) for row in rows}
    assert forms >= {(kind, transport) for kind in ("processes", "threads") for transport in ("plain", "tls")}
    assert {row["dtype"] for row in rows if row.get("what") == "in the clear"} == {"torch.float32", "torch.bfloat16"}


def test_all_steps_end_within_eight_minutes():
    limits = re.findall(r'"(\w+) (\d+)"', SCRIPT.read_text())
    assert [name for name, _ in limits] == [*steps.STEPS]
    assert sum(int(limit) for _, limit in limits) <= 480
    assert all(steps._LIMITS[name] < int(limit) for name, limit in limits if name in steps._LIMITS)


def test_parity_comes_first_and_ends_what_follows(tmp_path, monkeypatch):
    place = Place(tmp_path / "rows.jsonl", dry=True)
    steps.compare(place)
    rows = rows_of(place.file)
    assert all(row["equal"] for row in rows) and len({row["what"] for row in rows}) == len(rows) / 3 > 20
    calls = iter(range(10**6))
    monkeypatch.setattr(kernels, "select", lambda bits, m, *rest: m + next(calls))
    with pytest.raises(SystemExit, match="select of 64 elements differs on cpu"):
        steps.compare(place)
    assert not rows_of(place.file)[-1]["equal"]


def test_a_case_that_fails_is_a_line_and_the_others_are_measured(tmp_path, monkeypatch):
    place = Place(tmp_path / "rows.jsonl", dry=True)
    monkeypatch.setattr(cases, "names", lambda kind: ("one", "two"))

    def time_work(place: Place, name: str) -> None:
        if name == "one":
            raise RuntimeError("out of memory")
        place.say(case=name)

    monkeypatch.setattr(cases, "time_work", time_work)
    with pytest.raises(SystemExit, match="not measured: one"):
        cases.time_all(place, "models")
    first, second = rows_of(place.file)
    assert first["problem"] == "RuntimeError: out of memory" and second["case"] == "two"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_stops_before_it_measures(tmp_path):
    ended = ran(tmp_path)
    assert ended.returncode and "cannot compute on 'cuda'" in ended.stderr
    assert "step parity ended" in ended.stderr and "step kernels" not in ended.stderr
