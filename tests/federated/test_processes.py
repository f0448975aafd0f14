"""Aggregators as processes, one of which is killed while it computes a round."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from protocols.channel.testing import loopback_parties
from protocols.identity import Timeouts
from securemodel.edge.federation import Federation
from securemodel.ledger import read_ledger

NAMES = ("north", "south")
SCRIPT = """
    import os, signal

    import numpy as np

    from securemodel import federated
    from securemodel.edge.rounds import Layout
    from securemodel.federated.journal import Journal

    ROUNDS = 1
    start = lambda: {"w": np.zeros(3)}
    task = federated.Task("t", federated.mean(), Layout.of(start()), slots=2, limit=8.0, aggregators=("north", "south"))

    if "DIES" in os.environ:
        Journal.computed = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts an aggregator as the command does it; what still runs at the end is ended."""
    roster, _ = loopback_parties(NAMES, tmp_path, timeouts=Timeouts(60, 60))
    (tmp_path / "rounds.py").write_text(textwrap.dedent(SCRIPT))
    processes: list[subprocess.Popen[bytes]] = []

    def start(name: str, **variables: str) -> subprocess.Popen[bytes]:
        config = tmp_path / f"{name}.toml"
        config.write_text(f'{roster.path.read_text()}[me]\nidentity = "{name}"\n')
        words = ["--me", name, "--config", config, "--data", tmp_path / f"data-{name}", "--listen", "127.0.0.1:0",
                 "--ledger", tmp_path / f"{name}.ledger", "--linger", "60"]  # fmt: skip
        command = [sys.executable, "-m", "securemodel.cli", "federate", tmp_path / "rounds.py", *words]
        with open(tmp_path / f"{name}.log", "ab") as log:
            environment = os.environ | variables
            processes.append(subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def entry(folder: Path) -> dict[str, str]:
    """What an aggregator says of itself, once it listens."""
    end, path = time.monotonic() + 120, folder / "aggregator.json"
    while not path.exists():
        assert time.monotonic() < end, "the aggregator does not listen"
        time.sleep(0.05)
    found: dict[str, str] = json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_an_aggregator_that_is_killed_mid_round_goes_on_where_it_was(
    started: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """It dies when it has its result and before it says so: the round is computed again of the uploads that are there."""
    started("north")
    killed = started("south", DIES="1")
    folders = [tmp_path / f"data-{name}" for name in NAMES]
    file = {"securemodel_federation": 1, "aggregators": [entry(folder) for folder in folders]}
    with Federation(file, client="a") as one, Federation(file, client="b") as other:
        card = one.card(timeout=120)
        uploads = one.share(card, {"w": np.array([1.0, 2.0, -3.0])})
        other.share(card, {"w": np.array([2.0, 0.0, 1.0])})  # all slots are taken: the round ends
    assert killed.wait(120) == -signal.SIGKILL
    (folders[1] / "aggregator.json").unlink()
    started("south")
    again = {**file, "aggregators": [file["aggregators"][0], entry(folders[1])]}
    with Federation(again, client="a") as one:
        result = one.result(uploads, timeout=120)
    assert result["w"].tolist() == pytest.approx([1.5, 1.0, -1.0], abs=2**-16)
    for name in NAMES:
        assert [line.fields["epoch"] for line in read_ledger(tmp_path / f"{name}.ledger").lines] == [2]
