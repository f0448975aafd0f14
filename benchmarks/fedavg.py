"""FedAvg of sites with unequal mixes of labels, some of which lie: accuracy by aggregation, beside the clear run.

`python -m benchmarks.federated learning` runs it. All honest sites clip their updates to one bound, which is tuned as
operators would: after a pilot of five rounds, `norm_histogram` tells how many norms are below each edge, those of sites
that lie among them, and the bound is the first edge that half of the sites are below.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import click
import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

from securemodel.edge.rounds import Layout
from securemodel.edge.updates import encode, share_elements
from securemodel.federated import (
    Aggregation,
    LocalFederation,
    Outcome,
    Task,
    mean,
    norm_bounded_mean,
    norm_histogram,
    open_local,
    trimmed_mean,
)

LIMIT, PILOT = 8.0, 5
EDGES = tuple(0.25 * 2 ** (step / 4) for step in range(21))
"""Of the histogram: from 0.25 to 8, four to each doubling."""
Attack = Literal["far", "noise", "within"]
Update = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Federation:
    """Sites with unequal mixes of labels, and what is held out."""

    sites: Sequence[tuple[torch.Tensor, torch.Tensor]]
    held_out: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(
        cls, path: Path, sites: int, held_out: float, *, alpha: float = 0.5, every: int = 1, seed: int = 0
    ) -> Federation:
        """Of an .npz of `images` and `labels`; each label is spread over the sites by a Dirichlet distribution.

        `every`: of how many rows and columns of a picture one is kept.
        """
        rng = np.random.default_rng(seed)
        with np.load(path) as file:
            images, labels = file["images"][:, ::every, ::every] / np.float32(255), file["labels"]
        order = rng.permutation(len(labels))
        images, labels = torch.from_numpy(images[order]), torch.from_numpy(labels[order].astype(np.int64))
        kept = round(held_out * len(labels))
        mixes = rng.dirichlet(np.full(sites, alpha), 10)
        where = torch.tensor([rng.choice(sites, p=mixes[label]) for label in labels[kept:]])
        rows = [torch.nonzero(where == site).squeeze(1) + kept for site in range(sites)]
        return cls([(images[each], labels[each]) for each in rows], (images[:kept], labels[:kept]))


@dataclass(frozen=True)
class Training:
    """What sites train and how: one epoch a round. `hidden`: of a network of two layers; None: a small convolutional one.

    Accuracy is the mean of that of the last `judged` models: one of them alone goes up and down by some tenths of a percent,
    as in another run in the clear that adds up in another order.
    """

    rounds: int
    hidden: int | None = None
    rate: float = 0.1
    batch: int = 10
    seed: int = 0
    judged: int = 1

    def network(self, side: int) -> nn.Module:
        """A network for pictures of so many rows and columns."""
        torch.manual_seed(self.seed)
        if self.hidden is not None:
            return nn.Sequential(
                nn.Flatten(), nn.Linear(side * side, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 10)
            )
        left = ((side - 4) // 2 - 4) // 2
        return nn.Sequential(
            nn.Unflatten(1, (1, side)), nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 5), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * left * left, 10),
        )  # fmt: skip

    def learned(self, model: nn.Module, state: Update, rows: tuple[torch.Tensor, torch.Tensor]) -> Update:
        """What a site changes in an epoch of SGD."""
        _load(model, state)
        optimizer = torch.optim.SGD(model.parameters(), lr=self.rate)
        for images, labels in zip(rows[0].split(self.batch), rows[1].split(self.batch), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
        return {name: x.detach().numpy() - state[name] for name, x in model.state_dict().items()}


@dataclass(frozen=True)
class Lies:
    """The first `sites` send the opposite of what they learned, 30 times as long ("far") or of the bound's norm ("within"),
    or uniform numbers of any size that fits ("noise")."""

    sites: int = 0
    how: Attack = "far"

    def of(self, learned: Update, bound: float) -> Update:
        if self.how == "within":
            return {name: -x for name, x in _with_norm(learned, 0.999 * bound).items()}
        if self.how == "noise":
            return {name: np.random.uniform(-LIMIT, LIMIT, x.shape).astype(x.dtype) for name, x in learned.items()}
        return {name: np.clip(-30 * x, -LIMIT, LIMIT) for name, x in learned.items()}


def fedavg(
    data: Federation,
    training: Training,
    aggregation: Aggregation | None,
    *,
    bound: float,
    lies: Lies = Lies(),
    backward: bool = False,
) -> tuple[float, float]:
    """(accuracy on what is held out, seconds of aggregation) after FedAvg with equal weights; None: in the clear.

    Honest sites clip their updates to the norm `bound`. `backward`: sums in the clear from the last site to the first.
    """
    model = training.network(data.held_out[0].shape[1])
    state, seconds, accuracies = _state(model), 0.0, list[float]()
    task = aggregation and _task(aggregation, state, len(data.sites))
    federation = task and open_local(task)
    for number in range(training.rounds):
        updates = [
            lies.of(learned, bound) if site < lies.sites else _clipped(learned, bound)
            for site, learned in enumerate(training.learned(model, state, rows) for rows in data.sites)
        ]
        start = time.perf_counter()
        moved = (
            _mean(updates[:: -1 if backward else 1])
            if federation is None
            else _revealed(_aggregated(federation, number, updates))
        )
        seconds += time.perf_counter() - start
        state = {name: (x + moved[name]).astype(np.float32) for name, x in state.items()}
        if number >= training.rounds - training.judged:
            _load(model, state)
            images, labels = data.held_out
            accuracies.append(float((model(images).argmax(1) == labels).float().mean()))
    if federation:
        federation.close()
    return float(np.mean(accuracies)), seconds


def tuned(data: Federation, training: Training, lies: Lies) -> float:
    """The bound, from a histogram of the norms of all sites after a pilot in which nobody lies."""
    model = training.network(data.held_out[0].shape[1])
    state = _state(model)
    for _ in range(PILOT):
        moved = _mean([training.learned(model, state, rows) for rows in data.sites])
        state = {name: x + moved[name] for name, x in state.items()}
    learned = [training.learned(model, state, rows) for rows in data.sites]
    sent = [lies.of(each, EDGES[-1]) if site < lies.sites else each for site, each in enumerate(learned)]
    with open_local(_task(norm_histogram(EDGES), state, len(data.sites))) as federation:
        counts = _revealed(_aggregated(federation, 0, sent))["counts"]
    below = np.cumsum(counts)[: len(EDGES)]
    return EDGES[min(int(np.searchsorted(below, len(data.sites) / 2)), len(EDGES) - 1)]


def _task(aggregation: Aggregation, state: Update, sites: int) -> Task:
    return Task("digits", aggregation, Layout.of(state), slots=sites, limit=LIMIT, minimum=sites // 2)


def _state(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: x.detach().numpy().copy() for name, x in model.state_dict().items()}


def _load(model: nn.Module, state: Update) -> None:
    model.load_state_dict({name: torch.from_numpy(x) for name, x in state.items()})


def _mean(updates: Sequence[Update]) -> Update:
    return {name: np.mean([each[name] for each in updates], axis=0) for name in updates[0]}


def _norm(update: Update) -> float:
    return float(np.sqrt(sum(np.square(x, dtype=np.float64).sum() for x in update.values())))


def _with_norm(update: Update, norm: float) -> dict[str, np.ndarray]:
    factor = np.float32(norm / _norm(update))
    return {name: x * factor for name, x in update.items()}


def _clipped(update: Update, bound: float) -> Update:
    return update if _norm(update) <= 0.999 * bound else _with_norm(update, 0.999 * bound)


def _aggregated(federation: LocalFederation, number: int, updates: Sequence[Update]) -> Outcome:
    card = federation.card(number)
    for site, update in enumerate(updates):
        encoded = encode(replace(card, bound=None), update)  # liars do not check themselves
        for rank, part in share_elements(card, encoded, 1, f"site{site}").items():
            federation.receive(number, rank, f"site{site}", part)
    return federation.finish(number)


def _revealed(outcome: Outcome) -> Update:
    if outcome.aggregate is None:
        raise click.ClickException(f"a round has no result: {outcome.revealed}; {outcome.refused}")
    return outcome.aggregate


# ---- all runs
Run = tuple[str, Callable[[float], Aggregation | None], Lies, int]
"""What it is, its aggregation by the bound, who lies, and how many of the first sites are left out."""
LIARS, AGAIN = 2, "clear, sums in another order"


def runs() -> list[Run]:
    """All runs that are compared with the first one."""
    clear, plain = lambda bound: None, lambda bound: mean()
    bounded, trimmed = norm_bounded_mean, lambda bound: trimmed_mean(0.2)
    mixed = lambda bound: trimmed_mean(0.2, dishonest=LIARS, bound=bound)
    nobody, far, noise, within = Lies(), Lies(LIARS), Lies(LIARS, "noise"), Lies(LIARS, "within")
    return [
        ("clear", clear, nobody, 0), (AGAIN, clear, nobody, 0), ("mean", plain, nobody, 0), ("norm-bounded", bounded, nobody, 0),
        ("trimmed", trimmed, nobody, 0), ("clear, without the two", clear, nobody, LIARS),
        ("mean, 2 poisoned", plain, far, 0), ("norm-bounded, 2 poisoned", bounded, far, 0),
        ("trimmed, 2 poisoned", trimmed, far, 0), ("mean, 2 send noise", plain, noise, 0),
        ("norm-bounded, 2 send noise", bounded, noise, 0), ("trimmed, 2 send noise", trimmed, noise, 0),
        ("mean, 2 within the bound", plain, within, 0), ("norm-bounded, 2 within the bound", bounded, within, 0),
        ("trimmed, 2 within the bound", trimmed, within, 0), ("mixed, trimmed", mixed, nobody, 0),
        ("mixed, trimmed, 2 poisoned", mixed, far, 0), ("mixed, trimmed, 2 send noise", mixed, noise, 0),
        ("mixed, trimmed, 2 within the bound", mixed, within, 0),
    ]  # fmt: skip


def learn(images: Path, held_out: float, training: Training, seeds: int) -> list[dict[str, str | float]]:
    """The rows of all runs: of each seed, and their means on the console. Seeds change the mixes and the first model."""
    rows, made = [], runs()
    for seed in range(seeds):
        data, own = Federation.of(images, 10, held_out, seed=seed), replace(training, seed=seed)
        bound = tuned(data, own, Lies(LIARS))
        for name, aggregation, lies, without in made:
            left = replace(data, sites=data.sites[without:])
            backward = name == AGAIN
            accuracy, seconds = fedavg(left, own, aggregation(bound), bound=bound, lies=lies, backward=backward)
            rows.append({"case": "learning", "what": name, "seed": seed, "bound": bound, "accuracy": accuracy,
                         "seconds": seconds})  # fmt: skip
            click.echo(
                f"seed {seed}, bound {bound:.2f}, {name}: {accuracy:.2%}, {seconds:.1f} s of aggregation", err=True
            )
    table = Table("FedAvg of 10 sites", "accuracy", "beside clear", "worst seed", "s of aggregation")
    clear = np.array([row["accuracy"] for row in rows if row["what"] == "clear"])
    for name, *_ in made:
        mine = [row for row in rows if row["what"] == name]
        accuracies = np.array([row["accuracy"] for row in mine])
        apart, seconds = accuracies - clear, float(np.mean([row["seconds"] for row in mine]))
        worst = apart[np.argmax(np.abs(apart))]
        table.add_row(name, f"{accuracies.mean():.2%}", f"{apart.mean():+.2%}", f"{worst:+.2%}", f"{seconds:.1f}")
    Console(width=120).print(table)
    return rows
