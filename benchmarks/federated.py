"""`python -m benchmarks.federated [CASE ...] [--peers] [--json FILE]`: federated learning, beside Flower's SecAgg+.

Each case is a process of its own, with all clients and all aggregators, one after the other: seconds are those of all of
them together, without drawing the updates. Time of the processor is told beside time on the clock, as other programs
may run. `--peers` times SecAgg+ on the same updates, in .venv-flower (`benchmarks/peers/setup.sh flower`).
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.peers import run_secagg
from securemodel.edge.rounds import Layout
from securemodel.edge.updates import encode, share_elements, share_update
from securemodel.federated import Aggregation, Task, mean, norm_bounded_mean, open_local, trimmed_mean

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples" / "lenet_mnist" / "images.npz"
LIMIT = 1.0
BATCH = 10


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
        "bounded": lambda: norm_bounded_mean(float(np.sqrt(size))),
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


# ---- FedAvg
@dataclass(frozen=True)
class Federation:
    """Sites with unequal mixes of labels, and what is held out."""

    sites: Sequence[tuple[torch.Tensor, torch.Tensor]]
    held_out: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(cls, path: Path, sites: int, held_out: float, *, alpha: float = 0.5, every: int = 1) -> Federation:
        """Of an .npz of `images` and `labels`; each label is spread over the sites by a Dirichlet distribution.

        `every`: of how many rows and columns of a picture one is kept.
        """
        rng = np.random.default_rng(0)
        with np.load(path) as file:
            images, labels = file["images"][:, ::every, ::every] / np.float32(255), file["labels"]
        images = images.reshape(len(labels), -1)
        order = rng.permutation(len(labels))
        images, labels = torch.from_numpy(images[order]), torch.from_numpy(labels[order].astype(np.int64))
        kept = round(held_out * len(labels))
        mixes = rng.dirichlet(np.full(sites, alpha), 10)
        where = torch.tensor([rng.choice(sites, p=mixes[label]) for label in labels[kept:]])
        rows = [torch.nonzero(where == site).squeeze(1) + kept for site in range(sites)]
        return cls([(images[each], labels[each]) for each in rows], (images[:kept], labels[:kept]))


def network(features: int, hidden: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def fedavg(
    data: Federation,
    rounds: int,
    aggregation: Aggregation | None,
    *,
    bound: float,
    poisoned: int = 0,
    hidden: int = 64,
    rate: float = 0.1,
) -> tuple[float, float]:
    """(accuracy on what is held out, seconds of aggregation) after FedAvg with equal weights; None: in the clear.

    Honest sites clip their updates to the norm `bound`; poisoned ones send 30 times the opposite of what they learned.
    """
    model, seconds = network(data.held_out[0].shape[1], hidden), 0.0
    state = {name: x.detach().numpy().copy() for name, x in model.state_dict().items()}
    task = aggregation and Task(
        "digits", aggregation, Layout.of(state), slots=len(data.sites), limit=8.0, minimum=len(data.sites) // 2
    )
    federation = task and open_local(task)
    for number in range(rounds):
        updates = [
            _poison(learned) if site < poisoned else _clipped(learned, bound)
            for site, learned in enumerate(_learned(model, state, rows, rate) for rows in data.sites)
        ]
        start = time.perf_counter()
        moved = _aggregate(federation, number, updates)
        seconds += time.perf_counter() - start
        state = {name: (x + moved[name]).astype(np.float32) for name, x in state.items()}
    if federation:
        federation.close()
    model.load_state_dict({name: torch.from_numpy(x) for name, x in state.items()})
    images, labels = data.held_out
    return float((model(images).argmax(1) == labels).float().mean()), seconds


def _learned(
    model: nn.Module, state: Mapping[str, np.ndarray], rows: tuple[torch.Tensor, torch.Tensor], rate: float
) -> dict[str, np.ndarray]:
    """What a site changes in an epoch of SGD."""
    model.load_state_dict({name: torch.from_numpy(x) for name, x in state.items()})
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for images, labels in zip(rows[0].split(BATCH), rows[1].split(BATCH), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return {name: x.detach().numpy() - state[name] for name, x in model.state_dict().items()}


def _clipped(update: Mapping[str, np.ndarray], bound: float) -> dict[str, np.ndarray]:
    norm = float(np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in update.values())))
    return {name: x * np.float32(min(1.0, 0.999 * bound / norm)) for name, x in update.items()}


def _poison(update: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.clip(-30 * x, -8, 8) for name, x in update.items()}


def _aggregate(federation, number: int, updates: Sequence[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    if federation is None:
        return {name: np.mean([each[name] for each in updates], axis=0) for name in updates[0]}
    card = federation.card(number)
    for site, update in enumerate(updates):
        encoded = encode(replace(card, bound=None), update)  # liars do not check themselves
        for rank, part in share_elements(card, encoded, 1, f"site{site}").items():
            federation.receive(number, rank, f"site{site}", part)
    outcome = federation.finish(number)
    assert outcome.aggregate is not None
    return outcome.aggregate


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
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Save the rows here.")
def main(
    names: tuple[str, ...], clients: int | None, size: int | None, peers: bool, neighbors: str, images: Path,
    rounds: int, json_file: Path | None,
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
    learned = _learn(images, rounds) if not names or "learning" in names else []
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


def _learn(images: Path, rounds: int) -> list[dict[str, str | float]]:
    own = images == DIGITS
    data, bound = Federation.of(images, 10, 0.4 if own else 1 / 9), 1.0 if own else 4.0
    runs = [
        ("clear", None, 0), ("mean", mean(), 0), ("bounded", norm_bounded_mean(bound), 0),
        ("trimmed", trimmed_mean(0.2), 0), ("clear, 2 poisoned", None, 2),
        ("bounded, 2 poisoned", norm_bounded_mean(bound), 2), ("trimmed, 2 poisoned", trimmed_mean(0.2), 2),
    ]  # fmt: skip
    table, rows = Table("FedAvg of 10 sites", "accuracy", "s of aggregation"), []
    for name, aggregation, poisoned in runs:
        accuracy, seconds = fedavg(data, rounds, aggregation, bound=bound, poisoned=poisoned)
        table.add_row(name, f"{accuracy:.2%}", f"{seconds:.1f}")
        rows.append({"case": "learning", "what": name, "accuracy": accuracy, "seconds": seconds})
        click.echo(f"{name}: {accuracy:.2%}, {seconds:.1f} s of aggregation", err=True)
    Console().print(table)
    return rows


if __name__ == "__main__":
    main()
