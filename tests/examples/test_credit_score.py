"""The credit score example: both parties as processes, and nobody else."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from securemodel.cli.launch import run_local
from securemodel.cli.programs import load_program
from securemodel.cli.script import declared_parties, declares_dealer
from securemodel.scripts import load_file

ROOT = Path(__file__).parents[2]
HERE = ROOT / "examples" / "credit_score"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(HERE))
    for name in ("model", "score"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield load_file(HERE / "score.py")
    for name in ("model", "score"):
        sys.modules.pop(name, None)


def test_it_is_planned_for_two_parties_and_no_dealer(module):
    plan = load_program(HERE / "score.py").plan("wan")
    assert not declares_dealer(HERE / "score.py") and plan.preprocessing_bytes == 0
    assert (plan.rounds, plan.encryptions, plan.decryptions, plan.recommended) == (2, 10, 1, "paillier")


@pytest.mark.slow
def test_two_processes_score_all_applicants(module, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    said: list[tuple[str, str]] = []
    parties = declared_parties(HERE / "score.py")
    outcome = run_local(HERE / "score.py", [], parties, lambda who, text, error: said.append((who, text)), dealer=False)
    assert outcome.code == 0, said
    assert {who for who, _ in said} == set(parties)
    with torch.no_grad():
        expected = module.load_trained(HERE / "scorecard.safetensors")(module.applicants())[:, 0]
    chances = [float(m[1]) / 100 for who, text in said if who == "client" and (m := re.search(r"([\d.]+)%", text))]
    torch.testing.assert_close(torch.tensor(chances), expected, atol=1e-3, rtol=0)
    assert not any("%" in text for who, text in said if who == "bank")
