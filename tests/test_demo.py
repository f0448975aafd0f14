"""The digit example as its parties would run it, the demonstration, and what the README says about both."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from protocols.channel.testing import loopback_parties

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "lenet_mnist"
README = (ROOT / "README.md").read_text(encoding="utf-8")
LIMIT_S = 200.0


def start(*words: object, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """Python with these words, and the project importable from anywhere."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment, text=True, stdout=pipe, stderr=pipe
    )


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    with process:
        try:
            out, errors = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    return process.returncode, out, errors


@pytest.mark.slow
def test_each_party_needs_its_own_file_only(tmp_path: Path) -> None:
    """Bank, hospital and dealer as three commands; the bank's folder has no images, the hospital's no weights."""
    roster, _ = loopback_parties(("bank", "hospital"), tmp_path, dealer=True)
    processes = {}
    for name, hidden in (("dealer", "*"), ("bank", "images.npz"), ("hospital", "lenet5.safetensors")):
        config = tmp_path / f"{name}.toml"
        config.write_text(f'{roster.path.read_text()}[me]\nidentity = "{name}"\n')
        if name == "dealer":
            processes[name] = start("-m", "securemodel.cli", "dealer", "--once", "--config", config)
            continue
        folder = tmp_path / f"folder of {name}"
        shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns(hidden, "__pycache__"))
        words = ("run", folder / "infer.py", tmp_path / f"out of {name}", 1, "--me", name, "--config", config)
        processes[name] = start("-m", "securemodel.cli", *words, cwd=folder)
    for name, (code, _, errors) in {name: outcome(process) for name, process in processes.items()}.items():
        assert code == 0, f"{name}: {errors}"
    assert [p.name for p in (tmp_path / "out of bank").iterdir()] == ["bank.json"]
    results = np.load(tmp_path / "out of hospital" / "hospital.npz")
    labels = np.load(EXAMPLE / "images.npz")["labels"][: len(results["predictions"])]
    assert len(labels) == 100 and (results["predictions"] == labels).mean() > 0.95
    stats = json.loads((tmp_path / "out of hospital" / "hospital.json").read_text())
    assert len(stats) == 1 and stats[0]["rounds"] > 0


def steady(text: str) -> list[str]:
    """The lines of the demonstration's output that are the same in every run."""
    chosen = ("accuracy", "same prediction", "rounds", "sent by", "preprocessing", "No party learns")
    return [" ".join(line.split()) for line in text.splitlines() if any(words in line for words in chosen)]


@pytest.mark.slow
def test_the_demonstration_and_its_output_in_the_readme(tmp_path: Path) -> None:
    code, out, errors = outcome(start(EXAMPLE / "demo.py", "--out", tmp_path / "out"))
    assert code == 0, errors
    assert "500 of 500 (100.0 %)" in out
    shown = re.search(r"```text\n(.*?)```", README, re.DOTALL)[1]
    assert len(steady(out)) == 8 and steady(shown) == steady(out)
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_the_demonstration_finds_a_wrong_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With results that differ from plain torch in one image, it ends with 1 and says so."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    for name in ("demo", "model", "data", "infer"):  # other tests' scripts have modules of the same names
        monkeypatch.delitem(sys.modules, name, raising=False)
    import demo
    import torch
    from click.testing import CliRunner

    def answers(change: float) -> None:
        images = torch.from_numpy(np.load(EXAMPLE / "images.npz")["images"][:100]).float().div(255).unsqueeze(1)
        with torch.no_grad():
            logits = demo.load_trained(EXAMPLE / "lenet5.safetensors")(images).numpy()
        logits[42, (logits[42].argmax() + 1) % 10] += change
        (tmp_path / "digits").mkdir(exist_ok=True)
        np.savez(tmp_path / "digits" / "hospital.npz", logits=logits)
        for name in ("bank", "hospital"):
            stats = {"seconds": 1.0, "rounds": 1, "preprocessing_bytes": 1, "sent_bytes": {name: 1}}
            (tmp_path / "digits" / f"{name}.json").write_text(json.dumps([stats]))

    monkeypatch.setattr(demo, "run_parties", lambda *_: None)
    for change, code in ((0.0, 0), (100.0, 1)):
        answers(change)
        result = CliRunner().invoke(demo.main, ["--out", str(tmp_path), "--batches", "1"])
        assert result.exit_code == code, result.output
        assert ("predictions differ" in result.output) == bool(code)


def test_the_python_in_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    training, tables, inference = blocks
    lengths = [len(block.strip().splitlines()) for block in blocks]
    assert lengths[0] <= 40 and lengths[1] <= 65 and lengths[2] <= 18
    names: dict[str, object] = {}
    exec(compile(inference, "README.md", "exec"), names)
    assert (names["scores"] - names["model"](names["patients"])).abs().max() < 2**-8
    assert "rounds" in capsys.readouterr().out
    names = {}
    exec(compile(training, "README.md", "exec"), names)
    before, trained = names["model"].state_dict(), names["weights"]
    assert before.keys() == trained.keys() and any((before[name] - trained[name]).abs().max() > 1e-3 for name in before)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0", "1"]
    names = {}
    exec(compile(tables, "README.md", "exec"), names)
    assert names["joint"].rows == 100 and names["found"]["accuracy"].value > 0.8
    assert "withheld, of fewer than 5 rows" in capsys.readouterr().out


def test_the_parties_file_in_the_readme_is_one(tmp_path: Path) -> None:
    from protocols import identity

    block = re.search(r"```toml\n(.*?)```", README, re.DOTALL)[1]
    text = "\n".join(line.removeprefix("   ") for line in block.splitlines())
    for name in ("bank", "hospital", "dealer"):
        own = identity.create(name, tmp_path / "keys" / name)
        shutil.copy(own.certificate_path, tmp_path / f"{name}.crt")
    (tmp_path / "parties.toml").write_text(text)
    config = identity.load_config(tmp_path / "parties.toml")
    assert set(config.parties) == {"bank", "hospital"} and config.dealer is not None
    assert identity.load(config.identity).name == "bank"


def test_the_commands_in_the_readme_exist() -> None:
    from securemodel.cli import main

    named = set(re.findall(r"`securemodel ([a-z]+)", README))
    assert named == set(main.commands)
    targets = set(re.findall(r"`make ([a-z-]+)", README)) | {"setup", "demo"}
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
