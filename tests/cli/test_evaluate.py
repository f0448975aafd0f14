"""securemodel evaluate: what it says before it connects, what it finds, its report, and each way to go wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score

SCHEMA = """
[table]
minimum = 5
[columns.income]
owner = "bank"
kind = "number"
low = -8
high = 8
[columns.spent]
owner = "shop"
kind = "number"
low = -8
high = 8
[columns.defaulted]
owner = "shop"
kind = "boolean"
"""
SCRIPT = """
from pathlib import Path
from securemodel import data
PARTIES = ("bank", "shop")
HERE = Path(__file__).parent

def score(bank, shop):
    return (bank - shop).squeeze(1)

def make_evaluation():
    tables = [data.table(name, HERE / f"{name}.csv") for name in PARTIES]
    return data.evaluation(data.Schema.load(HERE / "joint.toml"), tables, score, "defaulted", metrics=["f1"])
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    made = np.random.default_rng(0)
    income, spent = (np.round(made.normal(size=60) * 64) / 64 for _ in range(2))  # sums that are the same are ties
    label = (made.random(60) < 1 / (1 + np.exp(spent - income))).astype(int)
    pd.DataFrame({"income": income}).to_csv(tmp_path / "bank.csv", index=False)
    pd.DataFrame({"spent": spent, "defaulted": label}).to_csv(tmp_path / "shop.csv", index=False)
    (tmp_path / "joint.toml").write_text(SCHEMA)
    path = tmp_path / "score.py"
    path.write_text(SCRIPT)
    return path


def test_all_parties_on_this_machine(script: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "securemodel.cli", "evaluate", str(script), "--local", "--metrics", "f1,auc,roc",
               "--exact", "--reveal", "bank", "--ledger", str(tmp_path / "ledger"), "--out", str(tmp_path / "r.html")]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=250)
    said = done.stdout
    assert done.returncode == 0, said + done.stderr
    bank, shop = pd.read_csv(tmp_path / "bank.csv"), pd.read_csv(tmp_path / "shop.csv")
    score, label = bank["income"] - shop["spent"], shop["defaulted"]
    assert said.index("f1 num, f1 den, curve") < said.index("60 rows are evaluated")
    assert "rounds" in said and "exact auc value, exact auc shown to bank" in said
    assert "auc: 0." in said and "revealed to bank alone" in said
    numbers = json.loads((tmp_path / "r-bank.json").read_text())
    assert numbers["metrics"]["f1"]["value"] == pytest.approx(f1_score(label, score >= 0))
    assert numbers["metrics"]["auc"]["value"] == pytest.approx(roc_auc_score(label, score), abs=1e-5)
    assert {line["program"] for line in numbers["ledger"]} == set(numbers["facts"]["programs"])
    assert "<svg" in (tmp_path / "r-bank.html").read_text()
    theirs = json.loads((tmp_path / "r-shop.json").read_text())
    assert theirs["metrics"]["auc"]["value"] is None and "bank alone" in theirs["metrics"]["auc"]["why"]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ([], "give --local, or both"),
        (["--local", "--store", "."], "--store is not for evaluations"),
        (["--local", "--network", "moon"], "'moon' is not"),
    ],
)
def test_what_is_called_wrongly(call: Callable, script: Path, extra: list[str], said: str) -> None:
    result = call("evaluate", script, *extra)
    assert result.exit_code == 2 and said in result.output


def test_a_script_that_says_nothing_is_named(call, script: Path) -> None:
    script.write_text('PARTIES = ("bank", "shop")\n')
    result = call("evaluate", script, "--local")
    assert result.exit_code == 1 and "make_evaluation()" in result.output
