"""A process that is killed at any moment: the training goes on from the last checkpoint that all parties have."""

from __future__ import annotations

import json
import os
import random
import re
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
from securemodel.training.checkpoints import steps_of

MOST_STEPS = 8  # of a run, before one of its processes is killed
LIMIT_S = 120.0  # for a hang
ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import securemodel

PARTIES = ("bank", "shop")
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
job = securemodel.compile_training(step, model, optimizer, batch=data.batches(16, seed=3), parties=PARTIES, guard_every=4)

if __name__ == "__main__":
    folder = Path(sys.argv[1])
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
import faulthandler, json, os, runpy, sys, traceback

import torch

from securemodel.cli import main

torch.set_num_threads(1)
runpy.run_path(sys.argv[1])  # compiled once, everything is there
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
    faulthandler.dump_traceback_later(60, exit=True)  # of a hang it says where
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

    def __init__(self, script: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-c", NURSERY, str(script)]
        self._process = subprocess.Popen(
            words, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, **request: Any) -> int:
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    script = tmp_path_factory.mktemp("nursery") / "train.py"
    script.write_text(SCRIPT)
    made = Nursery(script)
    yield made
    made.close()


class Trained:
    """All parties of the script as processes, in a folder with keys that stay."""

    def __init__(self, nursery: Nursery, folder: Path, steps: int) -> None:
        self.nursery, self.folder, self.steps = nursery, folder, steps
        folder.mkdir()
        (folder / "train.py").write_text(SCRIPT)
        self.names = ("bank", "shop", "dealer")
        roster, identities = loopback_parties(self.names[:2], folder, dealer=True, timeouts=Timeouts(15.0, 60.0))
        for name in identities:
            (folder / f"{name}.toml").write_text(f'{roster.path.read_text()}[me]\nidentity = "{name}"\n')

    def start(self, store: str = "") -> dict[str, int]:
        """The processes' numbers; what they say comes into files. With a store there is no dealer."""
        made = {}
        for name in self.names[:2] if store else self.names:
            own = ["--store", f"{store}/{name}"] if store else []
            words = [
                "--me",
                name,
                "--config",
                f"{name}.toml",
                "--ledger",
                "none",
                *own,
                "train.py",
                ".",
                str(self.steps),
            ]
            made[name] = self.call(
                name, *(["dealer", "--config", "dealer.toml"] if name == "dealer" else ["train", *words])
            )
        return made

    def call(self, name: str, *words: str) -> int:
        """A process of the command line under a name, for what it says."""
        self._said(name).unlink(missing_ok=True)
        return self.nursery.ask(said=str(self._said(name)), folder=str(self.folder), words=words)

    def _said(self, name: str) -> Path:
        return self.folder / f"{name}.txt"

    def run(self, kill: str | None = None, line: str = "", after: float = 0.0) -> dict[str, str]:
        """Runs until all have ended; kills one of them some seconds after the bank said a line that has this."""
        processes = self.start()
        if kill:
            deadline = time.monotonic() + LIMIT_S
            while line not in (said := self._said("bank").read_text() if self._said("bank").exists() else ""):
                assert time.monotonic() < deadline and "rror" not in said, f"{line!r} never came: {said}"
                time.sleep(0.001)
            time.sleep(after)
            os.kill(processes[kill], signal.SIGKILL)
        codes = {name: self.nursery.ask(wait=processes.pop(name)) for name in self.names[:2]}
        os.kill(processes["dealer"], signal.SIGKILL)  # it would wait for the next session
        self.nursery.ask(wait=processes["dealer"])
        said = {name: self._said(name).read_text() for name in self.names}
        assert all(codes.values()) if kill else not any(codes.values()), f"{codes}: nobody goes on alone, {said}"
        return said


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_a_killed_training_ends_in_the_weights_of_an_undisturbed_one(nursery, tmp_path, times):
    chance, killed = random.Random(times), Trained(nursery, tmp_path / "killed", steps=1_000_000)
    for _ in range(times):
        steps = chance.randint(-1, MOST_STEPS)
        line = "" if steps < 0 else f"steps: {steps}\n" if steps else "resumed"
        killed.run(chance.choice(killed.names), line, chance.random() * (0.5 if steps < 0 else 0.02))
    killed.steps = max(steps_of(killed.folder / "checkpoints" / "bank")) + 5
    killed.run()
    whole = Trained(nursery, tmp_path / "whole", killed.steps)
    whole.run()
    assert same_weights(killed, whole)


def test_a_training_goes_on_elsewhere_with_another_dealer(nursery, tmp_path):
    whole = Trained(nursery, tmp_path / "whole", 12)
    whole.run()
    first, then = Trained(nursery, tmp_path / "first", 12), Trained(nursery, tmp_path / "then", 12)
    first.run("dealer", "steps: 4\n")
    for name in ("bank", "shop", "checkpoints"):  # other ports, and the dealer has another key
        shutil.rmtree(then.folder / name, ignore_errors=True)
        shutil.move(first.folder / name, then.folder / name)
    said = then.run()
    (step,) = {re.search(r"resumed at (\d+)", said[name])[1] for name in ("bank", "shop")}
    assert int(step) >= 4
    assert same_weights(then, whole)


def test_a_training_in_processes_with_a_store_and_then_another(nursery, tmp_path):
    whole, stored = Trained(nursery, tmp_path / "whole", 10), Trained(nursery, tmp_path / "stored", 10)
    whole.run()
    for name, steps in (("one", 6), ("other", 10)):
        assert nursery.ask(wait=stored.call(name, "prepare", "train.py", "--count", str(steps), "--out", name)) == 0
    for store, code in (("one", 1), ("other", 0)):
        processes = stored.start(store)
        codes = [nursery.ask(wait=number) for number in processes.values()]
        said = {name: stored._said(name).read_text() for name in processes}
        assert codes == [code, code], said
        if code:
            assert all("steps: 6" in text and "step 7 has none" in text for text in said.values()), said
        else:
            assert all("resumed at 6" in text for text in said.values()), said
    assert same_weights(stored, whole)


def same_weights(one: Trained, other: Trained) -> bool:
    made, right = (safetensors.torch.load_file(run.folder / "model.safetensors") for run in (one, other))
    return made.keys() == right.keys() and all(torch.equal(made[name], right[name]) for name in right)
