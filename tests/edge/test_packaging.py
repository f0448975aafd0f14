"""The small distribution: built, installed beside numpy alone, and run on the vectors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
RUN = """
import importlib.util, json, sys
import numpy as np
import securemodel_edge
from securemodel_edge import sharing, wire
assert not any(importlib.util.find_spec(name) for name in ("torch", "securemodel", "cryptography"))
vectors = json.load(open(sys.argv[1], encoding="utf-8"))
for case in vectors["add"]:
    total = sharing.add([np.array(list(map(int, share))) for share in case["shares"]])
    assert total.tolist() == list(map(int, case["sum"]))
for case in vectors["request"]:
    for rank, (header, data) in enumerate(zip(case["headers"], case["data"])):
        assert wire.read_request(header.encode(), bytes.fromhex(data), rank).id == case["id"]
print(securemodel_edge.__file__, len(vectors["request"]))
"""


def run(folder: Path, *words: object, **more: str) -> str:
    done = subprocess.run(
        list(map(str, words)),
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **more},
        cwd=folder,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_small_distribution_works_alone(tmp_path: Path) -> None:
    for part in ("packaging/edge", "securemodel/edge"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "securemodel_edge"))
    shutil.copy(ROOT / "securemodel" / "version.py", tmp_path / "securemodel")
    shutil.copy(ROOT / "LICENSE", tmp_path)
    pip, folder = (sys.executable, "-m", "pip", "-q"), tmp_path / "packaging" / "edge"
    run(tmp_path, *pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "wheels", folder)
    (wheel,) = (tmp_path / "wheels").iterdir()
    assert wheel.stat().st_size < 60_000
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    run(tmp_path, *pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    beside, there = tmp_path / "numpy", Path(np.__file__).parents[1]
    beside.mkdir()
    for name in ("numpy", "numpy.libs"):
        if (there / name).exists():
            (beside / name).symlink_to(there / name)
    told = run(beside, python, "-c", RUN, ROOT / "vectors" / "share-v1.json", PYTHONPATH=str(beside))
    assert str(tmp_path / "venv") in told and "securemodel_edge" in told
