"""Sessions of CrypTen programs: a process for each party on this machine, joined over loopback."""

from __future__ import annotations

import math
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn

import torch

from protocols.errors import (
    ConfigError,
    InputError,
    PeerAborted,
    PeerDied,
    PeerStalled,
    ProtocolError,
    explain,
    summary,
)
from securemodel.compiler.ir import Phase
from securemodel.engines.clear import ClearSide
from securemodel.engines.crypten import adapter
from securemodel.engines.crypten.party import BEAT, pack, unpack
from securemodel.engines.crypten.program import CryptenProgram, trust
from securemodel.engines.masked.party import Rows
from securemodel.program import Program
from securemodel.sessions.session import Session, batches, joined, split_rows

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


class CryptenSession(Session):
    """All parties of a program as processes of this machine; `run` takes and returns everything.

    Each party's process gets what that party owns, and hands back the outputs that party may learn.
    """

    def __init__(self, program: CryptenProgram, limits: Limits = Limits()) -> None:
        adapter.require()
        super().__init__(program)
        self.limits = limits
        self._clear = {name: ClearSide(program, name) for name in program.parties}
        self._counted: dict[str, Mapping[str, float]] = {name: {"rounds": 0, "bytes": 0} for name in program.parties}
        self._folder = tempfile.TemporaryDirectory(prefix="securemodel-crypten-")
        self._processes: dict[str, _Process] = {}
        try:
            for rank, name in enumerate(program.parties):
                self._processes[name] = _start(rank, name, len(program.parties), Path(self._folder.name), limits)
            self._all("start", {"program": program.text()}, {}, limits.start_s)
        except BaseException:
            self._close()
            raise

    def processes(self) -> dict[str, int]:
        """The process id of each party."""
        return {name: process.popen.pid for name, process in self._processes.items()}

    def _load(self, model: torch.nn.Module | None) -> None:
        for clear in self._clear.values():
            clear.set_model(model)
        self._all("load", {}, self._owned("load"), self.limits.run_s)

    def _run(self, inputs: Sequence[torch.Tensor | None]) -> list:
        header, results, counted = self.program.header, [], []
        total = split_rows(inputs, self.program, [True] * len(header.inputs))
        for part, rows in batches(inputs, self.program, total):
            results.append(self._run_batch(part, rows)[0])
            counted.append(rows)
        return joined(results, counted, self.program)

    def _run_batch(self, inputs: Sequence[torch.Tensor | None], rows: Rows) -> tuple[list, Rows]:
        self._runs += 1
        self._note(self._runs, rows.now)
        return self._outputs(self._evaluate(inputs)), rows

    def _is_mine(self, owner: str) -> bool:
        return True

    def _evaluate(self, inputs: Sequence[torch.Tensor | None]) -> dict[str, dict[str, torch.Tensor]]:
        """What each party's process hands back from one evaluation."""
        for name, clear in self._clear.items():
            owners = self.program.header.inputs
            clear.set_inputs([x if own in (name, "public") else None for x, own in zip(inputs, owners, strict=True)])
        return self._all("run", {}, self._owned("run"), self.limits.run_s)

    def _outputs(self, replies: Mapping[str, Mapping[str, torch.Tensor]]) -> list[torch.Tensor]:
        known = {index: tensor for reply in replies.values() for index, tensor in reply.items()}
        return [known[str(index)] for index in range(len(self.program.header.outputs))]

    def _owned(self, phase: Phase) -> dict[str, dict[str, torch.Tensor]]:
        """What each party shares in a phase, by node. Raises InputError for what CrypTen cannot represent."""
        owned: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self.program.parties}
        limit = 2.0 ** (62 - 2 * self.program.header.frac_bits)
        for node in self.program.graph.nodes:
            if node.op != "input" or node.phase != phase:
                continue
            clear = self._clear[node.owner]
            value = clear.value(node.args[0]).detach().to(torch.float64).cpu().clone().contiguous()
            if not bool((value.abs() <= limit).all()):
                raise InputError(
                    f"{clear.describe(node.args[0])} has NaN, infinite or large values; CrypTen needs every value "
                    f"within [-{limit:.6g}, {limit:.6g}]. Clean or rescale it, or compile with fewer frac_bits."
                )
            owned[node.owner][str(node.id)] = value
        return owned

    def _counts(self) -> tuple[int, dict[str, int], int]:
        """CrypTen counts a byte at its sender and at its receiver: half of a party's count is what it sends."""
        rounds = max(int(counted["rounds"]) for counted in self._counted.values())
        return rounds, {name: int(counted["bytes"]) // 2 for name, counted in self._counted.items()}, 0

    # ---- the processes
    def _all(
        self, do: str, words: dict[str, Any], tensors: Mapping[str, Mapping[str, torch.Tensor]], limit_s: float
    ) -> dict[str, dict[str, torch.Tensor]]:
        """Tells all parties to do something, and collects what they made. Any failure ends the session."""
        try:
            now = time.monotonic()
            for name, process in self._processes.items():
                process.alive = now
                self._tell(name, {"do": do, **words}, tensors.get(name, {}))
            return self._collect(do, now + limit_s)
        except BaseException as error:
            self._closed = self._closed or summary(error)
            self._close()
            raise

    def _tell(self, name: str, words: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        try:
            self._processes[name].pipe.send_bytes(pack(words, tensors))
        except BlockingIOError:
            self._stalled(name, words["do"], _SILENT)
        except OSError:
            self._died(name, words["do"])

    def _collect(self, do: str, deadline: float) -> dict[str, dict[str, torch.Tensor]]:
        made: dict[str, dict[str, torch.Tensor]] = {}
        pipes = {process.pipe: name for name, process in self._processes.items()}
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
        self._counted[name] = words
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

    def _close(self) -> None:
        self._closed = self._closed or "close() was called"
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
        self._folder.cleanup()


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


def open_local(program: CryptenProgram) -> CryptenSession:
    """What `local` opens for programs of CrypTen."""
    return CryptenSession(program)


def open_connection(program: Program, *args: Any, **options: Any) -> NoReturn:
    """What `connect` does with programs of CrypTen: it refuses."""
    raise ProtocolError(
        explain(
            "programs for CrypTen do not run between machines",
            why=f"with CrypTen {trust(program.parties[0])}",
            fix="compile without protocol=; or run all parties on this machine with securemodel.local(program)",
        )
    )
