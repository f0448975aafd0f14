"""The command tune: what it prints and writes, and what it says of data that cannot be measured."""

from __future__ import annotations

import numpy as np

import securemodel

COMPILED = 'program = securemodel.compile(model, example_inputs, weights="bank", inputs="hospital", outputs="hospital")'


def test_a_tuning_and_a_program_are_written(call, write, tmp_path, network):
    file, out, text = write("mine.py", network + COMPILED), tmp_path / "mine.tuning", tmp_path / "program.txt"
    np.savez(tmp_path / "data.npz", np.random.default_rng(0).standard_normal((6, 4)))
    result = call("tune", file, "--data", tmp_path / "data.npz", "--tolerance", "1e-3", "--out", out, "--program", text)
    assert result.exit_code == 0, result.output
    assert "a run" in result.stdout and "nothing says so" in result.stdout and "TEST DATA ONLY" in result.stderr
    read = securemodel.Program.load(text)
    assert read.header.tuned and read.header.tuned.of == securemodel.Tuning.load(out).of
    assert "tuned ranges" in call("audit", text).output


def test_trials_of_tables_are_told_of_and_can_be_left_out(call, write, tmp_path):
    lines = "import torch, securemodel\nmodel = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Sigmoid())\n"
    file = write("mine.py", lines + "example_inputs = (torch.zeros(6, 4),)\n" + COMPILED)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((6, 4)))
    with_tables, kept = (
        call("tune", file, "--data", tmp_path / "x.npy", "--tolerance", "1e-2", *more)
        for more in ((), ("--keep-tables",))
    )
    assert with_tables.exit_code == kept.exit_code == 0, with_tables.output + kept.output
    assert "trial 1 of at most 12: 1 of sigmoid, 64 entries" in with_tables.stderr and "trial" not in kept.output
    assert "1 of sigmoid a quarter" in with_tables.stdout


def test_data_that_cannot_be_measured(call, write, tmp_path, network):
    file = write("mine.py", network)
    for name, array, says in (("nan", np.full((2, 4), np.nan), "not finite"), ("shape", np.ones((2, 3)), "3"),
                              ("none", np.ones((0, 4)), "[0, 4]"), ("text", np.array([["a"] * 4]), "numbers")):  # fmt: skip
        np.save(tmp_path / f"{name}.npy", array)
        result = call("tune", file, "--data", tmp_path / f"{name}.npy", "--tolerance", "1e-3")
        assert result.exit_code == 1 and says in result.stderr and "Traceback" not in result.output, result.output
    np.save(tmp_path / "good.npy", np.random.default_rng(0).standard_normal((6, 4)))
    for options in (("0",), ("1e-3", "--margin", "0.5"), ("1e-12",)):
        assert call("tune", file, "--data", tmp_path / "good.npy", "--tolerance", *options).exit_code == 1
    assert "all zero" in call("tune", file, "--tolerance", "1e-3").stderr
    assert call("tune", file).exit_code == 2
