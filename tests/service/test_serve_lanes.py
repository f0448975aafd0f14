"""A service of three organizations with two lanes, as processes. One start serves these tests, in their order."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from securemodel.edge.client import Result
from securemodel.service import admin
from tests.service.engines import network, write_service
from tests.service.processes import Running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PARTIES = ("bank", "shop", "clinic")
ROWS = np.linspace(-1.9, 1.9, 12).reshape(3, 4)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("lanes")
    made = Running(folder, write_service(folder, parties=PARTIES, lanes=2))
    with made.opened:
        made.start("dealer", *PARTIES)
        made.wait(lambda: len(up(made)) == 6)
        yield made


def lanes(running: Running) -> dict[tuple[str, int], dict]:
    """Of each party, by number."""
    found = {}
    for name in PARTIES:
        *_, last = admin.ask(running.folder / "roles" / name / "data", "status")
        found |= {(name, lane["lane"]): lane for lane in last["done"]["lanes"]}
    return found


def up(running: Running) -> list[tuple[str, int]]:
    """The lanes that are ready, of the parties that can be asked."""
    try:
        return [key for key, lane in lanes(running).items() if lane["state"] == "ready"]
    except admin.ConfigError:
        return []


def asked(running: Running, times: int) -> list[Result]:
    """Answers to so many requests, of four clients at a time; each is what plain torch gives."""

    def ask(_: int) -> Result:
        with running.client() as client:
            (result,) = client.results("small", ROWS, timeout=60)
        return result

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(ask, range(times)))
    with torch.no_grad():
        expected = network(1)(torch.from_numpy(ROWS).float()).numpy()
    for result in results:
        (scores,) = result.outputs.values()
        assert np.abs(scores - expected).max() < 0.001
    return results


def sessions(results: list[Result]) -> set[str]:
    return {result.run.partition(":")[0] for result in results}


def test_three_parties_answer_and_both_lanes_work(running: Running) -> None:
    results = asked(running, 24)
    assert len(sessions(results)) == 2 and len({(result.run, result.row) for result in results}) == 24


def test_a_lane_that_dies_leaves_the_work_to_the_other_and_comes_back(running: Running) -> None:
    before = lanes(running), sessions(asked(running, 24))
    os.kill(before[0]["clinic", 1]["pid"], signal.SIGKILL)
    asked(running, 8)
    running.wait(lambda: len(up(running)) == 6)
    after = lanes(running), sessions(asked(running, 24))
    assert {key for key, lane in after[0].items() if lane["starts"] > 1} == {("clinic", 1)}
    assert len(before[1] & after[1]) == 1 and len(after[1]) == 2, "the other lane kept its session"
