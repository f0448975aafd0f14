"""Commands of `securemodel` as processes of this machine, which end with the one that started them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, cast

import click

from protocols.identity import DEALER
from securemodel.cli.forks import HAVE_FORKS, Forked, Forks

_TERMINATE_S = 2.0
_POLL_S = 0.02
_COLORS = ("cyan", "magenta", "yellow", "green", "blue", "bright_red")

_INHERIT = """
while read -r group; do groups="$groups -$group"; done
[ -z "$groups" ] || kill -s KILL -- $groups
rm -rf -- "$1"
"""

Process = subprocess.Popen[bytes] | Forked
Say = Callable[[str, str, bool], None]
"""Takes a line of output: whose it is, its text, and whether it went to the error output."""


@contextmanager
def folder_with_heir() -> Iterator[tuple[Path, IO[bytes]]]:
    """A temporary folder, and a pipe to a shell that is told the process groups that are started here.

    When this process ends in a way that it cannot handle, the pipe ends, and the shell ends these groups and removes the
    folder with its private keys.
    """
    folder = tempfile.mkdtemp(prefix="securemodel-")
    command = ["/bin/sh", "-c", _INHERIT, "securemodel-heir", folder]
    quiet = subprocess.DEVNULL
    try:
        heir = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    with heir:
        try:
            yield Path(folder), cast(IO[bytes], heir.stdin)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            heir.kill()


@contextmanager
def starter(parties: int, heir: IO[bytes]) -> Iterator[Callable[[Sequence[str]], Process]]:
    """Starts commands of `securemodel` for so many parties, each in a process group of its own: as forks where possible."""
    if not HAVE_FORKS:
        yield lambda command: start_process(command, parties)
        return
    with closing(Forks(_environment(parties))) as forks:
        heir.write(b"%d\n" % forks.pid)
        yield forks.start


def _environment(parties: int) -> dict[str, str]:
    """The parties share this machine's cores."""
    threads = str(max(1, (os.cpu_count() or 1) // parties))
    return {"OMP_NUM_THREADS": threads, **os.environ, "PYTHONUNBUFFERED": "1"}


def start_process(command: Sequence[str], parties: int) -> subprocess.Popen[bytes]:
    """Starts one of the commands of `securemodel` for one of so many parties, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "securemodel.cli", *command],
        env=_environment(parties),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends them in order
    )


def read_output(name: str, process: Process, say: Say) -> list[threading.Thread]:
    """Says each line that a process writes, in threads that end with it."""

    def read(pipe: IO[bytes], error: bool) -> None:
        with pipe:
            for line in pipe:
                say(name, line.decode(errors="replace").rstrip("\r\n").rpartition("\r")[2], error)

    pipes = ((process.stdout, False), (process.stderr, True))
    readers = [threading.Thread(target=read, args=pipe, daemon=True, name=f"read-{name}") for pipe in pipes]
    for reader in readers:
        reader.start()
    return readers


def end_processes(processes: Iterable[Process]) -> None:
    """Ends what still runs, with everything it started: first politely, then at once."""
    running = [process for process in processes if process.poll() is None]
    for signum in (signal.SIGTERM, signal.SIGKILL):
        for process in running:
            try:
                os.killpg(process.pid, signum)
            except (ProcessLookupError, PermissionError):
                pass
        deadline = time.monotonic() + _TERMINATE_S
        while any(process.poll() is None for process in running) and time.monotonic() < deadline:
            time.sleep(_POLL_S)


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM and SIGHUP (a closed terminal) end this process the way Ctrl-C does, so that nothing is left behind.

    Who started it with SIGHUP ignored, as `nohup` does, wants it to go on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGHUP)}
    for signum, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(signum, signal.default_int_handler)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def prefixed(names: tuple[str, ...], echo: Callable[..., None] = click.echo) -> Say:
    """Prints each line behind the colored name of the party it is from."""
    width, lock = max(map(len, (*names, DEALER))), threading.Lock()
    colors = {name: _COLORS[index % len(_COLORS)] for index, name in enumerate(names)}

    def say(name: str, text: str, error: bool) -> None:
        with lock:
            prefix = click.style(f"{name:>{width}} | ", fg=colors.get(name, "white"), dim=name == DEALER)
            echo(prefix + text, err=error)

    return say
