"""An aggregator's walk through a closed round: what it computes of its shares, what it tells the others.

A walk is a generator. It yields an `Exchange`, and is sent what every aggregator gave, by rank. Whoever steps it has the
channels.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from securemodel.edge.updates import combine
from securemodel.federated.noise import with_noise
from securemodel.federated.task import Task
from securemodel.federated.uploads import Inbox, Presence

PIECE = 1 << 18
"""How many numbers of an upload are added at a time."""


@dataclass(frozen=True)
class Exchange:
    """Bytes for all other aggregators, who give as many of their own: the same label at all."""

    label: str
    data: bytes = field(repr=False)


Walk = Generator[Exchange, Any, "Made"]


@dataclass(frozen=True)
class Made:
    """This aggregator's share of a total in units of `unit`, and of what to divide it by."""

    total: np.ndarray = field(repr=False)
    divisor: int = field(repr=False)
    unit: float
    accepted: tuple[str, ...]
    refused: dict[str, str]


def walk(task: Task, inbox: Inbox, presence: Presence) -> Walk:
    """Aggregates who is present. All aggregators step it with the same presence."""
    present = presence.present
    yield from ()
    total = total_of(inbox, present)
    if task.aggregation.weighted:
        divisor = sum(inbox.part(client).weight() for client in present) % 2**64
    else:
        divisor = len(present) if inbox.rank == 0 else 0
    return Made(total, divisor, inbox.card.unit, present, {})


def protected(task: Task, inbox: Inbox, made: Made) -> Made:
    """With this aggregator's noise in its share, where the task wants it."""
    if task.protection is None:
        return made
    return replace(made, total=with_noise(inbox.spool.folder, task.protection, made.total, made.unit))


def open_result(task: Task, made: Made) -> Generator[Exchange, list[bytes], tuple[np.ndarray, int]]:
    """(total, divisor) in the clear, at every aggregator."""
    mine = made.total.tobytes() + (made.divisor % 2**64).to_bytes(8, "little")
    parts = yield Exchange("result", mine)
    total = combine([np.frombuffer(part[:-8], made.total.dtype) for part in parts])
    return total, sum(int.from_bytes(part[-8:], "little") for part in parts) % 2**64


def total_of(inbox: Inbox, clients: Sequence[str]) -> np.ndarray:
    """This aggregator's share of the sum of updates; of all uploads, a piece of one is in memory at a time."""
    card = inbox.card
    total = np.zeros(card.count, card.dtype)
    for start in range(0, card.count, PIECE):
        stop = min(start + PIECE, card.count)
        for client in clients:
            total[start:stop] += inbox.part(client).share(card, start, stop)
    return total
