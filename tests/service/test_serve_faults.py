"""A service whose processes are killed, stopped and starved while clients ask: checked from the clients' own logs and
all journals. One start serves these tests, in the order in which they stand; the last ones end it.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import sqlite3
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from protocols.channel.testing import free_addresses
from securemodel.edge import wire
from securemodel.service import admin
from tests.service.clients import Asked, Clients, Problem, holds_any, share_of
from tests.service.engines import network, write_service
from tests.service.processes import Running

pytestmark = pytest.mark.timeout(1200)
PARTIES = ("bank", "shop")
X = np.array([[0.5, -1.25, 1.75, 0.125]])
UNSURE = {"peer_down", "draining", "share_missing", "deadline", "result_lost", "gone", "queue_full"}
"""What a party may say to a request that is right, while roles are killed."""
ROLES = ("dealer", "engine of bank", "engine of shop", "bank", "shop")
"""The bank leads. Its engine is a process beside its front."""


@dataclass
class Service(Running):
    """All roles as processes, and clients who keep a log of what was said. `other_key` is another client's."""

    clients: Clients | None = None
    other_key: str = ""
    metrics: dict[str, str] | None = None

    def status(self, name: str) -> dict:
        *_, last = admin.ask(self.folder / "roles" / name / "data", "status")
        return last["done"]

    def engine(self, name: str) -> int:
        return self.status(name)["lanes"][-1]["pid"]

    def rss(self, name: str) -> dict[str, int]:
        """Resident bytes of a party's processes."""
        return {who: _rss(pid) for who, pid in (("front", self.processes[name].pid), ("engine", self.engine(name)))}

    def end(self, role: str) -> None:
        """kill -9; a role whose process nothing starts again is started again."""
        if role.startswith("engine"):
            os.kill(self.engine(role.rpartition(" ")[2]), signal.SIGKILL)
            return
        self.kill(role)
        self.start(role)

    def metric(self, name: str, what: str, label: str = "") -> float:
        """A count of a party, added up over its labels, or over those that have this one."""
        with urllib.request.urlopen(f"http://{self.metrics[name]}/metrics", timeout=60) as answer:
            found = re.findall(rf"^{what}(?:\{{.*{label}.*\}})? (\S+)$", answer.read().decode(), re.MULTILINE)
        return sum(map(float, found))

    def answers(self) -> bool:
        """Whether a client gets a result."""
        return self.ready() and self.clients.ask(X).codes == {"ok"}

    def journal(self, name: str) -> Path:
        return self.folder / "roles" / name / "data" / "journal.db"


def _rss(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024


@contextmanager
def started(folder: Path) -> Iterator[Service]:
    """A service with keys and counts on ports of their own, and with clients."""
    made = Service(folder, write_service(folder, keys="true", rows_per_day=1_000_000))
    made.metrics = dict(zip(PARTIES, free_addresses(2), strict=True))
    for name, path in made.roles.services.items():
        text = path.read_text().replace("share_wait_s = 0.5", "share_wait_s = 3.0").replace("[1, 4]", "[1, 8]")
        path.write_text(text.replace("[me]\n", f'[me]\nmetrics = "{made.metrics[name]}"\n'))
    with made.opened:
        made.start("dealer", *PARTIES)
        made.key, made.other_key = made.new_key("tests"), made.new_key("others")
        made.wait(made.ready)
        made.clients = Clients(made.get("bank", "/service.json")[1], made.key)
        yield made
        made.clients.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with started(tmp_path_factory.mktemp("faults")) as made:
        yield made


def plain(rows: np.ndarray, seed: int = 1) -> np.ndarray:
    with torch.no_grad():
        return network(seed)(torch.from_numpy(rows).float()).numpy()


def check_log(log: list[Asked], seeds: tuple[int, ...] = (1,)) -> None:
    """Everybody got a word from every party; results are right; no run has two requests in one row, no id two results."""
    taken: dict[tuple[str, int], str] = {}
    batches: dict[str, int] = {}
    results: dict[tuple[str, str], wire.Answer] = {}
    places: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for asked in log:
        for party, word in asked.said.items():
            if isinstance(word, Problem):
                continue
            places[asked.id].add((word.run, word.row))
            assert batches.setdefault(word.run, word.batch) == word.batch
            for row in range(word.row, word.row + len(asked.rows)):
                assert taken.setdefault((word.run, row), asked.id) == asked.id, "a row of a run has two requests"
            before = results.setdefault((asked.id, party), word)
            assert (before.run, before.row) == (word.run, word.row)
            assert (share_of(before) == share_of(word)).all(), "an id has two results"
        if asked.codes == {"ok"}:
            scores = asked.scores()
            assert min(np.abs(scores - plain(asked.rows, seed)).max() for seed in seeds) < 0.001
    assert all(len(where) == 1 for where in places.values()), "an id was answered in two runs"


def check_journals(service: Service, log: list[Asked]) -> None:
    """What parties wrote agrees with each other, and with what clients were told. All parties have ended."""
    written, spent = {}, {}
    for name in PARTIES:
        database = sqlite3.connect(service.journal(name))
        rows = database.execute("SELECT id, rows, state, run FROM requests").fetchall()
        written[name] = {id.hex(): (count, state, run) for id, count, state, run in rows}
        [[spent[name]]] = database.execute("SELECT coalesce(sum(rows), 0) FROM spent").fetchall()
        database.close()
    answered = {asked.id: asked for asked in log if asked.answers}
    for id, asked in answered.items():
        for word in asked.answers:
            assert all(written[name][id][2] == word.run for name in PARTIES), (
                id,
                written["bank"].get(id),
                written["shop"].get(id),
            )
    charged = {
        name: {id: rows for id, (rows, state, _) in those.items() if state != "result_lost"}
        for name, those in written.items()
    }
    different = charged["bank"].keys() ^ charged["shop"].keys()
    assert not different, [(id, written["bank"].get(id), written["shop"].get(id)) for id in different]
    for name in PARTIES:
        assert spent[name] == sum(charged[name].values()), (
            "rows are charged that were not computed, or are not given back"
        )
    runs: dict[str, dict[str, set[str]]] = {name: defaultdict(set) for name in PARTIES}
    for name, those in written.items():
        for id, (_, state, run) in those.items():
            if state == "released":
                runs[name][run].add(id)
    for run in runs["bank"].keys() & runs["shop"].keys():
        assert runs["bank"][run] == runs["shop"][run], "a run has other requests at another party"


def wait_until_idle(service: Service) -> None:
    """Nothing is left waiting, at any party."""
    service.wait(lambda: all(not any(service.status(name)["waiting"].values()) for name in PARTIES))


def test_one_share_alone_is_refused_with_the_name_of_who_has_none(service: Service) -> None:
    clients = service.clients
    for missing, sent in (("shop", "bank"), ("bank", "shop")):
        lonely = clients.request(X, deadline_ms=4000)
        with clients.loading(4):
            clients.send(lonely, sent)
        assert lonely.codes == {"share_missing"}
        assert lonely.said[sent].members["parties"] == [missing]
    assert {code for asked in clients.log if len(asked.said) == 2 for code in asked.codes} == {"ok"}
    check_log(clients.log)


def test_bodies_that_do_not_belong_together_are_refused_and_the_others_answered(service: Service) -> None:
    clients = service.clients
    one, two = clients.request(X), clients.request(-X)
    mixed = Asked(
        one.id,
        X,
        {"bank": one.messages["bank"], "shop": clients.request(-X, id=bytes.fromhex(one.id)).messages["shop"]},
    )
    with clients.loading(4):
        assert clients.send(mixed).codes == {"commit_mismatch"}
    assert clients.send(two).codes == {"ok"}
    assert clients.again(one).codes <= {"id_reused", "commit_mismatch"}


def test_ids_that_come_again(service: Service) -> None:
    clients = service.clients
    asked = clients.request(X)
    twice = [clients._posts.submit(clients.send, Asked(asked.id, X, asked.messages)) for _ in range(4)]
    first = clients.send(asked)
    assert all(one.result().codes == {"ok"} for one in twice)
    assert clients.again(first).codes == {"ok"}
    assert clients.again(first, key=service.other_key).codes == {"id_reused"}
    assert clients.ask(X, id=bytes.fromhex(asked.id)).codes == {"id_reused"}, "new shares under an old id"
    check_log(clients.log[-20:-1])


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clients_clock_that_is_off_is_told_the_time(service: Service, hours: int) -> None:
    now = int(time.time() * 1000)
    asked = service.clients.ask(X, now_ms=now + hours * 3_600_000)
    assert asked.codes == {"clock_skew"}
    for problem in asked.said.values():
        assert abs(problem.members["server_time"] - now) < 60_000
        assert service.clients.ask(X, now_ms=problem.members["server_time"]).codes == {"ok"}


def test_a_dealer_that_stands_still_is_refused_by_name_and_in_time(service: Service) -> None:
    dealer = service.processes["dealer"]
    dealer.send_signal(signal.SIGSTOP)
    try:
        until = time.monotonic() + 120
        asked = service.clients.ask(X, deadline_ms=3000)
        while asked.codes == {"ok"}:  # until what was dealt ahead is used up
            assert time.monotonic() < until
            asked = service.clients.ask(np.tile(X, (8, 1)), deadline_ms=3000)
        assert asked.codes == {"no_preprocessing"}, asked.said
        assert {tuple(word.members["parties"]) for word in asked.said.values()} == {("shop",)}
        assert asked.seconds < 30
        for name in PARTIES:
            service.wait(lambda name=name: service.get(name, "/v2/health/ready")[1].get("code") == "no_preprocessing")
        assert service.metric("shop", "runs_ahead", 'size="8"') == 0
    finally:
        dealer.send_signal(signal.SIGCONT)
    service.wait(service.answers)
    service.wait(lambda: service.metric("shop", "runs_ahead", 'size="8"') > 0)


def test_a_dealer_that_is_gone_is_noticed_by_parties_that_do_nothing(service: Service) -> None:
    service.kill("dealer")
    for name in PARTIES:
        service.wait(lambda name=name: service.get(name, "/v2/health/ready")[0] == 503)
    assert any("dealer" in lane["reason"] for name in PARTIES for lane in service.status(name)["lanes"])
    service.start("dealer")
    service.wait(service.answers)


@pytest.mark.parametrize("name", PARTIES)
def test_a_full_disk_is_refused_by_name_and_recovers_without_hands(service: Service, name: str) -> None:
    codes: set[str] = set()

    def refused() -> bool:
        codes.update(service.clients.ask(X).codes)
        return "peer_down" in codes

    pid = service.processes[name].pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))  # no file can grow: neither the journal nor the log
    try:
        service.wait(refused)
        assert codes <= {"ok", "result_lost", "peer_down"}, codes
        assert service.get(name, "/v2/health/ready")[0] == 503
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    service.wait(service.answers)


@pytest.mark.slow
def test_roles_that_are_killed_under_load_come_back(service: Service) -> None:
    clients = service.clients
    begun = len(clients.log)
    with clients.loading(8):
        for role in ROLES:
            time.sleep(random.uniform(0.1, 0.6))
            service.end(role)
            service.wait(service.answers)
    log = clients.log[begun:]
    assert {code for asked in log for code in asked.codes} <= UNSURE | {"ok"}
    for asked in log[-40:]:
        assert clients.again(asked).codes <= UNSURE | {"ok"}
    check_log(clients.log)
    wait_until_idle(service)


def test_a_party_told_to_end_under_load_finishes_what_it_took(service: Service) -> None:
    clients = service.clients
    begun = len(clients.log)
    with clients.loading(8):
        service.wait(lambda: len(clients.log) > begun + 16)
        process = service.processes["shop"]
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        service.start("shop")
        service.wait(service.answers)
    assert process.returncode == 0
    codes = {code for asked in clients.log[begun:] for code in asked.codes}
    assert codes <= {"ok", "draining", "peer_down", "share_missing"}, codes
    check_log(clients.log)


def test_nothing_secret_is_in_logs_counts_and_folders_and_the_journals_agree(service: Service) -> None:
    clients = service.clients
    wait_until_idle(service)
    assert service.metric("bank", "queue_seconds_count") > 0
    shown = b""
    for name in PARTIES:
        with urllib.request.urlopen(f"http://{service.metrics[name]}/metrics", timeout=60) as answer:
            shown += answer.read()
        shown += json.dumps([service.status(name), service.get(name, "/service.json")]).encode()
    time.sleep(2)  # what was released is written within a second
    for name in PARTIES:
        service.processes[name].send_signal(signal.SIGTERM)
    for name in PARTIES:
        service.processes[name].wait(120)
    check_journals(service, clients.log)
    secrets = clients.secrets() | {service.other_key.encode()}
    assert holds_any(b"..." + min(secrets) + b"...", secrets)
    assert not holds_any(shown, secrets)
    files = [service.log(name) for name in service.processes]
    files += [
        path for name in PARTIES for path in (service.folder / "roles" / name / "data").iterdir() if path.is_file()
    ]
    for path in files:
        found = holds_any(path.read_bytes(), secrets)
        assert not found, f"{path} holds {found!r}"


def test_a_damaged_journal_is_named_at_the_start(service: Service) -> None:
    service.processes["shop"].terminate()  # unless a test before has ended it
    service.processes["shop"].wait(120)
    path = service.journal("shop")
    path.write_bytes(b"no database at all" * 1000)
    before = len(service.log("shop").read_text())
    service.start("shop")
    assert service.processes["shop"].wait(120) == 1
    told = service.log("shop").read_text()[before:]
    assert "the journal of the service cannot be used" in told and str(path) in told and "Traceback" not in told
