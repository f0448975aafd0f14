"""`python -m benchmarks.lanes`: rows a second of one lane and of several, each party in a network namespace of its own.

Packets between the parties and the dealer pass this process, which lets each of them wait: the round trip is what
`--round-trip` says. Making namespaces takes root and Linux. The model is LeNet-5, and each lane is a process at each party with one thread.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import torch

import securemodel
from benchmarks.cases import BY_NAME, PARTIES
from benchmarks.measure import compiled, machine
from protocols import identity
from protocols.identity import DEALER
from securemodel.engines.masked.dealer import serve

_ROLES = (*PARTIES, DEALER)
_NETWORK = "10.211.7"
_PORT = 7000
_TUNSETIFF, _TUN_WITHOUT_HEADER = 0x400454CA, 0x1001


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


class Wire(threading.Thread):
    """Carries IP packets between the roles' TUN devices, each so many seconds after it was sent."""

    def __init__(self, devices: Sequence[int], delay_s: float) -> None:
        super().__init__(daemon=True, name="wire")
        self._devices, self._delay_s, self._ended = list(devices), delay_s, threading.Event()

    def run(self) -> None:
        """Until `end`. Packets keep their order, as all wait equally long."""
        waiting: deque[tuple[float, int, bytes]] = deque()
        while not self._ended.is_set():
            timeout_s = max(0.0, waiting[0][0] - time.perf_counter()) if waiting else 0.1
            for device in select.select(self._devices, [], [], timeout_s)[0]:
                packet = os.read(device, 1 << 16)
                number = packet[19] if packet[0] >> 4 == 4 else 0  # the last byte of the address where it goes
                if 1 <= number <= len(self._devices):
                    waiting.append((time.perf_counter() + self._delay_s, self._devices[number - 1], packet))
            while waiting and waiting[0][0] <= time.perf_counter():
                _, device, packet = waiting.popleft()
                os.write(device, packet)

    def end(self) -> None:
        """Stops carrying."""
        self._ended.set()
        self.join()


def _tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN_WITHOUT_HEADER))
    return device


@contextmanager
def namespaces(round_trip_ms: float) -> Iterator[dict[str, str]]:
    """A namespace for each role, and its name by role. They are gone afterwards."""
    mark = f"sm{os.getpid() % 100000}"
    spaces = {role: f"{mark}-{role}" for role in _ROLES}
    with ExitStack() as made:
        devices = []
        for number, space in enumerate(spaces.values(), 1):
            _ip("netns", "add", space)
            made.callback(subprocess.run, ["ip", "netns", "del", space], check=False)
            devices.append(_tun(f"{mark}t{number}"))
            made.callback(os.close, devices[-1])
            _ip("link", "set", f"{mark}t{number}", "netns", space, "mtu", "60000", "txqueuelen", "10000")
            _ip("-n", space, "addr", "add", f"{_NETWORK}.{number}/24", "dev", f"{mark}t{number}")
            _ip("-n", space, "link", "set", f"{mark}t{number}", "up")
            _ip("-n", space, "link", "set", "lo", "up")
        wire = Wire(devices, round_trip_ms / 2000)
        wire.start()
        made.callback(wire.end)
        yield spaces


def write_configuration(folder: Path) -> None:
    """Identities, and a parties file for each role."""
    lines = []
    for number, role in enumerate(_ROLES, 1):
        made = identity.create(role, folder / role)
        lines += [f"[{DEALER if role == DEALER else f'parties.{role}'}]", f'address = "{_NETWORK}.{number}:{_PORT}"']
        lines += [f'certificate = "{role}/{made.certificate_path.name}"']
    lines += ["[timeouts]", "connect_s = 300", "receive_s = 300"]
    for role in _ROLES:
        (folder / f"{role}.toml").write_text("\n".join([*lines, "[me]", f'identity = "{role}"']) + "\n")


def take_part(folder: Path, case: str, role: str, lane: int) -> None:
    """One process: the dealer, or a lane of a party, which writes down when each of its runs ended."""
    torch.set_num_threads(1)
    config = identity.load_config(folder / f"{role}.toml")
    if role == DEALER:
        serve(config, identity.load(folder / role))
        return
    program, inputs = compiled(BY_NAME[case])
    given = [x if owner == role else None for x, owner in zip(inputs, program.header.inputs, strict=True)]
    with securemodel.connect(program, role, config, lane=lane, ledger=False) as session:
        session.load(program, program.model)
        session.run(*given)
        (folder / f"ready-{role}-{lane}").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
        ends, runs = [time.time()], int((folder / "go").read_text())
        for _ in range(runs):
            session.run(*given)
            ends.append(time.time())
    (folder / f"{role}-{lane}.json").write_text(json.dumps(ends))


def measure(case: str, lanes: int, runs: int, spaces: dict[str, str]) -> float:
    """Batches a second of so many lanes, from the common start to the end of the first lane to be done."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as held:
        folder = Path(name)
        write_configuration(folder)

        def start(role: str, lane: int) -> subprocess.Popen[bytes]:
            words = [sys.executable, "-m", "benchmarks.lanes", "--worker", name, role, str(lane), "--case", case]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(["ip", "netns", "exec", spaces[role], *words], env=environment)
            held.callback(process.wait)
            held.callback(process.kill)
            return process

        start(DEALER, 0)
        processes = [start(role, lane) for lane in range(lanes) for role in PARTIES]
        while len(list(folder.glob("ready-*"))) < len(processes):
            _check(processes)
            time.sleep(0.05)
        (folder / "go.new").write_text(str(runs))
        (folder / "go.new").rename(folder / "go")
        for process in processes:
            process.wait()
        _check(processes)
        ends = [json.loads((folder / f"{PARTIES[1]}-{lane}.json").read_text()) for lane in range(lanes)]
    first, last = max(times[0] for times in ends), min(times[-1] for times in ends)
    return sum(sum(first < at <= last for at in times) for times in ends) / (last - first)


def _check(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    if any(process.poll() for process in processes):
        raise RuntimeError("a process failed; its output is above")


@click.command()
@click.option("--case", default="lenet5_b32", show_default=True, help="A case of `python -m benchmarks`.")
@click.option("--lanes", default="1,2,4", show_default=True, help="Numbers of lanes to compare.")
@click.option("--round-trip", default=20.0, show_default=True, help="Milliseconds there and back.")
@click.option("--runs", default=20, show_default=True, help="Batches of each lane.")
@click.option("--worker", nargs=3, hidden=True)
def main(case: str, lanes: str, round_trip: float, runs: int, worker: tuple[str, str, int] | None) -> None:
    """Prints batches a second by number of lanes."""
    if worker:
        folder, role, lane = worker
        return take_part(Path(folder), case, role, int(lane))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no namespace is left
    with namespaces(round_trip) as spaces:
        rates = {count: measure(case, count, runs, spaces) for count in map(int, lanes.split(","))}
    one = next(iter(rates.values()))
    print(f"{case}, {round_trip:g} ms there and back, {machine()}")
    for count, rate in rates.items():
        print(f"| {count} | {rate:.2f} batches/s | {rate / one:.2f} |")


if __name__ == "__main__":
    main()
