"""A service as its organizations run it: `securemodel serve` at each party, `securemodel dealer`, and commands beside it.

One start serves all of these tests, or those of them that one worker runs, in the order in which they stand.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from securemodel import edge
from securemodel.edge.errors import EdgeError, Refused
from tests.service.engines import network, save, write_service
from tests.service.processes import Running

pytestmark = pytest.mark.timeout(900)
ROWS = np.linspace(-1.9, 1.9, 12).reshape(3, 4)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serve")
    made = Running(folder, write_service(folder, keys="true", rows_per_day=50_000))
    with made.opened:
        made.start("dealer", "bank", "shop")
        made.key = made.new_key("tests")
        made.wait(lambda: made.get("bank", "/v2/health/live")[0] == 200)
        status, problem = made.get("bank", "/service.json")
        assert (status, problem["what"]) == (503, "party 'bank' is starting"), (
            "it is reached before its engine is there"
        )
        made.wait(made.ready)
        yield made


def plain(seed: int, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(seed)(torch.from_numpy(rows).float()).numpy()


def is_right(running: Running, rows: np.ndarray = ROWS, expected: np.ndarray | None = None, **options: object) -> bool:
    """Whether a client's answers are those of plain torch with the current weights."""
    found = running.client(**options).infer("small", rows, timeout=60)
    return is_of(running.seed, rows if expected is None else expected, found)


def is_of(seed: int, rows: np.ndarray, scores: np.ndarray) -> bool:
    return bool(np.abs(scores - plain(seed, rows)).max() < 0.001)


def test_answers_are_those_of_plain_torch(running: Running) -> None:
    assert is_right(running) and is_right(running, np.tile(ROWS, (3, 1)))
    assert running.get("bank", "/service.json") == running.get("shop", "/service.json")


def test_one_party_passes_on_what_is_sealed_to_the_other(running: Running) -> None:
    assert is_right(running, transport="relay")


def test_inputs_beyond_the_clamp_are_clamped(running: Running) -> None:
    assert is_right(running, ROWS * 1000, (ROWS * 1000).clip(-2, 2))


def test_keys_are_asked_for_at_every_party(running: Running) -> None:
    made = running.call("key", "new", running.service("bank"), "narrow", "--rows-per-day", 2)
    key, sha256 = (re.search(rf"^{name} +(\S+)", made.output, re.MULTILINE)[1] for name in ("key", "sha256"))
    client = edge.Client(running.get("bank", "/service.json")[1], key=key)
    with pytest.raises(EdgeError) as caught:
        client.infer("small", ROWS[:1], timeout=20)
    assert getattr(caught.value, "code", "") in ("key", "share_missing")
    assert running.call("key", "add", running.service("shop"), sha256, "narrow", "--rows-per-day", 2).exit_code == 0
    assert is_of(running.seed, ROWS[:2], client.infer("small", ROWS[:2], timeout=60))
    with pytest.raises(Refused) as caught:
        client.infer("small", ROWS[:1], timeout=20)
    assert caught.value.code == "budget"
    listed = running.call("key", "list", running.service("shop")).output
    assert sha256[:16] in listed and "narrow" in listed and key not in listed
    assert running.call("key", "revoke", running.service("shop"), sha256[:16]).exit_code == 0
    with pytest.raises(EdgeError) as caught:
        client.infer("small", ROWS[:1], timeout=20)
    assert getattr(caught.value, "code", "") in ("key", "budget", "share_missing")


def test_status_shows_lanes_and_links(running: Running) -> None:
    for name, other in (("bank", "shop"), ("shop", "bank")):
        shown = running.call("status", running.service(name))
        assert shown.exit_code == 0, shown.output
        assert f"{other} up" in shown.output and "ready" in shown.output and "current" in shown.output


@dataclass
class Load:
    """What a client got that asks without a pause."""

    answers: list[np.ndarray] = field(default_factory=list)
    errors: list[EdgeError] = field(default_factory=list)


@contextmanager
def loaded(client: edge.Client) -> Iterator[Load]:
    """Meanwhile a client asks, in a thread."""
    load, stop = Load(), threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                load.answers.append(client.infer("small", ROWS, timeout=60))
            except EdgeError as error:
                load.errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield load
    finally:
        stop.set()
        thread.join()


def test_a_version_is_published_under_load_and_no_request_fails(running: Running) -> None:
    new = save(network(2), running.folder / "new.safetensors")
    with loaded(running.client()) as load:
        published = running.call("publish", running.service("bank"), "small", "--weights", new)
        assert published.exit_code == 0, published.output + running.log("bank").read_text()
        assert "version 2 of small is current" in published.output
        count = len(load.answers)
        running.wait(lambda: len(load.answers) > count + 3)
    assert not load.errors, load.errors
    of_two = [is_of(2, ROWS, answer) for answer in load.answers]
    running.seed = 2
    assert all(two or is_of(1, ROWS, answer) for two, answer in zip(of_two, load.answers, strict=True))
    assert of_two == sorted(of_two) and not of_two[0] and of_two[-1], "first the old version, then the new one"
    running.wait(lambda: all(running.get(name, "/service.json")[1]["models"][0]["versions"] == [2] for name in running.roles.services))  # fmt: skip


@pytest.mark.slow
def test_weights_that_cannot_be_loaded_change_nothing(running: Running) -> None:
    wrong = save(torch.nn.Linear(2, 2), running.folder / "wrong.safetensors")
    published = running.call("publish", running.service("bank"), "small", "--weights", wrong)
    assert published.exit_code == 1 and "was not published" in published.output, published.output
    assert is_right(running)
    follower = running.call("publish", running.service("bank"), "other", "--weights", wrong)
    assert follower.exit_code == 1 and "there is no model 'other'" in follower.output


def test_a_front_that_is_killed_comes_back(running: Running) -> None:
    running.kill("shop")
    status, problem = 0, {}

    def down() -> bool:
        nonlocal status, problem
        status, problem = running.get("bank", "/v2/health/ready")
        return status == 503

    running.wait(down)
    assert problem["code"] == "peer_down"
    running.start("shop")
    running.wait(running.ready)
    assert is_right(running)


def test_the_service_outlives_the_owners_files(running: Running) -> None:
    running.kill("bank", "shop", "dealer")
    (running.folder / "small.safetensors").unlink()
    for file in running.folder.rglob("*.weights"):
        file.unlink()
    running.start("bank", "shop", "dealer")
    running.wait(running.ready)
    assert "stored" in running.call("status", running.service("bank")).output
    assert is_right(running)


def test_nothing_secret_is_in_logs_and_folders(running: Running) -> None:
    weight = network(running.seed)[0].weight.detach().numpy()
    encoded = np.rint(weight * 65536).astype(np.int64)
    owners = (".safetensors", ".weights")
    for file in [path for path in running.folder.rglob("*") if path.is_file() and path.suffix not in owners]:
        data = file.read_bytes()
        assert running.key.encode() not in data, file
        assert weight[0].tobytes() not in data and encoded[0].tobytes() not in data, file


def test_drain_finishes_what_waits_and_then_ends(running: Running) -> None:
    with loaded(running.client()) as load:
        running.wait(lambda: len(load.answers) > 3)
        drained = running.call("drain", running.service("shop"))
        assert drained.exit_code == 0, drained.output
        running.processes["shop"].wait(60)
    assert running.processes["shop"].returncode == 0
    assert all(is_of(running.seed, ROWS, answer) for answer in load.answers)
    codes = {getattr(error, "code", "down") for error in load.errors}
    assert codes <= {"draining", "down", "peer_down", "share_missing"}, codes
    gone = running.call("drain", running.service("shop"))
    assert gone.exit_code == 1 and "not being served" in gone.output
    running.processes["bank"].send_signal(signal.SIGTERM)
    running.processes["bank"].wait(90)
    assert running.processes["bank"].returncode == 0
