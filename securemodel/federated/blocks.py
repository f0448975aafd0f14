"""Updates piece by piece: the same numbers of all of them, as programs take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from securemodel.edge.updates import RoundCard
from securemodel.federated.uploads import Inbox

GROUP = 1 << 20
"""How many numbers of all uploads are added before the next ones."""


def groups(card: RoundCard, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of so many numbers of an update."""
    return ((start, min(start + size, card.count)) for start in range(0, card.count, size))


def total_of(inbox: Inbox, clients: Sequence[str]) -> np.ndarray:
    """This aggregator's share of the sum of updates; of all uploads, a piece of one is in memory at a time."""
    total = np.zeros(inbox.card.count, inbox.card.dtype)
    for first, last in groups(inbox.card, GROUP):
        for client in clients:
            for place, share in inbox.part(client).pieces(inbox.card, first, last):
                total[place] += share
    return total


def columns(inbox: Inbox, clients: Sequence[str], slots: int, start: int, stop: int, block: int) -> torch.Tensor:
    """This aggregator's shares of numbers of all updates, int64 (block, slots): zeros where there are no more."""
    out = torch.zeros(block, slots, dtype=torch.int64)
    for slot, client in enumerate(clients):
        share = inbox.part(client).share(inbox.card, start, stop)
        out[: stop - start, slot] = torch.from_numpy(share.view(np.int64).copy())
    return out
