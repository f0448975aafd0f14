"""The example with two owners of features and two of weights: its files, its accuracy, and a run of all parties."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import securemodel
from securemodel.cli import main

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "vertical_split"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """infer.py as a module; it finds its model.py, and no other test does."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.delitem(sys.modules, "model", raising=False)
    spec = importlib.util.spec_from_file_location("vertical_split", EXAMPLE / "infer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("model", None)


def whole_model(script: ModuleType) -> torch.nn.Module:
    """Both owners' parts together, as nobody has them."""
    model, parts = script.load_model("lab"), script.load_model("pharmacy")
    model.drugs = parts.drugs
    return model


def tables(script: ModuleType) -> tuple[torch.Tensor, torch.Tensor]:
    return script.read(EXAMPLE / "clinic.csv"), script.read(EXAMPLE / "pharmacy.csv")


def test_each_owner_has_its_own_parts_only(script: ModuleType) -> None:
    for party in ("lab", "pharmacy"):
        held = {name.split(".")[0] for name, t in script.load_model(party).named_parameters() if not t.is_meta}
        assert held == {part for part, owner in script.PARTS.items() if owner == party}
    program = script.make_program()
    assert program.parties == script.PARTIES and program.row_independent
    drugs = [n for n in program.graph.nodes if n.op == "float" and n.owner == "pharmacy" and n.shape == (100, 16)]
    assert drugs, "the pharmacy computes its encoder in the clear"


def test_accuracy_is_as_the_readme_says(script: ModuleType) -> None:
    with torch.no_grad():
        made = torch.stack(whole_model(script)(*tables(script)), 1) > 0.5
    right = (made == (script.read(EXAMPLE / "truth.csv") > 0.5)).double().mean(0)
    said = re.search(r"^\| both \| ([\d.]+) % \| ([\d.]+) % \|$", (EXAMPLE / "README.md").read_text(), re.MULTILINE)
    assert [round(100 * float(share), 1) for share in right] == [float(said[1]), float(said[2])]
    shown = re.findall(r"\| (\d+) of 250", (EXAMPLE / "README.md").read_text())
    assert [int(count) for count in shown] == made.sum(0).tolist()


def test_both_learn_what_torch_says(script: ModuleType) -> None:
    model, inputs = whole_model(script), tables(script)
    with torch.no_grad(), securemodel.local(script.make_program()) as session:
        session.load(session.program, model)
        for made, expected in zip(session.run(*inputs), model(*inputs), strict=True):
            torch.testing.assert_close(made, expected, atol=2**-8, rtol=0)


@pytest.mark.slow
def test_all_parties_from_files_to_files(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__", "train.py", "truth.csv"))
    words = ["predict", str(folder / "infer.py"), "--local"]
    for name in ("clinic", "pharmacy"):
        words += ["--input", f"{name}={folder / name}.csv", "--output", f"{name}={tmp_path / name}.npz"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    with torch.no_grad():
        expected = whole_model(script)(*tables(script))
    for index, name in enumerate(("clinic", "pharmacy")):
        with np.load(tmp_path / f"{name}.npz") as made:
            assert list(made) == ["row", f"output{index}"]
            assert np.abs(made[f"output{index}"] - expected[index].numpy()).max() < 2**-8
