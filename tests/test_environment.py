"""No environment variable decides what protects a session: what a command line says stands on the command line."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import securemodel
from securemodel.errors import ConfigError

ROOT = Path(__file__).parents[1]
READERS = {
    "securemodel/ledger.py": "the folder of the user's state, as all programs have it",
    "securemodel/cli/processes.py": "passes everything on to the parties of --local; sets the number of threads",
    "securemodel/cli/forks.py": "gives numpy the threads back that it must not have before a fork",
    "securemodel/cli/ray_lanes.py": "switches off what Ray would tell its makers",
    "securemodel/cli/lanes.py": "passes everything on to the lanes of predict; sets the number of threads",
    "securemodel/service/lanes.py": "passes everything on to the engines of a service; sets the number of threads",
    "securemodel/service/rest.py": "where systemd puts a credential that SERVICE.toml names",
    "securemodel/service/serving.py": "where systemd listens for what a party says of itself (sd_notify)",
    "securemodel/engines/crypten/processes.py": "passes everything on to CrypTen's processes; tells them their places",
    "securemodel/engines/crypten/party.py": "how many processes share this machine's cores",
}
"""Who reads the environment, and for what."""


def test_an_environment_variable_cannot_choose_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECUREMODEL_PROTOCOL", "crypten")
    model = torch.nn.Linear(4, 3).eval()
    made = securemodel.compile(model, torch.zeros(2, 4), weights="bank", inputs="hospital", outputs="hospital")
    assert made.protocol == "masked"


def test_environment_variables_cannot_choose_parties_stores_or_keys(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for name in ("ME", "CONFIG", "STORE", "PAILLIER_KEY", "SCRIPT_DIGEST"):
        monkeypatch.setenv(f"SECUREMODEL_{name}", str(tmp_path / "theirs"))
    model = torch.nn.Linear(4, 3).eval()
    made = securemodel.compile(model, torch.zeros(2, 4), weights="bank", inputs="hospital", outputs="hospital")
    with pytest.raises(ConfigError, match="does not know who this process is"):
        securemodel.connect(made)


def test_nothing_else_reads_the_environment() -> None:
    found = set()
    for path in (path for package in ("protocols", "securemodel") for path in (ROOT / package).rglob("*.py")):
        names = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(ast.parse(path.read_text()))}
        if names & {"environ", "environb", "getenv", "getenvb"}:
            found.add(str(path.relative_to(ROOT)))
    assert found == set(READERS)
    sources = [*(ROOT / "protocols").rglob("*.cpp"), *(ROOT / "protocols").rglob("*.hpp")]
    assert sources and all("getenv" not in path.read_text() for path in sources)
