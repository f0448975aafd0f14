"""The notebook of a joint table runs from its first cell to its last, and is kept as it ran."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "notebooks" / "joint_table.ipynb"
AUC = re.compile(r"auc: ([\d.]+) ± ([\d.]+) \(256 bins\)")
ALONE = re.compile(r"auc of the scores themselves ([\d.]+)")


def said(notebook: nbformat.NotebookNode) -> str:
    """All text that its cells gave."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


def check(text: str) -> None:
    """The evaluation under encryption and the scores of one program say the same, within what the first promises."""
    (found,), (alone,) = AUC.findall(text), ALONE.findall(text)
    assert abs(float(found[0]) - float(alone)) <= float(found[1]) + 1e-3
    assert float(alone) > 0.65
    assert "in the class of others" in text and "missingindicator_income" in text


@pytest.mark.slow
def test_it_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent), prepend=os.pathsep)
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    shutil.copytree(EXAMPLES / "joint_table", tmp_path / "joint_table", ignore=shutil.ignore_patterns("files"))
    (tmp_path / "notebooks").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path / "notebooks")}}).execute()
    check(said(notebook))
    assert "<svg" in (tmp_path / "notebooks" / "report.html").read_text()


def test_it_is_kept_as_it_ran():
    kept = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(kept)
    check(said(kept))
    numbers = [cell.execution_count for cell in kept.cells if cell.cell_type == "code"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert not re.search(r"/(work|home|tmp|Users)/", NOTEBOOK.read_text()), "no paths of a machine"
