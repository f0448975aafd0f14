"""`python -m benchmarks.slow_link`: runs over slow links, beside what the plan says. Needs no privileges.

Two parties and the dealer are processes of this machine, joined by TLS; between each two of them are relays that hold
back what they carry: every pair has a link of its own, with so many bits a second each way and so long a way. Measured
are one run whose preprocessing is there, which the plan calls its seconds, and runs one after the other, which take at
least the longer of a run and of preparing one.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import click
import torch

import securemodel
from benchmarks.cases import BY_NAME, PARTIES
from benchmarks.measure import compiled, machine
from benchmarks.table import variant
from protocols import identity, kernels
from protocols.channel.testing import free_addresses
from protocols.identity import DEALER
from securemodel import Network
from securemodel.cli.base import FAILED, Command, print_error
from securemodel.engines.masked.dealer import serve

CASES = ("lenet5_b32", "encoder_layer", "minilm6")
LINKS = ("20,100", "5,1000", "0.5,10000")
_ROLES = (*PARTIES, DEALER)
_CHUNK, _LEAST = 1 << 18, 1 << 14  # bytes that are held back together
_ON_THE_WAY = 4 << 20  # what a link takes in beyond what its speed and length hold
_WAIT_S = 0.001
_FAST = Network(100e9, 0.0)  # for what is not measured


@dataclass
class Way:
    """One direction of one connection: what came in leaves when its last byte would have arrived."""

    source: socket.socket
    target: socket.socket
    ended: bool = False
    _parts: deque[tuple[float, memoryview]] = field(default_factory=deque)
    _held: int = 0
    _free_at: float = 0.0

    def take(self, link: Network) -> None:
        """Reads what is there, and says when it leaves."""
        chunk = min(_CHUNK, max(_LEAST, int(link.bandwidth * _WAIT_S / 8)))
        try:
            data = self.source.recv(chunk)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.ended = not data
        self._free_at = max(self._free_at, time.perf_counter()) + 8 * len(data) / link.bandwidth
        self._parts.append((self._free_at + link.latency, memoryview(data)))
        self._held += len(data)

    def wants(self, link: Network) -> bool:
        """Whether it takes in more now."""
        return not self.ended and self._held < _ON_THE_WAY + link.bandwidth * link.latency / 8

    def due_at(self) -> float:
        """When the next part leaves."""
        return self._parts[0][0] if self._parts else float("inf")

    def give(self) -> bool:
        """Sends what is due; whether the other end takes no more now. Raises OSError where it is gone."""
        while self._parts and self._parts[0][0] <= time.perf_counter():
            at, part = self._parts[0]
            if not len(part):
                self._parts.popleft()
                self.target.shutdown(socket.SHUT_WR)
                continue
            try:
                sent = self.target.send(part)
            except BlockingIOError:
                return True
            self._held -= sent
            self._parts[0] = (at, part[sent:])
            if sent == len(part):
                self._parts.popleft()
        return False


class SlowLinks(threading.Thread):
    """Relays from ports of this machine to others, over links whose speed can be changed while they carry nothing."""

    def __init__(self, link: Network) -> None:
        super().__init__(daemon=True, name="slow-links")
        self.link = link
        self._ends: dict[socket.socket, tuple[str, int]] = {}
        self._ways: list[Way] = []
        self._over = threading.Event()

    def add(self, target: tuple[str, int]) -> tuple[str, int]:
        """An address from which connections go on to another, slowly. Before `start`."""
        listening = socket.create_server(("127.0.0.1", 0))
        listening.setblocking(False)
        self._ends[listening] = target
        return listening.getsockname()

    def run(self) -> None:
        """Until `end`."""
        full: set[int] = set()
        while not self._over.is_set():
            ways, now = self._ways, time.perf_counter()
            reading = {way.source: way for way in ways if way.wants(self.link)}
            writing = {way.target: way for way in ways if id(way) in full}
            due = min((way.due_at() for way in ways if id(way) not in full), default=now + 0.05)
            timeout_s = min(max(due - now, 0.0), 0.05)
            came, room, _ = select.select([*reading, *self._ends], list(writing), [], timeout_s)
            for sock in came:
                if sock in self._ends:
                    self._connect(sock)
                else:
                    reading[sock].take(self.link)
            full -= {id(writing[sock]) for sock in room}
            for way in list(ways):
                if id(way) not in full:
                    self._give(way, full)

    def _give(self, way: Way, full: set[int]) -> None:
        try:
            if way.give():
                full.add(id(way))
        except OSError:
            for sock in (way.source, way.target):
                sock.close()
            self._ways = [other for other in self._ways if other.source.fileno() >= 0 and other.target.fileno() >= 0]

    def _connect(self, listening: socket.socket) -> None:
        near, _ = listening.accept()
        try:
            far = socket.create_connection(self._ends[listening], 5.0)
        except OSError:
            near.close()
            return
        for sock in (near, far):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ways = [*self._ways, Way(near, far), Way(far, near)]

    def end(self) -> None:
        """Stops, and closes all connections."""
        self._over.set()
        if self.is_alive():
            self.join()
        for sock in {*self._ends, *(end for way in self._ways for end in (way.source, way.target))}:
            sock.close()


def write_configuration(folder: Path, links: SlowLinks) -> None:
    """Identities, and a parties file for each role, in which the others are at the near ends of relays."""
    own = dict(zip(_ROLES, free_addresses(len(_ROLES)), strict=True))
    pins = {role: identity.create(role, folder / role).certificate_path.name for role in _ROLES}
    for role in _ROLES:
        lines = []
        for name in _ROLES:
            host, port = own[name].rsplit(":", 1)
            near = own[name] if name == role else "{}:{}".format(*links.add((host, int(port))))
            section = DEALER if name == DEALER else f"parties.{name}"
            lines += [f"[{section}]", f'address = "{near}"', f'certificate = "{name}/{pins[name]}"']
        lines += ["[timeouts]", "connect_s = 900", "receive_s = 600", "[me]", f'identity = "{role}"']
        (folder / f"{role}.toml").write_text("\n".join(lines) + "\n")


def _meet(folder: Path, role: str, name: str) -> None:
    """Waits until the other party is here, too."""
    (folder / f"{name}-{role}").touch()
    while not all((folder / f"{name}-{party}").exists() for party in PARTIES):
        time.sleep(_WAIT_S)


def take_part(folder: Path, case: str, role: str, runs: int, links: int) -> None:
    """One process. A party writes down when its runs began and ended: each alone over every link, then in a row."""
    torch.set_num_threads(1)
    config = identity.load_config(folder / f"{role}.toml")
    if role == DEALER:
        serve(config, identity.load(folder / role))
        return
    program, inputs = compiled(BY_NAME[case])
    given = [x if owner == role else None for x, owner in zip(inputs, program.header.inputs, strict=True)]
    for in_a_row in (False, True):
        with securemodel.connect(program, role, config, ledger=False, ahead=in_a_row) as session:
            session.load(program, program.model)
            session.run(*given)
            for number in range(in_a_row * links, (1 + in_a_row) * links):
                (folder / f"ready-{number}-{role}").touch()
                while not (folder / f"go-{number}").exists():
                    time.sleep(0.01)
                times = []
                for run in range(runs + 2 * in_a_row):
                    if not in_a_row:
                        session.walk.prepare_next()
                        while not session.walk.is_ready:
                            time.sleep(_WAIT_S)
                        _meet(folder, role, f"alone-{number}-{run}")
                    began = time.perf_counter()
                    session.run(*given)
                    times.append((began, time.perf_counter()))
                made = folder / f"made-{number}-{role}.new"
                made.write_text(json.dumps(times))
                made.rename(folder / f"made-{number}-{role}")


@dataclass(frozen=True)
class Measured:
    """Seconds of the fastest run alone, and of one of many in a row; and what the plan says of a run and its preparing."""

    case: str
    link: str
    alone: float
    stream: float
    planned: float
    preparing: float

    def line(self) -> str:
        """As a line of a table."""
        most = max(self.planned, self.preparing)
        shown = [f"{self.alone:.3f}", f"{self.planned:.3f}", f"{self.alone / self.planned:.2f}"]
        shown += [f"{self.stream:.3f}", f"{self.preparing:.3f}", f"{self.stream / most:.2f}"]
        return f"| {self.case} | {self.link} | {' | '.join(shown)} |"


HEAD = (
    "| case | link | run s | plan s | ratio | in a row s | preparing, plan s | ratio to the longer |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|"
)


def network(text: str) -> Network:
    """A network from "milliseconds one way,megabits a second"."""
    latency, bandwidth = map(float, text.split(","))
    return Network(bandwidth * 1e6, latency / 1e3, f"{latency:g} ms, {bandwidth:g} Mbit/s")


def measure(case: str, networks: Sequence[Network], runs: int):
    """Yields what was measured over each link. Raises RuntimeError when a process fails."""
    program, _ = compiled(BY_NAME[case])
    with tempfile.TemporaryDirectory() as name, ExitStack() as held:
        folder, links = Path(name), SlowLinks(_FAST)
        write_configuration(folder, links)
        links.start()
        held.callback(links.end)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        processes = []
        for role in _ROLES:
            words = [sys.executable, "-m", "benchmarks.slow_link", case, "--runs", str(runs)]
            words += ["--worker", name, role, str(len(networks))]
            processes.append(subprocess.Popen(words, env=environment))
            held.callback(processes[-1].wait)
            held.callback(processes[-1].kill)
        alone: list[float] = []
        for number, link in enumerate([*networks, *networks]):
            _wait(folder, f"ready-{number}", processes)
            links.link = link
            (folder / f"go-{number}").touch()
            _wait(folder, f"made-{number}", processes)
            links.link = _FAST
            made = [json.loads((folder / f"made-{number}-{party}").read_text()) for party in PARTIES]
            begun, ended = (
                [max(at) for at in zip(*times, strict=True)] for times in zip(*map(_apart, made), strict=True)
            )
            if number < len(networks):
                alone.append(min(end - begin for begin, end in zip(begun, ended, strict=True)))
                continue
            apart = [later - earlier for earlier, later in itertools.pairwise(ended[1:])]  # the first was ready before
            plan = program.plan(link)
            yield Measured(
                case,
                link.name,
                alone[number - len(networks)],
                statistics.mean(apart),
                plan.seconds,
                plan.preparing_seconds,
            )


def _apart(times: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """When runs began, and when they ended."""
    return [begin for begin, _ in times], [end for _, end in times]


def _wait(folder: Path, name: str, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    while not all((folder / f"{name}-{party}").exists() for party in PARTIES):
        if any(process.poll() for process in processes):
            raise RuntimeError("a process failed; its output is above")
        time.sleep(0.02)


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[CASE]...")
@click.option("--link", "links", multiple=True, default=LINKS, show_default=True, help="Milliseconds one way, Mbit/s.")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Runs alone, and as many in a row.")
@click.option("--worker", nargs=3, hidden=True)
def main(names: tuple[str, ...], links: tuple[str, ...], runs: int, worker: tuple[str, str, int] | None) -> None:
    """Measures CASEs of `python -m benchmarks` over slow links, beside their plans; ends with 1 if one failed."""
    names = names or CASES
    if unknown := [name for name in names if name not in BY_NAME]:
        raise click.UsageError(f"unknown case {', '.join(unknown)}")
    try:
        networks = [network(text) for text in links]
    except ValueError:
        raise click.UsageError("--link wants milliseconds and megabits a second, such as 20,100") from None
    if worker:
        folder, role, rounds = worker
        return take_part(Path(folder), names[0], role, runs, int(rounds))
    print(f"{machine()}, kernels {variant(kernels.info()['variant'])}\n{HEAD}", flush=True)
    failed = False
    for case in names:
        try:
            for found in measure(case, networks, runs):
                print(found.line(), flush=True)
        except RuntimeError as error:
            failed = True
            print_error(f"{case}: {error}")
    if failed:
        click.get_current_context().exit(FAILED)


if __name__ == "__main__":
    main()
