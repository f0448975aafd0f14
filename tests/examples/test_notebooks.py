"""The notebook that people read first runs from its first cell to its last."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
FIRST = ROOT / "examples" / "notebooks" / "first_training.ipynb"


def said(notebook: nbformat.NotebookNode) -> str:
    """All text that its cells gave."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


def pictures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in o.get("data", {}) for cell in notebook.cells for o in cell.get("outputs", []))


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> nbformat.NotebookNode:
    """The notebook with what its cells give now."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(FIRST, as_version=4)
    NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return notebook


def test_the_first_training_runs(executed):
    text = said(executed)
    assert pictures(executed) == 1
    (counted,) = re.findall(r"^accuracy ([\d.]+)%, precision", text, re.MULTILINE)
    (exported,) = re.findall(r"accuracy of the exported model ([\d.]+)%", text)
    (alone,) = re.findall(r"accuracy of the bank alone ([\d.]+)%", text)
    assert abs(float(counted) - float(exported)) <= 0.5 and float(exported) > float(alone) + 10
    assert "operators have a secure version" in text
    assert re.search(r"cell:\d+", text) and not re.search(r"\d{5,}\.py", text), "lines of cells are named so"


def test_it_is_kept_as_it_ran():
    kept = nbformat.read(FIRST, as_version=4)
    nbformat.validate(kept)
    assert pictures(kept) == 1 and "accuracy of the exported model" in said(kept)
    numbers = [cell.execution_count for cell in kept.cells if cell.cell_type == "code"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert not re.search(r"/(work|home|tmp|Users)/", FIRST.read_text()), "no paths of a machine"
