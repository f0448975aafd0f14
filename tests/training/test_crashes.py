"""A process that is killed at any moment: the training goes on from the last checkpoint that all parties have."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    first = run.resume(folder / "checkpoints")
    print("resumed at", first, flush=True)
    while run.step_number < int(sys.argv[2]):
        run.step()
        run.checkpoint(folder / "checkpoints")
        print("steps:", run.step_number - first, flush=True)
    run.export(folder / "model.safetensors", to="bank")
"""


NURSERY = """
import json, os, sys, traceback

import torch

from securemodel.cli import main

torch.set_num_threads(1)
for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        print(os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    said = os.open(request["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), said, said)):
        os.dup2(file, number)
    os.chdir(request["folder"])
    try:
        main(request["words"])
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code or 0)
"""


class Nursery:
    """A process that has imported everything, and has children: processes of the command line that start at once."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, **request: Any) -> int:
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


class Trained:
    """All parties of the script as processes, in a folder with keys that stay."""

    def __init__(self, nursery: Nursery, folder: Path, steps: int) -> None:
        self.nursery, self.folder, self.steps = nursery, folder, steps
        folder.mkdir()
        (folder / "train.py").write_text(SCRIPT)
        self.names = ("bank", "shop", "dealer")
        roster, identities = loopback_parties(self.names[:2], folder, dealer=True, timeouts=Timeouts(60.0, 60.0))
        for name in identities:
            (folder / f"{name}.toml").write_text(f'{roster.path.read_text()}[me]\nidentity = "{name}"\n')

    def start(self) -> dict[str, int]:
        """The processes' numbers; what they say comes into files."""
        made = {}
        for name in self.names:
            self._said(name).unlink(missing_ok=True)
            words = ["train", "--me", name, "--ledger", "none", "train.py", ".", str(self.steps)]
            words = ["dealer", "--once"] if name == "dealer" else words
            said, words = str(self._said(name)), [words[0], "--config", f"{name}.toml", *words[1:]]
            made[name] = self.nursery.ask(said=said, folder=str(self.folder), words=words)
        return made

    def _said(self, name: str) -> Path:
        return self.folder / f"{name}.txt"

    def run(self, kill: str | None = None, line: str = "", after: float = 0.0) -> dict[str, str]:
        """Runs until all have ended; kills one of them some seconds after the bank said a line that has this."""
        processes = self.start()
        if kill:
            deadline = time.monotonic() + LIMIT_S
            while line not in (self._said("bank").read_text() if self._said("bank").exists() else ""):
                assert time.monotonic() < deadline, f"{line!r} never came"
                time.sleep(0.001)
            time.sleep(after)
            os.kill(processes[kill], signal.SIGKILL)
        codes = {name: self.nursery.ask(wait=number) for name, number in processes.items()}
        said = {name: self._said(name).read_text() for name in processes}
        if kill:
            assert codes.pop(kill) == -signal.SIGKILL, said
            assert all(codes.values()), f"nobody can go on alone: {codes} {said}"
        else:
            assert not any(codes.values()), said
        return said


@pytest.mark.parametrize("times", [4, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_a_killed_training_ends_in_the_weights_of_an_undisturbed_one(nursery, tmp_path, times):
    steps = (MOST_STEPS + 1) * times
    whole = Trained(nursery, tmp_path / "whole", steps)
    whole.run()
    chance, killed = random.Random(times), Trained(nursery, tmp_path / "killed", steps)
    for _ in range(times):
        made = chance.randint(-2, MOST_STEPS)
        line = "" if made == -2 else "resumed" if made == -1 else f"steps: {made}\n"
        killed.run(chance.choice(killed.names), line, chance.random() * (0.5 if made == -2 else 0.02))
        assert not (killed.folder / "model.safetensors").exists(), "it was killed before the end"
    killed.run()
    assert same_weights(killed, whole)


def test_a_training_goes_on_elsewhere_with_another_dealer(nursery, tmp_path):
    whole = Trained(nursery, tmp_path / "whole", 8)
    whole.run()
    first, then = Trained(nursery, tmp_path / "first", 8), Trained(nursery, tmp_path / "then", 8)
    first.run("dealer", "steps: 4\n")
    for name in ("bank", "shop", "checkpoints"):  # other ports, and the dealer has another key
        shutil.rmtree(then.folder / name, ignore_errors=True)
        shutil.move(first.folder / name, then.folder / name)
    said = then.run()
    assert "resumed at 4" in said["bank"] and "resumed at 4" in said["shop"]
    assert same_weights(then, whole)


def same_weights(one: Trained, other: Trained) -> bool:
    made, right = (safetensors.torch.load_file(run.folder / "model.safetensors") for run in (one, other))
    return made.keys() == right.keys() and all(torch.equal(made[name], right[name]) for name in right)
