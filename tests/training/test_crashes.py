"""A process that is killed at any moment: the training goes on from the last checkpoint that all parties have."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from protocols.channel.testing import loopback_parties
from protocols.identity import Timeouts

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import securemodel

PARTIES = ("bank", "shop")
folder = Path(sys.argv[1])
torch.manual_seed(0)
x, y = torch.randn(64, 6), torch.randn(64)
model = nn.Linear(6, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def step(x, y):
    loss = F.mse_loss(model(x).squeeze(1), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {"loss": loss}


data = securemodel.dataset(x=securemodel.owned("bank", x), y=securemodel.owned("shop", y))
job = securemodel.compile_training(step, model, optimizer, batch=data.batches(16, seed=3), parties=PARTIES)
with job.connect() as run:
    print("resumed at", run.resume(folder / "checkpoints"), flush=True)
    while run.step_number < 24:
        run.step()
        if run.step_number % 3 == 0:
            run.checkpoint(folder / "checkpoints")
    run.export(folder / "model.safetensors", to="bank")
"""


class Trained:
    """All parties of the script as processes, in a folder with keys that stay."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "train.py").write_text(SCRIPT)
        self.names = ("bank", "shop", "dealer")
        self._configure()

    def _configure(self) -> None:
        roster, identities = loopback_parties(self.names[:2], self.folder, dealer=True, timeouts=Timeouts(20.0, 20.0))
        for name in identities:
            own = f'[me]\nidentity = "{name}"\n'
            (self.folder / f"{name}.toml").write_text(roster.path.read_text() + own)

    def start(self) -> dict[str, subprocess.Popen]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        cli = [sys.executable, "-m", "securemodel.cli"]
        made = {}
        for name in self.names:
            config = ["--config", f"{name}.toml"]
            words = (
                ["dealer", *config, "--once"]
                if name == "dealer"
                else ["train", "--me", name, *config, "--ledger", "none", "train.py", "."]
            )
            made[name] = subprocess.Popen(
                [*cli, *words], cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        return made

    def run(self, kill: str | None = None, after: float = 0.0) -> dict[str, int]:
        """Runs until all have ended; kills one of them some seconds after the parties are under way."""
        processes = self.start()
        if kill:
            assert b"resumed" in processes["bank"].stdout.readline()
            time.sleep(after)
            processes[kill].send_signal(signal.SIGKILL)
        codes = {}
        for name, process in processes.items():
            said, _ = process.communicate(timeout=120)
            codes[name] = process.returncode
            if not kill:
                assert process.returncode == 0, f"{name}: {said.decode()}"
        return codes


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_killed_training_ends_in_the_weights_of_an_undisturbed_one(tmp_path, times):
    whole = Trained(tmp_path / "whole")
    whole.run()
    right = safetensors.torch.load_file(tmp_path / "whole" / "model.safetensors")
    chance, killed = random.Random(times), Trained(tmp_path / "killed")
    for _ in range(times):
        (killed.folder / "model.safetensors").unlink(missing_ok=True)
        killed.run(chance.choice(killed.names), chance.random() * 0.5)
    killed.run()
    made = safetensors.torch.load_file(killed.folder / "model.safetensors")
    assert made.keys() == right.keys() and all(torch.equal(made[name], right[name]) for name in right)
