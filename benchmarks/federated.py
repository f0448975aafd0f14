"""`python -m benchmarks.federated [CASE ...] [--peers] [--json FILE]`: federated learning, beside Flower's SecAgg+.

Each case is a process of its own, with all clients and all aggregators, one after the other: seconds are those of all of
them together, without drawing the updates. Time of the processor is told beside time on the clock, as other programs
may run. `--peers` times SecAgg+ on the same updates, in .venv-flower (`benchmarks/peers/setup.sh flower`).
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.fedavg import Training, learn
from benchmarks.peers import run_secagg
from securemodel.edge.rounds import Layout
from securemodel.edge.updates import share_update
from securemodel.federated import Aggregation, Task, mean, norm_bounded_mean, open_local, trimmed_mean

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples" / "lenet_mnist" / "images.npz"
LIMIT = 1.0


@dataclass(frozen=True)
class Case:
    """One round: how many clients with how many numbers each, how many of them drop out, and what is aggregated."""

    name: str
    clients: int
    size: int
    dropouts: float = 0.0
    aggregation: str = "mean"


CASES = (
    Case("mean", 100, 1_000_000),
    Case("dropouts", 100, 1_000_000, 0.3),
    Case("many", 1000, 100_000),
    Case("plain", 100, 100_000),
    Case("bounded", 100, 100_000, aggregation="bounded"),
    Case("trimmed", 20, 100_000, aggregation="trimmed"),
)


def aggregation_of(name: str, size: int) -> Aggregation:
    """An aggregation by its name; the bound is one that uniform numbers from -1 to 1 keep."""
    kinds: dict[str, Callable[[], Aggregation]] = {
        "mean": mean,
        "bounded": lambda: norm_bounded_mean(1.05 * float(np.sqrt(size / 3))),
        "trimmed": trimmed_mean,
    }
    return kinds[name]()


@dataclass(frozen=True)
class Row:
    """A round of one system; bytes are those of one client, without the model that it gets. `error` None: the round is lost."""

    case: str
    system: str
    clients: int
    size: int
    dropouts: float
    seconds: float
    cpu_seconds: float
    sent_bytes: int
    received_bytes: int
    error: float | None
    peak_mib: float


def update_of(client: int, size: int) -> np.ndarray:
    """The update of a client, as benchmarks/peers/secagg_runner.py draws it."""
    return np.random.default_rng(client).uniform(-1, 1, size).astype(np.float32)


def measure(case: Case) -> Row:
    """One round in this process. Who drops out has delivered to the first aggregator alone."""
    layout = Layout.of({"w": np.zeros(case.size, np.float32)})
    task = Task("benchmark", aggregation_of(case.aggregation, case.size), layout, slots=case.clients, limit=LIMIT)
    dropped = round(case.clients * case.dropouts)
    seconds, cpu, sent = 0.0, 0.0, 0
    with open_local(task) as federation:
        card = federation.card(0)
        for client in range(1, case.clients + 1):
            update = update_of(client, case.size)
            start, cpu_start = time.perf_counter(), time.process_time()
            parts = share_update(card, {"w": update}, id=str(client)).sealed()
            for rank in (0,) if client <= dropped else parts:
                federation.receive(0, rank, str(client), parts[rank])
            seconds, cpu = seconds + time.perf_counter() - start, cpu + time.process_time() - cpu_start
            sent = sum(map(len, parts.values()))
        start, cpu_start = time.perf_counter(), time.process_time()
        outcome = federation.finish(0)
        seconds, cpu = seconds + time.perf_counter() - start, cpu + time.process_time() - cpu_start
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    assert outcome.aggregate is not None and len(outcome.present) == case.clients - dropped
    clear = _in_the_clear(case, range(dropped + 1, case.clients + 1))
    error = float(np.abs(outcome.aggregate["w"] - clear).max())
    return Row(
        case.name, f"securemodel, {case.aggregation}", case.clients, case.size, case.dropouts, seconds, cpu, sent,
        len(card.text()), error, peak,
    )  # fmt: skip


def _in_the_clear(case: Case, clients: Sequence[int]) -> np.ndarray:
    updates = (update_of(client, case.size).astype(np.float64) for client in clients)
    if case.aggregation != "trimmed":
        return sum(updates) / len(clients)  # type: ignore[return-value]
    cut = int(0.2 * len(clients))
    return np.sort(np.stack(list(updates)), axis=0)[cut : len(clients) - cut].mean(axis=0)


# ---- the command
@click.command()
@click.argument("names", nargs=-1, metavar="[CASE]...")
@click.option("--clients", type=int, help="Another number of clients in every case.")
@click.option("--size", type=int, help="Another size of updates in every case.")
@click.option("--peers", is_flag=True, help="Also time Flower's SecAgg+ on the same updates.")
@click.option("--neighbors", default="3,31", show_default=True, help="Of SecAgg+: with how many a client shares keys.")
@click.option("--images", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=DIGITS,
              help="An .npz of digits for FedAvg; those of the examples by default.")  # fmt: skip
@click.option("--rounds", default=10, show_default=True, help="Of FedAvg.")
@click.option("--seeds", default=1, show_default=True, help="Of FedAvg: so many mixes and first models.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Save the rows here.")
def main(
    names: tuple[str, ...], clients: int | None, size: int | None, peers: bool, neighbors: str, images: Path,
    rounds: int, seeds: int, json_file: Path | None,
) -> None:  # fmt: skip
    """Times rounds (CASEs: mean, dropouts, many, plain, bounded, trimmed) and trains (learning); all by default."""
    known = [*(case.name for case in CASES), "learning"]
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"unknown case {', '.join(unknown)}; there are {', '.join(known)}")
    found: list[Row] = []
    for case in CASES:
        if names and case.name not in names:
            continue
        case = Case(case.name, clients or case.clients, size or case.size, case.dropouts, case.aggregation)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as own:
            found.append(own.submit(measure, case).result())
        if peers and case.aggregation == "mean":
            for count in dict.fromkeys(min(int(each), case.clients) for each in neighbors.split(",")):
                found += [
                    Row(case=case.name, **row) for row in run_secagg(case.clients, case.size, case.dropouts, count)
                ]
    _show(found)
    learned = []
    if not names or "learning" in names:
        learned = learn(
            images, 0.4 if images == DIGITS else 2 / 9, Training(rounds, batch=20, judged=min(rounds, 10)), seeds
        )
    if json_file:
        json_file.write_text(json.dumps([*map(asdict, found), *learned], indent=1))


def _show(rows: Sequence[Row]) -> None:
    table = Table("case", "system", "clients × numbers", "dropouts", "s", "CPU s", "sent", "received", "error", "peak")
    for row in rows:
        table.add_row(
            row.case, row.system, f"{row.clients} × {row.size:,}", f"{row.dropouts:.0%}", f"{row.seconds:.2f}",
            f"{row.cpu_seconds:.2f}", f"{row.sent_bytes:,} B", f"{row.received_bytes:,} B", "round lost" if row.error is None else f"{row.error:.1e}",
            f"{row.peak_mib:.0f} MiB",
        )  # fmt: skip
    if rows:
        Console(width=170).print(table)


if __name__ == "__main__":
    main()
