"""All parties of a script, and a dealer if they need one, as processes of this machine, joined by mutual TLS."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from protocols.channel.testing import loopback_parties
from protocols.identity import DEALER, Timeouts
from securemodel.cli.base import OK, SESSION_FAILED
from securemodel.engines.masked.dealer import MOST_SESSIONS

GRACE_S = 2.0  # after a failure, for the other parties to notice and say what they saw
_TERMINATE_S = 2.0
_POLL_S = 0.02
# Long, as a silent process here is a busy one: when one ends, all are ended.
_TIMEOUTS = Timeouts(connect_s=300.0, receive_s=600.0)

_INHERIT = """
while read -r group; do groups="$groups -$group"; done
[ -z "$groups" ] || kill -s KILL -- $groups
rm -rf -- "$1"
"""

Say = Callable[[str, str, bool], None]
"""Takes a line of output: whose it is, its text, and whether it went to the error output."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the exit code to give, which process it is from if it failed, and which had to be stopped."""

    code: int = OK
    cause: str = ""
    stopped: tuple[str, ...] = ()


def run_local(
    script: Path,
    args: Sequence[str],
    parties: Sequence[str],
    say: Say,
    *,
    traceback: bool = False,
    command: Sequence[str] = ("run",),
    dealer: bool = True,
    contributors: Sequence[str] = (),
    lanes: int = 1,
) -> Outcome:
    """Runs the script once per party, and a dealer where one is wanted, and returns when all have ended.

    `command` is the command that each party runs, with options of its own. Contributors share their rows before, each in
    a process that ends before the others start. There is room for so many lanes beside the parties' first sessions. When
    one fails the others are stopped. Identities, keys and ports are made for this run and removed with it. KeyboardInterrupt, SIGTERM, a closed
    terminal and the end of this process, whatever ends it, end all processes. Raises ConfigError for names that cannot be a party's.
    """
    with terminated_like_interrupted(), folder_with_heir() as (folder, heir):
        configs = _configurations(parties, folder, dealer, contributors, lanes)
        rows = folder / "rows"
        shown = ["--traceback"] if traceback else []
        helping = (
            ["dealer", "--config", str(configs[DEALER]), "--sessions", str(MOST_SESSIONS + lanes), *shown]
            if dealer
            else []
        )
        commands = {DEALER: helping} if dealer else {}
        for name in parties:
            options = ["--me", name, "--config", str(configs[name]), *shown]
            options += ["--rows", str(rows)] if contributors else []
            commands[name] = [*command, *options, "--", str(script), *args]
        processes: dict[str, subprocess.Popen[bytes]] = {}
        readers: list[threading.Thread] = []

        def start(name: str, words: Sequence[str]) -> None:
            processes[name] = start_process(words, len(parties))
            heir.write(b"%d\n" % processes[name].pid)
            readers.extend(read_output(name, processes[name], say))

        try:
            for name in contributors:
                options = ["--me", name, "--config", str(configs[name]), "--to", str(rows), "--ledger", "none", *shown]
                start(name, ["share", *options, "--", str(script)])
                if (outcome := _wait(processes)).code:
                    return outcome
            for name, words in commands.items():
                start(name, words)
            return _wait(processes)
        finally:
            end_processes(processes.values())
            for reader in readers:
                reader.join(_TERMINATE_S)


@contextmanager
def folder_with_heir() -> Iterator[tuple[Path, IO[bytes]]]:
    """A temporary folder, and a pipe to a shell that is told the process groups that are started here.

    When this process ends in a way that it cannot handle, the pipe ends, and the shell ends these groups and removes the
    folder with its private keys.
    """
    folder = tempfile.mkdtemp(prefix="securemodel-")
    command = ["/bin/sh", "-c", _INHERIT, "securemodel-heir", folder]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
    ) as heir:
        try:
            yield Path(folder), cast(IO[bytes], heir.stdin)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            heir.kill()


def _configurations(
    parties: Sequence[str], folder: Path, dealer: bool, contributors: Sequence[str], lanes: int
) -> dict[str, Path]:
    """A party file for each process; they differ in whose identity they name."""
    roster, identities = loopback_parties(
        parties, folder, dealer=dealer, timeouts=_TIMEOUTS, contributors=contributors, lanes=lanes + 1
    )
    text, paths = cast(Path, roster.path).read_text(), {}
    for name in identities:
        paths[name] = folder / f"{name}.toml"
        paths[name].write_text(f'{text}[me]\nidentity = "{name}"\n')
    return paths


def start_process(command: Sequence[str], parties: int) -> subprocess.Popen[bytes]:
    """Starts one of the commands of `securemodel` for one of so many parties, in a process group of its own."""
    threads = str(max(1, (os.cpu_count() or 1) // parties))  # the parties share this machine's cores
    environment = {"OMP_NUM_THREADS": threads, **os.environ, "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "securemodel.cli", *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends them in order
    )


def read_output(name: str, process: subprocess.Popen[bytes], say: Say) -> list[threading.Thread]:
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


def _wait(processes: Mapping[str, subprocess.Popen[bytes]]) -> Outcome:
    """Waits for all parties, or for the first failure and a little longer."""
    failed: dict[str, int] = {}
    deadline = float("inf")
    while True:
        codes = {name: process.poll() for name, process in processes.items()}
        for name, code in codes.items():
            if code:
                failed.setdefault(name, code if code > 0 else 128 - code)
        running = tuple(name for name, code in codes.items() if code is None and name != DEALER)
        if failed:
            deadline = min(deadline, time.monotonic() + GRACE_S)
        if not running or time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    if not failed:
        return Outcome()
    # A party that complains about another is not the cause, even if it was quicker to end.
    cause = next((name for name, code in failed.items() if code != SESSION_FAILED), next(iter(failed)))
    return Outcome(failed[cause], cause, running)


def end_processes(processes: Iterable[subprocess.Popen[bytes]]) -> None:
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
