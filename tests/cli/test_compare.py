"""The command compare: where it finds programs, models and data, and how it ends."""

from __future__ import annotations

import re

import numpy as np
import pytest

COMPILED = 'securemodel.compile(model, example_inputs, weights="bank", inputs="hospital", outputs="hospital")'
MODEL = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.eye_(self.layer.weight)
    def forward(self, x):
        return torch.log(self.layer(x))
"""


@pytest.mark.parametrize("definition", ["program = {}", "def make_program():\n    return {}"])
def test_a_file_with_a_program_and_data(call, write, tmp_path, network, definition):
    file = write("mine.py", network + definition.format(COMPILED))
    np.savez(tmp_path / "data.npz", np.random.default_rng(0).standard_normal((3, 4)))
    result = call("compare", file, "--data", tmp_path / "data.npz")
    assert result.exit_code == 0, result.output
    assert "0 Linear" in result.stdout and "no value leaves its range" in result.stdout
    assert "TEST DATA ONLY" in result.stderr and "all zero" not in result.stderr


def test_example_inputs_that_tell_little(call, write, network):
    result = call("compare", write("mine.py", network))
    assert result.exit_code == 0 and "all zero" in result.stderr


def test_test_inputs_of_the_file_go_before_its_examples(call, write, network):
    result = call("compare", write("mine.py", network + "test_inputs = torch.full((2, 4), 3.0)\n"))
    assert "all zero" not in result.stderr and "encoding: 3 in" in result.stdout


@pytest.mark.parametrize("compiled", ["", "program = " + COMPILED])
def test_examples_by_name(call, write, network, compiled):
    named = 'example_inputs = {"input": torch.ones(2, 4)}\n'
    result = call("compare", write("mine.py", network + named + compiled))
    assert result.exit_code == 0 and "no value leaves its range" in result.stdout


def test_a_class_of_models_and_what_leaves_its_range(call, write, tmp_path):
    file = write("mine.py", MODEL)
    np.save(tmp_path / "good.npy", np.array([[1.0, 100.0]]))
    np.save(tmp_path / "bad.npy", np.array([[1.0, -1.0]]))
    assert call("compare", f"{file}:Net", "--data", tmp_path / "good.npy").exit_code == 0
    result = call("compare", f"{file}:Net", "--data", tmp_path / "bad.npy")
    assert result.exit_code == 1 and "first out of range: mine.py:9 return torch.log" in result.stdout
    assert "log: a value of -1" in result.stdout


def test_arguments_of_compile(call, write, network):
    file = write("mine.py", network + "test_inputs = torch.ones(2, 4)\n")
    assert "±2^15" in call("compare", file, "--width", 32).stdout
    assert "2^46" in call("compare", file, "--frac-bits", 8).stdout
    assert call("compare", file, "--width", 9).exit_code == 1


def test_made_up_inputs(call, write):
    file = write(
        "mine.py",
        "import torch\nclass Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(3, 2)\n",
    )
    results = [call("compare", f"{file}:Net", "--shape", "2,3").stdout for _ in range(2)]
    first, again = (re.search(r"^inputs.*encoding: (\S+) in", text, re.MULTILINE)[1] for text in results)
    assert first == again != "0"
    assert call("compare", f"{file}:Net", "--shape", "2x3").exit_code == 2


def test_data_that_cannot_be_read(call, write, tmp_path, network):
    (tmp_path / "bad.npz").write_bytes(b"no data")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("bad.npz", "objects.npy"):
        result = call("compare", write("mine.py", network), "--data", tmp_path / name)
        assert (
            result.exit_code == 1 and "not a file of NumPy arrays" in result.stderr and "Traceback" not in result.output
        )
    np.save(tmp_path / "shape.npy", np.zeros((2, 5)))
    program = write("program.py", network + f"program = {COMPILED}\n")
    assert "shape [2, 5]" in call("compare", program, "--data", tmp_path / "shape.npy").stderr


def test_which_array_is_which_input_is_not_guessed(call, write, tmp_path):
    file = write(
        "mine.py",
        "import torch\nclass Net(torch.nn.Module):\n    def forward(self, a, b):\n        return torch.relu(a - b)\n",
    )
    a, b = np.full((2, 3), 5.0), np.ones((2, 3))
    np.savez(tmp_path / "named.npz", b=b, a=a)
    refused = call("compare", f"{file}:Net", "--data", tmp_path / "named.npz")
    assert (
        refused.exit_code == 1
        and "not clear which of the arrays" in refused.stderr
        and "numpy.savez(file, a, b)" in refused.stderr
    )
    np.savez(tmp_path / "plain.npz", a, b.astype(">f8"))
    assert call("compare", f"{file}:Net", "--data", tmp_path / "plain.npz").exit_code == 0
