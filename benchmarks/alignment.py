"""`python -m benchmarks.alignment [--rows N ...] [--learns WHO ...] [--parties K] [--dealer] [--json FILE]`:
aligning ids.

With --dealer, two parties align by numbers of a dealer's after that, where all or one of them learn. Each party, and the
dealer, is a process of its own, joined by TLS over loopback, with as many workers as its share of the cores; of each
party's ids the neighbors have half. Seconds are of the clock, from checking one's ids to the checked result, of the
party that is last; those of the processors are of all processes together. Memory is the most that one party has with
its workers, where pages that they share count in each of them.

Where `benchmarks/peers/setup.sh psi` has built its environment, OpenMined's PSI aligns the same ids after that: two
processes joined by a pipe, without TLS, of which one learns. What both can do at once they do at once.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.measure import machine
from benchmarks.peers import PSI
from protocols import identity
from protocols.channel import connect, dial
from protocols.channel.testing import loopback_parties
from protocols.names import DEALER
from protocols.psi.aligning import align
from protocols.psi.sets import own_set
from protocols.psi.terms import COUNT, NOBODY, Terms
from protocols.psi.with_dealer import align_with_dealer
from securemodel.engines.masked.dealer import serve

if TYPE_CHECKING:
    from typing_extensions import Self

NAMES = ("alice", "bob", "carol", "dave")
_LIMIT_S = 1800


@dataclass(frozen=True)
class Row:
    """One alignment: of so many rows at each of so many parties."""

    system: str
    rows: int
    parties: int
    learns: str
    seconds: float
    processor_seconds: float
    joint: int
    rounds: int | None
    sent_bytes: int | None
    peak_memory_bytes: int
    machine: str


def ids_of(party: int, rows: int) -> list[bytes]:
    """The ids of a party: the second half of them is the first half of the next one's."""
    start = party * rows // 2
    return [b"person %d of the town" % number for number in range(start, start + rows)]


@click.command()
@click.option("--rows", multiple=True, type=int, default=(100_000,), show_default=True, help="Rows of each party.")
@click.option("--learns", multiple=True, default=("all",), show_default=True, help="all, nobody, count or alice.")
@click.option("--parties", type=click.IntRange(2, len(NAMES)), default=2, show_default=True)
@click.option("--dealer", is_flag=True, help="Also with a dealer, where two parties align.")
@click.option("--peer/--no-peer", default=True, help="Also OpenMined's PSI, where it is installed.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Save the rows here.")
def main(
    rows: tuple[int, ...], learns: tuple[str, ...], parties: int, dealer: bool, peer: bool, json_file: Path | None
) -> None:
    """Times alignments of equally many ids at each party."""
    console, made = Console(stderr=True), []
    for count in rows:
        for who in learns:
            with console.status(f"{count} rows, {who} ..."):
                made.append(measured(count, parties, who))
            if dealer and parties == 2 and who not in (COUNT, NOBODY):
                with console.status(f"{count} rows, {who}, with a dealer ..."):
                    made.append(measured(count, parties, who, dealer=True))
        if peer and PSI.is_built:
            with console.status(f"{count} rows, OpenMined PSI ..."):
                made.append(_peer(count))
    _show(made)
    if peer and not PSI.is_built:
        print("For OpenMined's PSI beside these, run benchmarks/peers/setup.sh psi first.")
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in made], indent=1))


def measured(rows: int, parties: int, learns: str, dealer: bool = False) -> Row:
    """One alignment by processes. Raises RuntimeError where one fails."""
    names = NAMES[:parties]
    with tempfile.TemporaryDirectory() as folder:
        loopback_parties(names, Path(folder), dealer=dealer, timeouts=identity.Timeouts(connect_s=120, receive_s=300))
        threads = max(1, (os.cpu_count() or 1) // parties)
        how = "dealer" if dealer else "curve"
        command = [sys.executable, "-m", "benchmarks.alignment", "party", folder, str(rows), learns, how]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        everyone = [*names, *([DEALER] if dealer else [])]
        running = [
            subprocess.Popen([*command, name], stdout=subprocess.PIPE, env=environment, text=True) for name in everyone
        ]
        said = [process.communicate(timeout=_LIMIT_S)[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError(f"{rows} rows, {learns}: a party failed; its output is above")
    found = [json.loads(text) for text in said]
    return Row(
        "securemodel, dealer" if dealer else "securemodel",
        rows,
        parties,
        learns,
        max(each["seconds"] for each in found),
        sum(each["processor_seconds"] for each in found),
        max(each["joint"] for each in found),
        max(each["rounds"] for each in found),
        max(each["sent_bytes"] for each in found),
        max(each["peak_memory_bytes"] for each in found),
        machine(),
    )


def be_dealer(folder: str) -> None:
    """The dealer's process: prints what it took, from the first party's coming to its end."""
    config, known = identity.load_config(Path(folder) / "parties.toml"), identity.load(Path(folder) / DEALER)
    before = _processor()
    with _Memory() as memory:
        serve(config, known, once=True)
    print(json.dumps({"seconds": 0.0, "processor_seconds": _processor() - before, "joint": 0, "rounds": 0, "sent_bytes": 0,
                      "peak_memory_bytes": memory.most}))  # fmt: skip


def be_party(folder: str, rows: int, learns: str, how: str, me: str) -> None:
    """One party's process: prints what it took."""
    config, known = identity.load_config(Path(folder) / "parties.toml"), identity.load(Path(folder) / me)
    ids = ids_of(NAMES.index(me), rows)
    with _Memory() as memory, connect(me, config, known) as channel:
        dealer = dial(me, DEALER, config, known) if how == "dealer" else None
        before, start = _processor(), time.perf_counter()
        own = own_set(ids)
        commitment = own.commitment(me, os.urandom(32))
        if dealer:
            made = align_with_dealer(channel, dealer, own, Terms(learns), commitment)
        else:
            made = align(channel, own, Terms(learns), commitment)
        seconds = time.perf_counter() - start
        outcome, stats = made.outcome, channel.stats
    print(
        json.dumps(
            {
                "seconds": seconds,
                "processor_seconds": _processor() - before,
                "joint": outcome.rows or outcome.common,
                "rounds": stats.rounds,
                "sent_bytes": stats.sent_bytes,
                "peak_memory_bytes": memory.most,
            }
        )
    )


class _Memory:
    """The most memory that this process and those it starts have, looked at ten times a second."""

    def __init__(self) -> None:
        self.most, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        me = psutil.Process()
        while not self._ended.wait(0.1):
            try:
                self.most = max(self.most, sum(p.memory_info().rss for p in (me, *me.children(recursive=True))))
            except psutil.NoSuchProcess:
                continue  # it ended between two looks

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()


def _processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _peer(rows: int) -> Row:
    """The same by OpenMined's PSI, in its own environment."""
    command = [str(PSI.python), str(PSI.runner), "--rows", str(rows)]
    said = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=_LIMIT_S).stdout)
    return Row(**said, rows=rows, parties=2, learns="one", rounds=None, machine=machine())


def _show(rows: list[Row]) -> None:
    table = Table(title=f"alignment of ids, all parties on {machine()}")
    for name in (
        "system",
        "learns",
        "parties",
        "rows each",
        "seconds",
        "processor s",
        "joint",
        "rounds",
        "sent MB",
        "peak MB",
    ):
        table.add_column(name, justify="left" if name in ("system", "learns") else "right")
    for row in rows:
        table.add_row(
            row.system, row.learns, str(row.parties), f"{row.rows:,}", f"{row.seconds:.2f}",
            f"{row.processor_seconds:.2f}", f"{row.joint:,}", "–" if row.rounds is None else str(row.rounds),
            "–" if row.sent_bytes is None else f"{row.sent_bytes / 1e6:.1f}", f"{row.peak_memory_bytes / 1e6:.0f}",
        )  # fmt: skip
    Console(width=140).print(table)


if __name__ == "__main__":
    if sys.argv[1:2] == ["party"]:
        folder, count, learns, how, me = sys.argv[2:]
        if me == DEALER:
            be_dealer(folder)
        else:
            be_party(folder, int(count), learns, how, me)
    else:
        main()
