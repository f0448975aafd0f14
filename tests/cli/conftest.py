"""A small network in files of the kinds a user writes, and the command line called inside this process."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import securemodel
from protocols.channel.testing import loopback_parties
from protocols.identity import Timeouts
from securemodel.cli import main
from securemodel.program import Program

NETWORK = """
import torch
import securemodel

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
example_inputs = (torch.zeros(2, 4),)
"""


@pytest.fixture
def call() -> Callable[..., Result]:
    """Calls `securemodel` with these words."""
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a file into the test's folder."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def network() -> str:
    """Python text that defines `model` and `example_inputs`."""
    return NETWORK


@pytest.fixture(scope="session")
def program() -> Program:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
    return securemodel.compile(model, (torch.zeros(2, 4),), weights="bank", inputs="hospital", outputs="hospital")


@pytest.fixture
def program_file(tmp_path: Path, program: Program) -> Path:
    path = tmp_path / "program.txt"
    program.save(path)
    return path


@pytest.fixture
def parties_file(tmp_path: Path) -> Callable[..., Path]:
    """A parties file of bank, hospital and dealer on loopback, for one of them, or for nobody in particular."""
    roster = {}

    def make(me: str | None, connect_s: float = 20.0) -> Path:
        if not roster:
            times = Timeouts(connect_s=connect_s, receive_s=20.0)
            config, _ = loopback_parties(("bank", "hospital"), tmp_path, dealer=True, timeouts=times)
            roster["text"] = config.path.read_text()
        path = tmp_path / f"{me}.toml"
        path.write_text(roster["text"] + (f'[me]\nidentity = "{me}"\n' if me else ""))
        return path

    return make
