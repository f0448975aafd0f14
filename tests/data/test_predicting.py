"""A saved pipeline and a model as one program, which `securemodel predict` gives the raw columns of new rows."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from securemodel import data
from tests.data.test_pipeline import COLUMNS, model, steps, vertical

SCRIPT = """
from pathlib import Path
import torch
from torch import nn
import securemodel
from securemodel import data

PARTIES = ("bank", "shop", "registry")
HERE = Path(__file__).parent
prepare = data.Prepared.load(HERE / "pipeline", data.Schema.load(HERE / "joint.toml"))
torch.manual_seed(0)
whole = prepare.then(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 1)).eval())
program = securemodel.compile(
    whole, whole.examples(4), weights=whole.weights("registry"), inputs=whole.inputs, outputs="bank", parties=PARTIES
)
"""


@pytest.mark.slow
def test_new_rows_of_files(tmp_path: Path) -> None:
    (tmp_path / "joint.toml").write_text(COLUMNS)
    (tmp_path / "infer.py").write_text(SCRIPT)
    prepared = steps().fit(vertical())
    prepared.save(tmp_path / "pipeline")
    draw = np.random.default_rng(0)
    rows = {
        "bank": np.stack([draw.uniform(0, 2e5, 6).round(2), draw.integers(18, 99, 6)], 1),
        "shop": np.stack([draw.integers(0, 3, 6), draw.integers(0, 60, 6)], 1).astype(float),
    }
    args = ["--output", f"bank={tmp_path / 'out.csv'}"]
    for party, values in rows.items():
        with (tmp_path / f"{party}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([[c.name for c in prepared.packed[party]], *values.tolist()])
        args += ["--input", f"{party}={tmp_path / party}.csv"]
    env = {**os.environ, "PYTHONPATH": str(Path(data.__file__).parents[2])}
    command = [sys.executable, "-m", "securemodel.cli", "predict", str(tmp_path / "infer.py"), "--local", *args]
    done = subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr + done.stdout
    with (tmp_path / "out.csv").open() as file:
        found = [float(row["output_0"]) for row in csv.DictReader(file)]
    wanted = prepared.then(model())(*(torch.from_numpy(values) for values in rows.values()))
    torch.testing.assert_close(torch.tensor(found), wanted[:, 0].detach(), atol=2e-3, rtol=0)
