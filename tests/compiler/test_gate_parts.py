"""A gate is three things: its file, its row in the table of operators, and its rows among the tests."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from protocols import gates
from protocols.gates import GATES
from securemodel.compiler.ops import ROWS

TESTS = Path(__file__).parents[1] / "protocols"


def files_of(gate: str) -> list[str]:
    """The files of protocols/gates that define the gate's class."""
    name, folder = type(GATES[gate]).__name__, Path(gates.__file__).parent
    found = [(path.name, node) for path in folder.glob("*.py") for node in ast.parse(path.read_text()).body]
    return [file for file, node in found if isinstance(node, ast.ClassDef) and node.name == name]


def named_in_tests(gate: str) -> set[str]:
    """The tests that run the gate by its name and compare it with the clear."""
    found = set()
    for path in (TESTS / "test_gates.py", TESTS / "test_lookup.py"):
        for test in ast.parse(path.read_text()).body:
            if isinstance(test, ast.FunctionDef) and test.name.startswith("test_"):
                calls = [node for node in ast.walk(test) if isinstance(node, ast.Call) and node.args]
                if any(isinstance(n, ast.Constant) and n.value == gate for call in calls for n in ast.walk(call)):
                    found.add(test.name)
    return found


@pytest.mark.parametrize("gate", GATES)
def test_a_gate_is_a_file_a_row_and_tests(gate):
    (file,) = files_of(gate)
    assert Path(inspect.getfile(type(GATES[gate]))).name == file
    assert gate in ROWS
    assert named_in_tests(gate), f"compare {gate} with the clear in tests/protocols/test_gates.py"


def test_every_class_of_a_gate_is_one_gate():
    assert len({type(gate) for gate in GATES.values()}) == len(GATES)


def test_a_gate_without_tests_is_noticed():
    assert not named_in_tests("cube")
