"""A service under load for minutes: kills at random moments, a party that is told to end, a new version, and a soak.

Each test starts all roles. KILLS and SOAK_MINUTES in the environment make them longer.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from pathlib import Path

import psutil
import pytest

from tests.service.engines import network, save
from tests.service.test_serve_faults import (
    PARTIES,
    ROLES,
    UNSURE,
    Service,
    check_journals,
    check_log,
    started,
    wait_until_idle,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
KILLS = int(os.environ.get("KILLS", "20"))
SOAK_S = 60 * float(os.environ.get("SOAK_MINUTES", "2"))
CLIENTS = 32
BYTES_A_REQUEST = 2048
"""What a front may keep of a request for the ten minutes in which it may be asked for again."""


def end_and_check(service: Service) -> None:
    """Ends both parties in good order; then their journals agree."""
    wait_until_idle(service)
    time.sleep(2)  # what was released is written within a second
    for name in PARTIES:
        service.processes[name].send_signal(signal.SIGTERM)
    assert [service.processes[name].wait(120) for name in PARTIES] == [0, 0]
    check_journals(service, service.clients.log)


def resident(service: Service) -> dict[str, int]:
    """Resident bytes of each role's process."""
    pids = {"dealer": service.processes["dealer"].pid}
    for name in PARTIES:
        pids |= {name: service.processes[name].pid, f"engine of {name}": service.engine(name)}
    return {role: psutil.Process(pid).memory_info().rss for role, pid in pids.items()}


def codes(service: Service) -> set[str]:
    return {code for asked in service.clients.log for code in asked.codes}


def test_kills_of_each_role_at_random_moments(tmp_path: Path) -> None:
    roles = [ROLES[number % len(ROLES)] for number in range(KILLS)]
    random.shuffle(roles)
    back: dict[str, list[float]] = {role: [] for role in ROLES}
    with started(tmp_path) as service:
        with service.clients.loading(CLIENTS):
            for role in roles:
                time.sleep(random.uniform(0.0, 2.0))
                began = time.monotonic()
                service.end(role)
                service.wait(service.answers)
                back[role].append(time.monotonic() - began)
        log = service.clients.log
        seconds = {role: f"{statistics.median(all):.1f}" for role, all in back.items() if all}
        print(f"{len(log)} requests, {sum(a.codes == {'ok'} for a in log)} answered; seconds until answers: {seconds}")
        assert codes(service) <= UNSURE | {"ok"}
        for asked in log[-200:]:
            service.clients.again(asked)
        check_log(log)
        end_and_check(service)


@pytest.mark.parametrize("name", PARTIES)
def test_a_party_told_to_end_under_load_loses_nothing(tmp_path: Path, name: str) -> None:
    with started(tmp_path) as service:
        with service.clients.loading(CLIENTS):
            time.sleep(2)
            process = service.processes[name]
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
            service.start(name)
            service.wait(service.answers)
        assert codes(service) <= {"ok", "draining", "peer_down", "share_missing"}
        check_log(service.clients.log)
        end_and_check(service)


def test_a_new_version_under_load_fails_no_request(tmp_path: Path) -> None:
    with started(tmp_path) as service:
        new = save(network(2), tmp_path / "new.safetensors")
        with service.clients.loading(CLIENTS):
            published = service.call("publish", service.service("bank"), "small", "--weights", new)
            assert published.exit_code == 0, published.output
            time.sleep(3)
        print(f"{len(service.clients.log)} requests")
        assert codes(service) == {"ok"}
        check_log(service.clients.log, seeds=(1, 2))
        assert {word.version for asked in service.clients.log for word in asked.answers} == {"1", "2"}
        end_and_check(service)


def test_a_soak_costs_no_memory_and_loses_nothing(tmp_path: Path) -> None:
    with started(tmp_path) as service:
        clients = service.clients

        def load(seconds: float) -> float:
            """p95 in seconds of answers, of eight clients who wait between their requests."""
            begun = len(clients.log)
            with clients.loading(8, lambda: random.expovariate(1 / 0.05)):
                time.sleep(seconds)
            return statistics.quantiles([asked.seconds for asked in clients.log[begun:]], n=20)[18]

        load(SOAK_S / 10)
        before, asked = resident(service), len(clients.log)
        slowest = [load(SOAK_S / 5) for _ in range(5)]
        after, kept = resident(service), min(1.0, 600 / SOAK_S) * (len(clients.log) - asked)
        for role, rss in before.items():
            print(f"{role}: {rss >> 20} MiB -> {after[role] >> 20} MiB")
        print(f"{len(clients.log)} requests, p95 in ms: {[round(1000 * one) for one in slowest]}")
        assert codes(service) == {"ok"}
        for role, rss in before.items():
            remembered = BYTES_A_REQUEST * kept if role in PARTIES else 0
            assert after[role] < 1.05 * rss + (8 << 20) + remembered, (role, before, after)
        check_log(clients.log)
        end_and_check(service)
