"""`python -m benchmarks.tables [CASE ...] [--rows N]`: statistics of a joint table, two parties and a dealer over TLS.

Each party, and the dealer, is a process of its own that reads its own Parquet file of ten columns. A statistic is asked for
twice, one time after the other: seconds are those of the second time, compilation included, and of the processes from
their start to their end. Beside them, the same of the joined table in pandas.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from benchmarks.measure import machine
from protocols import identity
from protocols.channel.testing import loopback_parties
from protocols.names import DEALER
from securemodel import data
from securemodel.engines.masked.dealer import serve

OWNERS, COLUMNS = ("bank", "shop"), 10
_LIMIT_S = 1200


def _describe(joint: data.Joint) -> None:
    data.describe(joint)
    data.correlation(joint, [name for name in joint.schema.columns if name != "bad"])


def _describe_clear(joined: pd.DataFrame) -> None:
    joined.describe()
    joined.drop(columns="bad").corr()


def _woe(joint: data.Joint) -> None:
    data.woe(joint, [f"bank_{n}" for n in range(COLUMNS)], "bad", 10)


def _woe_clear(joined: pd.DataFrame) -> None:
    for n in range(COLUMNS):
        joined["bad"].groupby(pd.qcut(joined[f"bank_{n}"], 10)).agg(["sum", "count"])


CASES: dict[str, tuple[Callable[[data.Joint], None], Callable[[pd.DataFrame], None]]] = {
    "describe": (_describe, _describe_clear),
    "woe": (_woe, _woe_clear),
}
"""What a party asks, and the same in the clear: `describe` with the correlation of all columns; ten columns in ten bins."""


def tables(folder: Path, rows: int) -> pd.DataFrame:
    """A schema and a Parquet file for each party; returns the joined table. The shop has a label, too."""
    random = np.random.default_rng(0)
    text, parts = ['[table]\nsplit = "columns"\nminimum = 20\n'], []
    for party in OWNERS:
        part = pd.DataFrame(random.normal(0, 10, (rows, COLUMNS)).clip(-100, 100)).add_prefix(f"{party}_")
        text += [f'[columns.{name}]\nowner = "{party}"\nkind = "number"\nlow = -100\nhigh = 100\n' for name in part]
        if party == OWNERS[1]:
            part["bad"] = (random.random(rows) < 0.2).astype(int)
            text.append(f'[columns.bad]\nowner = "{party}"\nkind = "boolean"\n')
        part.to_parquet(folder / f"{party}.parquet")
        parts.append(part)
    (folder / "joint.toml").write_text("".join(text))
    return pd.concat(parts, axis=1)


def be_dealer(folder: Path) -> None:
    """The dealer's process, until it is ended."""
    serve(identity.load_config(folder / "parties.toml"), identity.load(folder / DEALER))


def be_party(folder: Path, case: str, me: str) -> None:
    """One party's process: prints what the second time took."""
    schema = data.Schema.load(folder / "joint.toml")
    sources = [data.table(name, folder / f"{name}.parquet") for name in OWNERS]
    config = identity.load_config(folder / f"{me}.toml")
    with data.connect(schema, sources, me, config, ledger=False) as joint:
        for _ in range(2):
            before, start = joint.place.channel.stats, time.perf_counter()  # type: ignore[attr-defined]
            counted = (before.rounds, before.sent_bytes)
            CASES[case][0](joint)
            seconds, after = time.perf_counter() - start, joint.place.channel.stats  # type: ignore[attr-defined]
        found = {"seconds": seconds, "rounds": after.rounds - counted[0], "sent_bytes": after.sent_bytes - counted[1]}
    print(json.dumps(found))


def measured(case: str, rows: int) -> dict[str, Any]:
    """One case by processes. Raises RuntimeError where one fails."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        joined = tables(folder, rows)
        roster, _ = loopback_parties(OWNERS, folder, dealer=True)
        for name in OWNERS:
            (folder / f"{name}.toml").write_text(f'{Path(roster.path).read_text()}[me]\nidentity = "{name}"\n')
        command = [sys.executable, "-m", "benchmarks.tables", "party", str(folder), case]
        environment, start = {**os.environ, "OMP_NUM_THREADS": "1"}, time.perf_counter()
        dealer = subprocess.Popen([*command, DEALER], env=environment)
        try:
            running = [
                subprocess.Popen([*command, me], stdout=subprocess.PIPE, env=environment, text=True) for me in OWNERS
            ]
            said = [process.communicate(timeout=_LIMIT_S)[0] for process in running]
            whole = time.perf_counter() - start
        finally:
            dealer.kill()
            dealer.wait()
        if any(process.returncode for process in running):
            raise RuntimeError(f"{case}: a party failed; its output is above")
    found = [json.loads(text) for text in said]
    start = time.perf_counter()
    CASES[case][1](joined)
    clear = time.perf_counter() - start
    return {
        "case": case, "rows": rows, "clear": clear, "whole": whole,
        **{name: max(each[name] for each in found) for name in ("seconds", "rounds", "sent_bytes")},
    }  # fmt: skip


@click.command()
@click.argument("cases", nargs=-1, metavar="[CASE]...")
@click.option("--rows", default=100_000, show_default=True)
def main(cases: tuple[str, ...], rows: int) -> None:
    """Times CASEs (all by default)."""
    if unknown := [case for case in cases if case not in CASES]:
        raise click.UsageError(f"unknown case {', '.join(unknown)}; there are {', '.join(CASES)}")
    shown = Table(title=f"statistics of a joint table, all processes on {machine()}")
    for name in ("case", "rows", "seconds", "of the processes", "rounds", "sent MB", "pandas in the clear"):
        shown.add_column(name, justify="left" if name == "case" else "right")
    for case in cases or tuple(CASES):
        made = measured(case, rows)
        shown.add_row(
            case, f"{rows:,}", f"{made['seconds']:.2f}", f"{made['whole']:.2f}", str(made["rounds"]),
            f"{made['sent_bytes'] / 1e6:.1f}", f"{made['clear']:.3f}",
        )  # fmt: skip
    Console(width=120).print(shown)


if __name__ == "__main__":
    if sys.argv[1:2] == ["party"]:
        place, case, me = sys.argv[2:]
        if me == DEALER:
            be_dealer(Path(place))
        else:
            be_party(Path(place), case, me)
    else:
        main()
