"""Commands as forks of one process that has imported everything: that takes longer than most runs, once for each party.

The process that forks has one thread, and computes nothing. It is asked through a socket that it inherits, by lines of
JSON that bring the ends of two pipes with them; it answers with the number of each process, and later how it ended.
"""

from __future__ import annotations

import gc
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from protocols.errors import SecureModelError, explain

HAVE_FORKS = sys.platform == "linux"
"""Elsewhere, a process that has used the system's libraries may not go on after a fork."""
_PROGRAM = """
import numpy, torch.export, securemodel.api, securemodel.training, securemodel.cli.describe, securemodel.cli.train
from securemodel.cli.app import main
from securemodel.cli.forks import fork_always
fork_always({}, main, numpy.random.seed)
"""
_BLAS = "OPENBLAS_NUM_THREADS"
_MOST_BYTES = 1 << 16


class Forked:
    """A command that runs: as much of subprocess.Popen as is asked of it here."""

    def __init__(self, forks: Forks, pid: int, stdout: IO[bytes], stderr: IO[bytes]) -> None:
        self.pid, self.stdout, self.stderr, self._forks = pid, stdout, stderr, forks

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        return self._forks.code_of(self.pid)


class Forks:
    """Starts commands of `securemodel` as forks of one process, each in a session of its own, without an input."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM.format(theirs.fileno())],
                env={_BLAS: "1", **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._said, self._codes, self._ended = b"", dict[int, int](), False

    def close(self) -> None:
        """Ends the process that forks, but none of its forks."""
        self._socket.close()
        self._process.kill()
        self._process.wait()

    def start(self, command: Sequence[str]) -> Forked:
        """Starts a command. Raises SecureModelError where the process that forks is gone."""
        pipes = [os.pipe(), os.pipe()]
        try:
            socket.send_fds(self._socket, [json.dumps(list(command)).encode() + b"\n"], [end for _, end in pipes])
        except OSError:
            self._ended = True
        for _, end in pipes:
            os.close(end)
        stdout, stderr = (os.fdopen(end, "rb") for end, _ in pipes)
        while not self._ended:
            for pid in self._hear():
                return Forked(self, pid, stdout, stderr)
        raise SecureModelError(
            explain(
                "the processes of this machine could not be started",
                why="the one that they are forks of has ended; what it wrote stands above",
                fix="run `securemodel doctor`",
            )
        )

    def code_of(self, pid: int) -> int | None:
        """How a process ended; None while it runs."""
        while not self._ended and select.select([self._socket], [], [], 0)[0]:
            self._hear()
        return self._codes.get(pid, -signal.SIGKILL if self._ended else None)

    def _hear(self) -> list[int]:
        """Reads what was said, and returns the numbers of processes that were started."""
        try:
            data = self._socket.recv(_MOST_BYTES)
        except ConnectionError:
            data = b""
        self._ended = not data
        *lines, self._said = (self._said + data).split(b"\n")
        started = []
        for what, pid, code in (json.loads(line) for line in lines):
            if what == "ended":
                self._codes[pid] = code
            else:
                started.append(pid)
        return started


# ---- the process that forks
def serve(asked: socket.socket) -> list[str] | None:
    """Forks whenever it is asked to. Returns in each fork, with the words of its command; and without, at the end."""
    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda signum, frame: None)
    signal.set_wakeup_fd(wakes)
    while True:
        both: list[Any] = [asked, woken]
        ready, _, _ = select.select(both, [], [])
        if woken in ready:
            os.read(woken, _MOST_BYTES)
            _tell_ended(asked)
        if asked in ready:
            line, ends, _, _ = socket.recv_fds(asked, _MOST_BYTES, 2)
            while line and not line.endswith(b"\n"):
                line += asked.recv(_MOST_BYTES)
            if not line:
                return None
            if not (pid := _fork(ends)):
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for end in (woken, wakes, *ends):
                    os.close(end)
                asked.close()
                return json.loads(line)
            asked.sendall(json.dumps(["started", pid, 0]).encode() + b"\n")


def _fork(ends: Sequence[int]) -> int:
    """A fork with its own session and output, which is there when this returns its number; 0 in the fork itself."""
    waits, told = os.pipe()
    if pid := os.fork():
        os.close(told)
        os.read(waits, 1)
        for end in (waits, *ends):
            os.close(end)
        return pid
    os.setsid()
    for number, (name, end) in enumerate(zip(("stdout", "stderr"), ends, strict=True), 1):
        os.dup2(end, number)
        setattr(sys, name, _unbuffered(number, getattr(sys, name)))
    os.close(waits)
    os.close(told)
    return 0


def _unbuffered(number: int, like: io.TextIOWrapper) -> io.TextIOWrapper:
    raw: Any = io.FileIO(number, "w")
    return io.TextIOWrapper(raw, like.encoding, like.errors, write_through=True)


def _tell_ended(asked: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        asked.sendall(json.dumps(["ended", pid, os.waitstatus_to_exitcode(status)]).encode() + b"\n")


def fork_always(descriptor: int, command: Callable[..., Any], *in_a_fork: Callable[[], Any]) -> None:
    """Serves, and is a command of `securemodel` in each fork, after what has to be done there."""
    gc.freeze()
    if (words := serve(socket.socket(fileno=descriptor))) is None:
        return
    for do in in_a_fork:
        do()
    os.environ.pop(_BLAS)
    sys.argv = ["securemodel", *words]
    command(prog_name="securemodel")
