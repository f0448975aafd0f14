"""Real processes over mutual TLS: results, a party that is killed, one that is stopped, and stores after a kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from protocols.channel.testing import loopback_parties
from protocols.identity import Timeouts
from securemodel.engines.masked.store import prepare
from securemodel.program import Program

PARTY = """
import sys, torch, securemodel
from securemodel.engines.masked.party import OnlineParty

torch.set_num_threads(1)
run = OnlineParty.run
def said(self, epoch, *rest):
    print("epoch", epoch, flush=True)
    return run(self, epoch, *rest)
OnlineParty.run = said

torch.manual_seed(5)
model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()
program = securemodel.compile(model, (torch.zeros(2, 4),), weights="bank", inputs="hospital", outputs="hospital")
x = torch.tensor([[1.0, 2.0, -3.0, 0.5], [0.25, -1.0, 2.0, 1.0]])
with securemodel.connect(program) as session:
    for _ in range(int(sys.argv[1])):
        y = session.run(x if session.me == "hospital" else None)
    if session.me == "hospital":
        print("error", float((y - model(x)).abs().max()), flush=True)
"""
DEALER = """
import sys
from protocols import identity
from securemodel.engines.masked.dealer import serve

config = identity.load_config(sys.argv[1])
serve(config, identity.load(config.identity), say=lambda text: print(text, flush=True))
"""
RECEIVE_S = 3.0
LIMIT_S = 120.0
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")


class Scene:
    """Processes of two parties and a dealer in a folder, each with its own identity and party file."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        names = ("bank", "hospital")
        config, _ = loopback_parties(names, folder, dealer=True, timeouts=Timeouts(30, RECEIVE_S))
        for name in (*names, "dealer"):
            text = config.path.read_text() + f'\n[me]\nidentity = "{name}"\n'
            (folder / f"{name}.toml").write_text(text)
        (folder / "party.py").write_text(PARTY)
        (folder / "dealer.py").write_text(DEALER)
        self.started: list[subprocess.Popen] = []

    def start(self, name: str, *arguments: str) -> subprocess.Popen:
        """A process whose output goes to a file named like it."""
        number = len(self.started)
        everything = {**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        self.output = self.folder / f"{name}.{number}.out"
        with open(self.output, "wb") as file:
            command = [sys.executable, *arguments]
            made = subprocess.Popen(command, stdout=file, stderr=file, env=everything, cwd=self.folder)
        made.output = self.output
        self.started.append(made)
        return made

    def dealer(self) -> subprocess.Popen:
        return self.start("dealer", "dealer.py", "dealer.toml")

    def party(self, name: str, runs: int, store: Path | None = None, script: str = "party.py") -> subprocess.Popen:
        options = ["--traceback", "--me", name, "--config", f"{name}.toml", *(["--store", str(store)] if store else [])]
        return self.start(name, "-m", "securemodel.cli", "run", *options, script, str(runs))


def said(process: subprocess.Popen) -> str:
    return process.output.read_text(errors="replace")


def wait_for(process: subprocess.Popen, part: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while part not in said(process):
        assert process.poll() is None and time.monotonic() < deadline, said(process)
        time.sleep(0.05)


def end(process: subprocess.Popen, limit_s: float = LIMIT_S) -> int:
    return process.wait(limit_s)


def epochs(process: subprocess.Popen) -> list[int]:
    return [int(number) for number in re.findall(r"epoch (\d+)", said(process))]


@pytest.fixture
def scene(tmp_path: Path, tools) -> Iterator[Scene]:
    made = Scene(tmp_path, tools.root)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.wait()


def good_session(scene: Scene, runs: int = 3, stores: Mapping[str, Path] = {}) -> dict[str, subprocess.Popen]:
    made = {name: scene.party(name, runs, stores.get(name)) for name in ("bank", "hospital")}
    for process in made.values():
        assert end(process) == 0, said(process)
    (error,) = re.findall(r"error (\S+)", said(made["hospital"]))
    assert float(error) < 2**-10
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    "who, how", [("hospital", signal.SIGKILL), ("bank", signal.SIGSTOP)], ids=["killed", "stopped"]
)
def test_a_process_is_killed_or_stopped(scene: Scene, who: str, how: signal.Signals) -> None:
    dealer = scene.dealer()
    made = {name: scene.party(name, 1_000_000) for name in ("bank", "hospital")}
    wait_for(made[who], "epoch 20\n")
    made[who].send_signal(how)
    other = made["hospital" if who == "bank" else "bank"]
    assert end(other, RECEIVE_S + 5) != 0
    kind = "PeerDied" if how == signal.SIGKILL else "PeerStalled"
    assert kind in said(other) and f"'{who}'" in said(other) and "→" in said(other)
    if how == signal.SIGSTOP:
        made[who].send_signal(signal.SIGCONT)
        assert end(made[who], 10) != 0 and "protocols.errors.Peer" in said(made[who])
    wait_for(dealer, "session failed")
    good_session(scene)
    wait_for(dealer, "session ended")


@pytest.mark.slow
def test_the_dealer_process_is_killed(scene: Scene) -> None:
    dealer = scene.dealer()
    made = {name: scene.party(name, 1_000_000) for name in ("bank", "hospital")}
    wait_for(made["bank"], "epoch 20\n")
    dealer.kill()
    for process in made.values():
        assert end(process, RECEIVE_S + 5) != 0
        assert "'dealer'" in said(process)
    scene.dealer()
    good_session(scene)


@pytest.mark.slow
def test_scripts_differ(scene: Scene) -> None:
    scene.dealer()
    (scene.folder / "other.py").write_text(PARTY + "# another version\n")
    made = [scene.party("bank", 1), scene.party("hospital", 1, script="other.py")]
    for process in made:
        assert end(process) != 0 and "different script" in said(process)


@pytest.mark.slow
def test_no_run_of_a_store_is_used_twice_after_a_kill(scene: Scene) -> None:
    who = "hospital"
    torch.manual_seed(5)
    namespace: dict = {}
    compiled = PARTY[PARTY.index("torch.manual_seed") : PARTY.index("x = ")]
    exec("import torch, securemodel\n" + compiled, namespace)
    program: Program = namespace["program"]
    stores = prepare(program, 800, scene.folder / "stores")
    made = {name: scene.party(name, 800, path) for name, path in stores.items()}
    wait_for(made[who], "epoch 20\n")
    made[who].kill()
    end(made[who])
    other = made["hospital" if who == "bank" else "bank"]
    assert end(other, RECEIVE_S + 5) != 0 and "PeerDied" in said(other)
    again = good_session(scene, 3, stores)
    begun = max(*epochs(made["bank"]), *epochs(made["hospital"]))
    assert epochs(again["bank"]) == epochs(again["hospital"])
    assert min(epochs(again["bank"])) > begun and len(epochs(again["bank"])) == 3
    for path in stores.values():
        assert [p.name for p in path.iterdir() if p.name.startswith(".")] == []
