"""Lanes as actors of Ray: what they reply, that one that is killed is noticed, and that a party with them finishes a job."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from protocols.errors import ConfigError
from securemodel.cli.lanes import Crew
from securemodel.cli.ray_lanes import RayLanes
from securemodel.engines.packing import unpack
from securemodel.program import Program

LIMIT_S = 240


def until(crew: Crew, wanted: Callable[[dict], bool]) -> tuple[int, dict]:
    """The first reply of this kind."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for lane, message in crew.events(0.2):
            assert message is not None
            if wanted(words := unpack(message)[0]):
                return lane, words
    raise AssertionError("no such reply came")


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[RayLanes]:
    job = {"script": str(tmp_path / "none.py"), "me": "bank", "config": str(tmp_path / "none.toml"), "ledger": "none"}
    made = RayLanes({**job, "lanes": 1, "results": []}, 1)
    try:
        yield made
    finally:
        made.close()


def test_actors_say_what_went_wrong_and_whether_they_are_there(crew: RayLanes) -> None:
    crew.start(1)
    lane, words = until(crew, lambda words: "error" in words)
    assert lane == 1 and "none.toml" in words["error"]
    crew._ray.kill(crew._running[1])
    assert until(crew, lambda words: words.get("error") == "its actor has ended")[0] == 1
    crew.stop(1)
    crew.start(1)
    assert until(crew, lambda words: "error" in words)[0] == 1


def test_a_ray_that_does_not_start_is_an_error_with_a_cause(monkeypatch) -> None:
    def init(**words: object) -> None:
        raise RuntimeError("The current node timed out during startup.\nMore")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(
        ConfigError, match=r"Ray cannot be started(?s:.)*timed out during startup(?s:.)*leave --ray out"
    ):
        RayLanes({}, 1)


SCRIPT = """
program = securemodel.compile(model, example_inputs, weights="bank", inputs="hospital", outputs="hospital")
"""


@pytest.mark.slow
def test_a_party_with_actors_finishes_a_job(
    network: str, write, parties_of_lanes, tmp_path: Path, program: Program
) -> None:
    """The bank's lanes are actors, the hospital's are processes."""
    script, table = write("infer.py", network + SCRIPT), tmp_path / "x.csv"
    rows = torch.randn(41, 4, generator=torch.Generator().manual_seed(4))
    np.savetxt(table, rows.numpy(), delimiter=",", header="a,b,c,d", comments="")
    common = ["predict", script, "--lanes", 2, "--ledger", "none"]
    commands = {
        "dealer": ["dealer"],
        "bank": [*common, "--me", "bank", "--ray"],
        "hospital": [*common, "--me", "hospital", "--input", table, "--output", tmp_path / "out.csv"],
    }
    processes = {}
    for name, words in commands.items():
        command = [sys.executable, "-m", "securemodel.cli", *words, "--config", parties_of_lanes(name)]
        processes[name] = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        for name in ("bank", "hospital"):
            said, _ = processes[name].communicate(timeout=LIMIT_S)
            assert processes[name].returncode == 0, said.decode()
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    made = np.loadtxt(tmp_path / "out.csv", delimiter=",", skiprows=1, dtype=np.float32)
    torch.testing.assert_close(torch.from_numpy(made[:, 1:]), program.model(rows).detach(), atol=2**-9, rtol=0)


@pytest.fixture
def parties_of_lanes(tmp_path: Path) -> Callable[[str], Path]:
    from protocols.channel.testing import loopback_parties
    from protocols.identity import Timeouts

    times = Timeouts(connect_s=200.0, receive_s=60.0)
    config, _ = loopback_parties(("bank", "hospital"), tmp_path, dealer=True, timeouts=times, lanes=3)

    def file(name: str) -> Path:
        path = tmp_path / f"{name}.toml"
        path.write_text(f'{config.path.read_text()}[me]\nidentity = "{name}"\n')
        return path

    return file
