"""All parties of a script, and a dealer if they need one, as processes of this machine, joined by mutual TLS."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from protocols.channel.testing import loopback_parties
from protocols.identity import DEALER, Timeouts
from securemodel.cli.base import OK, SESSION_FAILED
from securemodel.cli.processes import (
    Process,
    Say,
    end_processes,
    folder_with_heir,
    read_output,
    starter,
    terminated_like_interrupted,
)
from securemodel.engines.masked.dealer import MOST_SESSIONS

GRACE_S = 2.0  # after a failure, for the other parties to notice and say what they saw
_READ_S = 2.0
_POLL_S = 0.02
# Long, as a silent process here is a busy one: when one ends, all are ended.
_TIMEOUTS = Timeouts(connect_s=300.0, receive_s=600.0)


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
    device: str | None = None,
) -> Outcome:
    """Runs the script once per party, and a dealer where one is wanted, and returns when all have ended.

    `command` is the command that each party runs, with options of its own. Contributors share their rows before, each in
    a process that ends before the others start. There is room for so many lanes beside the parties' first sessions. All compute on this device. When
    one fails the others are stopped. Identities, keys and ports are made for this run and removed with it. KeyboardInterrupt, SIGTERM, a closed
    terminal and the end of this process, whatever ends it, end all processes. Raises ConfigError for names that cannot be a party's.
    """
    with terminated_like_interrupted(), folder_with_heir() as (folder, heir), ExitStack() as stack:
        configs = _configurations(parties, folder, dealer, contributors, lanes)
        rows = folder / "rows"
        shown = ["--traceback"] if traceback else []
        on = ["--device", device] if device else []
        helping = (
            ["dealer", "--config", str(configs[DEALER]), "--sessions", str(MOST_SESSIONS + lanes), *on, *shown]
            if dealer
            else []
        )
        commands = {DEALER: helping} if dealer else {}
        for name in parties:
            options = ["--me", name, "--config", str(configs[name]), *on, *shown]
            options += ["--rows", str(rows)] if contributors else []
            commands[name] = [*command, *options, "--", str(script), *args]
        processes: dict[str, Process] = {}
        readers: list[threading.Thread] = []
        starts = stack.enter_context(starter(len(parties), heir))

        def start(name: str, words: Sequence[str]) -> None:
            processes[name] = starts(words)
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
                reader.join(_READ_S)


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


def _wait(processes: Mapping[str, Process]) -> Outcome:
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
