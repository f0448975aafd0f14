"""A process that is killed at any moment: the training goes on from the last checkpoint that all parties have."""

from __future__ import annotations

import os
import random
import shutil
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

MOST_STEPS = 8  # of a run, before one of its processes is killed
LIMIT_S = 600.0  # for a hang: a loaded machine takes minutes to start three processes
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
    while run.step_number < int(sys.argv[2]):
        run.step()
        print("step", run.step_number, flush=True)
        if run.step_number % 3 == 0:
            run.checkpoint(folder / "checkpoints")
    run.export(folder / "model.safetensors", to="bank")
"""


class Trained:
    """All parties of the script as processes, in a folder with keys that stay."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        folder.mkdir()
        (folder / "train.py").write_text(SCRIPT)
        self.names = ("bank", "shop", "dealer")
        self._configure()

    def _configure(self) -> None:
        roster, identities = loopback_parties(self.names[:2], self.folder, dealer=True, timeouts=Timeouts(60.0, 60.0))
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
                else ["train", "--me", name, *config, "--ledger", "none", "train.py", ".", str(self.steps)]
            )
            made[name] = subprocess.Popen(
                [*cli, *words], cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        return made

    def run(self, kill: str | None = None, steps: int = 0, after: float = 0.0) -> dict[str, bytes]:
        """Runs until all have ended; kills one of them after so many steps and some seconds."""
        processes = self.start()
        if kill:
            assert b"resumed" in processes["bank"].stdout.readline()
            while steps:
                line = processes["bank"].stdout.readline()
                assert line, "it ended before"
                steps -= line.startswith(b"step ")
            time.sleep(after)
            processes[kill].send_signal(signal.SIGKILL)
        said = {}
        for name, process in processes.items():
            said[name], _ = process.communicate(timeout=LIMIT_S)
            if not kill:
                assert process.returncode == 0, f"{name}: {said[name].decode()}"
        return said


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_a_killed_training_ends_in_the_weights_of_an_undisturbed_one(tmp_path, times):
    steps = (MOST_STEPS + 1) * times
    whole = Trained(tmp_path / "whole", steps)
    whole.run()
    chance, killed = random.Random(times), Trained(tmp_path / "killed", steps)
    for _ in range(times):
        killed.run(chance.choice(killed.names), chance.randint(0, MOST_STEPS), chance.random() * 0.02)
        assert not (killed.folder / "model.safetensors").exists(), "it was killed before the end"
    killed.run()
    assert same_weights(killed, whole)


def test_a_training_goes_on_elsewhere_with_another_dealer(tmp_path):
    whole = Trained(tmp_path / "whole", 8)
    whole.run()
    first, then = Trained(tmp_path / "first", 8), Trained(tmp_path / "then", 8)
    first.run("dealer", steps=4)
    for name in ("bank", "shop", "checkpoints"):  # other ports, and the dealer has another key
        shutil.rmtree(then.folder / name, ignore_errors=True)
        shutil.move(first.folder / name, then.folder / name)
    said = then.run()
    assert b"resumed at 3" in said["bank"] and b"resumed at 3" in said["shop"]
    assert same_weights(then, whole)


def same_weights(one: Trained, other: Trained) -> bool:
    made, right = (safetensors.torch.load_file(run.folder / "model.safetensors") for run in (one, other))
    return made.keys() == right.keys() and all(torch.equal(made[name], right[name]) for name in right)
