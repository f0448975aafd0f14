"""`python -m benchmarks.edge [--json FILE]`: what a client of a service costs its machine.

Each figure is of a process of its own, which imports `securemodel.edge` and nothing else of the project: milliseconds of
the import (the fastest of several), the memory it then holds, and milliseconds to make 10^6 values into shares for two
parties, from floats to bytes: by seeds, as with `cryptography`, and by numbers, as without.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import psutil
from rich.console import Console
from rich.table import Table

_VALUES = 10**6
_IMPORT = """
import time
start = time.perf_counter()
import securemodel.edge
print(1000 * (time.perf_counter() - start), flush=True)
input()
"""
_SHARE = """
import os, sys, time
import numpy as np
from securemodel.edge.sharing import encode, split
x, times = np.random.default_rng(0).uniform(-1, 1, int(sys.argv[1])), []
for _ in range(9):
    start = time.perf_counter()
    split(encode(x, 16, 100.0), 2, os.urandom(16), 0, seeds=sys.argv[2] == "seeds")
    times.append(1000 * (time.perf_counter() - start))
print(min(times))
"""


@dataclass(frozen=True)
class Row:
    """One figure."""

    what: str
    value: float
    unit: str


def rows(repeat: int) -> Iterator[Row]:
    imported = [_imported() for _ in range(repeat)]
    yield Row("import", min(ms for ms, _ in imported), "ms")
    yield Row("memory after the import", min(mib for _, mib in imported), "MiB")
    for way in ("seeds", "numbers"):
        command = [sys.executable, "-c", _SHARE, str(_VALUES), way]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        yield Row(f"10^6 values shared, by {way}", float(done.stdout), "ms")


def _imported() -> tuple[float, float]:
    """(milliseconds of the import, MiB that the process then holds)."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", _IMPORT], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        milliseconds = float(process.stdout.readline())
        mebibytes = psutil.Process(process.pid).memory_info().rss / 2**20
        process.communicate("\n")
    return milliseconds, mebibytes


def show(what: str, rows: Iterable[Row], json_file: Path | None) -> None:
    """Prints rows as a table, and saves them where a file is named."""
    found, table = list(rows), Table(what, "", "")
    for row in found:
        table.add_row(row.what, f"{row.value:.1f}", row.unit)
    Console().print(table)
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in found], indent=1))


@click.command()
@click.option("--repeat", default=7, show_default=True, help="Imports, of which the fastest counts.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Save the rows here.")
def main(repeat: int, json_file: Path | None) -> None:
    """Measures a client of a service: its import, its memory, and how fast it makes shares."""
    show("a client of a service", rows(repeat), json_file)


if __name__ == "__main__":
    main()
