"""Rounds in one process, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from securemodel.edge.updates import Layout, share_update
from securemodel.federated import Aggregation, LocalFederation, Outcome, Task, open_local

Updates = Mapping[str, Mapping[str, Any]]


def arrays(seed: int, scale: float = 1.0) -> dict[str, Any]:
    """An update: a matrix, a number without axes, half floats, and a counter."""
    rng = np.random.default_rng(seed)
    return {
        "weight": rng.uniform(-scale, scale, (3, 7)).astype(np.float32),
        "temperature": np.array(rng.uniform(-scale, scale)),
        "bias": rng.uniform(-scale, scale, 5).astype(np.float16),
        "batches": np.array(seed + 5),
    }


def task(aggregation: Aggregation, **options: Any) -> Task:
    return Task("demo", aggregation, Layout.of(arrays(0)), **{"slots": 8, **options})


def upload(
    federation: LocalFederation, updates: Updates, weights: Mapping[str, int] | None = None, **card: Any
) -> None:
    """All of a round's clients give all their parts."""
    told = federation.card(1, **card)
    for client, update in updates.items():
        for rank, part in share_update(told, update, weight=(weights or {}).get(client, 1), id=client).items():
            federation.receive(1, rank, client, part)


def play(made: Task, updates: Updates, weights: Mapping[str, int] | None = None, **card: Any) -> Outcome:
    """A whole round."""
    with open_local(made) as federation:
        upload(federation, updates, weights, **card)
        return federation.finish(1)


def clear_mean(updates: Updates, weights: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The (weighted) mean of the arrays that are aggregated, in the clear."""
    counts = [(weights or {}).get(client, 1) for client in updates]
    each = list(updates.values())
    names = [name for name in each[0] if name != "batches"]
    mean = lambda name: np.average([np.float64(update[name]) for update in each], axis=0, weights=counts)
    return {name: mean(name) for name in names}
