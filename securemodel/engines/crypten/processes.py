"""The processes of the parties, on this machine, joined over loopback; one is told what to do, and answers."""

from __future__ import annotations

import math
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

import torch

from protocols.channel import ChannelStats, Label
from protocols.channel.buffers import Buffer
from protocols.channel.stats import LinkStats
from protocols.errors import ConfigError, PeerAborted, PeerDied, PeerStalled, explain
from securemodel.engines.crypten.party import BEAT
from securemodel.engines.crypten.program import CryptenProgram
from securemodel.engines.labels import LOAD, RUN
from securemodel.engines.packing import pack, unpack

_DO = {LOAD: "load", RUN: "run"}
_END_S = 2.0
_GRACE_S = 2.0
_LOOPBACK = ("lo", "lo0")
_SILENT = "it gave no sign of life"


@dataclass(frozen=True)
class Limits:
    """Longest waits in seconds: for a process to start and meet the others, for a sign of life, for a run."""

    start_s: float = 120.0
    silent_s: float = 60.0
    run_s: float = 3600.0


@dataclass
class _Process:
    """A party's process, this end of its pipe, and when it last gave a sign of life."""

    popen: subprocess.Popen[bytes]
    pipe: Connection
    alive: float


class Processes:
    """All parties' processes. Whatever fails ends them all."""

    def __init__(self, program: CryptenProgram, limits: Limits) -> None:
        self.limits, self.closed = limits, False
        self.folder = tempfile.TemporaryDirectory(prefix="securemodel-crypten-")
        self.counted: dict[str, Mapping[str, float]] = {name: {"rounds": 0, "bytes": 0} for name in program.parties}
        self._processes: dict[str, _Process] = {}
        self._doing, self._made = "start", dict[str, dict[str, torch.Tensor]]()
        with self._ending():
            for rank, name in enumerate(program.parties):
                self._processes[name] = _start(rank, name, len(program.parties), Path(self.folder.name), limits)
            for name in program.parties:
                self._tell(name, {"do": "start", "program": program.text()}, {})
            self._collect("start", limits.start_s)

    def ids(self) -> dict[str, int]:
        """The process id of each party."""
        return {name: process.popen.pid for name, process in self._processes.items()}

    def begin(self, name: str, do: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Tells a party to load or run with what it owns; every party has to be told before one is waited for."""
        self._doing = do
        with self._ending():
            self._tell(name, {"do": do}, tensors)

    def finish(self, name: str) -> dict[str, torch.Tensor]:
        """What a party's process made. Raises PeerError."""
        with self._ending():
            self._made = self._made or self._collect(self._doing, self.limits.run_s)
        return self._made.pop(name)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _tell(self, name: str, words: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        self._processes[name].alive = time.monotonic()
        try:
            self._processes[name].pipe.send_bytes(pack(words, tensors))
        except BlockingIOError:
            self._stalled(name, words["do"], _SILENT)
        except OSError:
            self._died(name, words["do"])

    def _collect(self, do: str, limit_s: float) -> dict[str, dict[str, torch.Tensor]]:
        made: dict[str, dict[str, torch.Tensor]] = {}
        deadline = time.monotonic() + limit_s
        pipes: dict[Any, str] = {process.pipe: name for name, process in self._processes.items()}
        while len(made) < len(self._processes):
            for pipe in wait(list(pipes), timeout=0.5):
                name = pipes[pipe]
                message = self._message(name, do)
                if message != BEAT:
                    made[name] = self._reply(name, message, do)
            self._check_time(do, deadline, [name for name in self._processes if name not in made])
        return made

    def _message(self, name: str, do: str) -> bytes:
        process = self._processes[name]
        try:
            message = process.pipe.recv_bytes()
        except BlockingIOError:
            self._stalled(name, do, _SILENT)
        except (EOFError, OSError):
            self._died(name, do)
        process.alive = time.monotonic()
        return message

    def _reply(self, name: str, message: bytes, do: str) -> dict[str, torch.Tensor]:
        words, tensors = unpack(message)
        if "error" in words:
            self._blame_the_dead(do)
            raise PeerAborted(name, words["error"])
        self.counted[name] = words
        return tensors

    def _blame_the_dead(self, do: str) -> None:
        """A party that complains may do so because another ended: that one is the cause."""
        until = time.monotonic() + _GRACE_S
        while time.monotonic() < until:
            for name, process in self._processes.items():
                if process.popen.poll():
                    self._died(name, do)
            time.sleep(0.05)

    def _died(self, name: str, do: str) -> NoReturn:
        try:
            code = self._processes[name].popen.wait(_END_S)
        except subprocess.TimeoutExpired:
            code = None
        how = "its connection ended" if code is None else f"it was ended by signal {-code}" if code < 0 else ""
        text = explain(
            f"the process of party {name!r} ended",
            where=f"protocol crypten, {do}",
            why=how or f"its exit code is {code}",
            fix="open a new session; if it happens again, see what that process wrote to the error output",
        )
        raise PeerDied(name, text)

    def _check_time(self, do: str, deadline: float, due: Sequence[str]) -> None:
        now = time.monotonic()
        for name in due:
            if now - self._processes[name].alive > self.limits.silent_s:
                self._stalled(name, do, _SILENT)
            if now > deadline:
                self._stalled(name, do, "the time limit has passed")

    def _stalled(self, name: str, do: str, why: str) -> NoReturn:
        what, fix = f"party {name!r} does not answer", "see whether it is stopped; or give CryptenSession longer Limits"
        raise PeerStalled(name, explain(what, where=f"protocol crypten, {do}", why=why, fix=fix))

    def close(self) -> None:
        """Ends all processes, in good order where they listen."""
        if self.closed:
            return
        self.closed = True
        for process in self._processes.values():
            with suppress(OSError):
                process.pipe.send_bytes(pack({"do": "end"}, {}))
        until = time.monotonic() + _END_S
        for process in self._processes.values():
            try:
                process.popen.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
            process.pipe.close()
        self.folder.cleanup()


@dataclass(frozen=True)
class ProcessChannel:
    """A party's process as a session's channel: what the walk sends, by node, goes to the process, which talks to the others."""

    processes: Processes
    name: str

    @property
    def closed(self) -> bool:
        """Whether the processes were ended."""
        return self.processes.closed

    @property
    def stats(self) -> ChannelStats:
        """CrypTen counts a byte at its sender and at its receiver: half of a party's count is what it sends."""
        counted = self.processes.counted[self.name]
        return ChannelStats(int(counted["rounds"]), {"others": LinkStats(int(counted["bytes"]) // 2)})

    def begin(self, label: Label, sends: Mapping[str, Sequence[Buffer]], receives: Mapping[str, int]) -> None:
        """Tells the process what to do: LOAD or RUN."""
        self.processes.begin(self.name, _DO[label], {node: tensor for node, (tensor,) in sends.items()})

    def finish(self) -> dict[str, torch.Tensor]:
        """What the process made."""
        return self.processes.finish(self.name)

    def abort(self, reason: str) -> None:
        """Ends the processes."""
        self.processes.close()

    def close(self) -> None:
        """Ends the processes."""
        self.processes.close()


def _start(rank: int, name: str, parties: int, folder: Path, limits: Limits) -> _Process:
    """A party's process. A new interpreter, not a fork or a re-import of the user's script."""
    loopback = _loopback()
    ours, theirs = socket.socketpair()
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):  # a process that stops in the middle of a message
        ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", math.ceil(limits.silent_s), 0))
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(parties),
        "RENDEZVOUS": f"file://{folder / 'meeting'}",
        "DISTRIBUTED_BACKEND": "gloo",
        "GLOO_SOCKET_IFNAME": loopback,
    }
    command = [sys.executable, "-W", "ignore", "-m", "securemodel.engines.crypten.party", str(theirs.fileno()), name]
    with theirs:
        popen = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C reaches the session's process alone, which then ends them
        )
    return _Process(popen, Connection(ours.detach()), time.monotonic())


def _loopback() -> str:
    """The name of the network interface that does not leave this machine. Raises ConfigError."""
    names = {name for _, name in socket.if_nameindex()}
    found = next((name for name in _LOOPBACK if name in names), None)
    if found is None:
        raise ConfigError(explain("no loopback interface", why=f"none is called {' or '.join(_LOOPBACK)}"))
    return found
