"""The example with a secret forest on columns of two parties: its files, and a run of all parties."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import securemodel
from securemodel.models import structure


def test_chances_are_those_of_the_library(example):
    script = example("fraud_trees", "score")
    program, model = script.make_program(), script.load_model()
    truth = np.loadtxt(script.HERE / "truth.csv", delimiter=",")
    columns = script.read("bank"), script.read("shop")
    assert torch.isnan(columns[0]).any() and program.parties == script.PARTIES
    assert structure(model) + "\n" == (script.HERE / "structure.json").read_text()
    with securemodel.local(program) as session:
        session.load(program, model)
        made = session.run(*columns)
    assert np.abs(made[:, 1].numpy() - truth[:, 1]).max() < 2.0**-12
    assert ((made[:, 1].numpy() > 0.5) == truth[:, 0]).mean() > 0.9


@pytest.mark.slow
def test_the_script_runs_at_all_parties(example, run_example):
    script = example("fraud_trees", "score")
    said = run_example(script.HERE / "score.py", [], script.PARTIES)
    assert any("38 of 500 purchases look like fraud" in line for line in said)
