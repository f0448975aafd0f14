"""An aggregator's walk through a closed round: what it computes of its shares, what it tells the others.

A walk is a generator. It yields an `Exchange`, and is sent what every aggregator gave, by rank; or a `Run` of a program of
the task, and is sent its own share of each output. Whoever steps it has the channels and the session.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from protocols.errors import Mismatch, explain
from securemodel.edge.updates import RoundCard, arrays_of, combine
from securemodel.federated.blocks import columns, groups, total_of
from securemodel.federated.noise import with_noise
from securemodel.federated.projections import project
from securemodel.federated.spool import drawn_once
from securemodel.federated.task import Task
from securemodel.federated.uploads import Inbox, Presence


@dataclass(frozen=True)
class Exchange:
    """Bytes for all other aggregators, who give as many of their own: the same label at all."""

    label: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Run:
    """A run of a program of the task, by its number, on this aggregator's shares; `manifest`: what all have in common."""

    program: int
    shares: Sequence[torch.Tensor] = field(repr=False)
    manifest: bytes


Walk = Generator[Exchange | Run, Any, Any]


@dataclass(frozen=True)
class Made:
    """This aggregator's share of a total, in units of `unit`, and of what to divide it by; who counts, and who does not.

    Where fewer count than the round needs, there is no total, and nothing may be revealed.
    """

    total: np.ndarray = field(repr=False)
    divisor: int = field(repr=False)
    unit: float
    accepted: tuple[str, ...]
    refused: dict[str, str]


@dataclass(frozen=True)
class Round:
    """One aggregator's side of a round, and who is present."""

    task: Task
    inbox: Inbox
    presence: Presence

    @property
    def first(self) -> bool:
        """Whether this aggregator is the one that adds what is public."""
        return self.inbox.rank == 0

    def nothing(self, accepted: Sequence[str], refused: dict[str, str]) -> Made:
        """Fewer clients count than the round needs."""
        return Made(np.zeros(0, np.uint64), 0, self.inbox.card.unit, tuple(accepted), refused)

    def run(self, name: str, *shares: torch.Tensor) -> Walk:
        """This aggregator's share of what a program gives."""
        told = f"{self.inbox.card.digest} {name} {self.presence.present}"
        outputs = yield Run(self.task.numbers[name], shares, sha256(told.encode()).digest())
        return outputs[0]

    def public(self, values: Sequence[int]) -> torch.Tensor:
        """A share of what everybody knows."""
        known = torch.tensor(values, dtype=torch.int64)
        return known if self.first else torch.zeros_like(known)

    def slots(self, clients: Sequence[str], values: torch.Tensor) -> torch.Tensor:
        """Rows of clients, followed by zeros for the slots that are free."""
        return torch.cat([values, values.new_zeros(self.task.slots - len(clients), *values.shape[1:])])

    def open_bits(self, label: str, clients: Sequence[str], share: torch.Tensor) -> Walk:
        """Which clients a program chose; all aggregators learn it. The same ones when a round is repeated, or Mismatch:
        sums over two sets of clients would tell the difference of these."""
        parts = yield Exchange(label, share.numpy().tobytes())
        bits = combine([np.frombuffer(part, np.uint64) for part in parts])[: len(clients)]
        chosen = [client for client, bit in zip(clients, bits, strict=True) if bit == 1]
        told = "\n".join(chosen).encode()
        if drawn_once(self.inbox.spool.folder / label, "the choice of a round", lambda: told) != told:
            others = [x.name for rank, x in enumerate(self.inbox.card.aggregators) if rank != self.inbox.rank]
            what = f"other clients count than when round {self.inbox.card.round} was begun before"
            why = f"{' or '.join(others)} gave another share of the same choice"
            raise Mismatch(others[0], explain(what, why=why, fix="look at that aggregator; run the same version"))
        return chosen

    @property
    def high(self) -> int:
        """More than any number of an update that is within its range."""
        return 4 * self.task.bounds.reach + 1

    def free(self, taken: int, high: int) -> torch.Tensor:
        """A share of what is in slots that are free: `high`, up and down in turns."""
        return self.public([high if at % 2 else -high for at in range(self.task.slots - taken)])

    def each_block(self, name: str, clients: Sequence[str], *more: torch.Tensor, high: int = 0) -> Walk:
        """A program's outputs for all blocks, with `more` inputs; `high`: what is in free slots, up and down in turns."""
        task, made = self.task, []
        free = self.free(len(clients), high)
        for start, stop in groups(self.inbox.card, task.block):
            each = columns(self.inbox, clients, task.slots, start, stop, task.block)
            each[:, len(clients) :] = free
            made.append((yield from self.run(name, each, *more)))
        return made


def walk(task: Task, inbox: Inbox, presence: Presence) -> Walk:
    """Aggregates who is present: returns what was `Made`. All aggregators step it with the same presence.

    Raises Mismatch where another aggregator does not do as it should.
    """
    own, present = Round(task, inbox, presence), presence.present
    if len(present) < task.minimum:
        return own.nothing(present, {})
    accepted = yield from _admitted(own)
    why = "its update is beyond its bounds" if task.aggregation.rows else "its weight is out of range"
    refused = {client: why for client in present if client not in accepted}
    if len(accepted) < task.minimum:
        return own.nothing(accepted, refused)
    return (yield from KINDS[task.aggregation.kind](own, accepted, refused))


def protected(task: Task, inbox: Inbox, made: Made) -> Made:
    """With this aggregator's noise in its share, where the task wants it."""
    if task.protection is None:
        return made
    return replace(made, total=with_noise(inbox.spool.folder, task.protection, made.total, made.unit, task.max_weight))


def open_result(task: Task, made: Made) -> Walk:
    """(total, divisor) in the clear, at every aggregator."""
    mine = made.total.tobytes() + (made.divisor % 2**64).to_bytes(8, "little")
    parts = yield Exchange("result", mine)
    total = combine([np.frombuffer(part[:-8], made.total.dtype) for part in parts])
    return total, sum(int.from_bytes(part[-8:], "little") for part in parts) % 2**64


# ---- who counts
def _admitted(own: Round) -> Walk:
    """Who is within its bounds; all aggregators learn it."""
    task, clients = own.task, own.presence.present
    if "admit" not in task.numbers:
        return tuple(clients)
    here = own.public([1] * len(clients))
    counted = _weights(own, clients) if task.aggregation.weighted else here
    weights = counted if task.premultiplied else here
    inputs = [counted, own.public([task.max_weight] * len(clients)) - counted]
    if task.aggregation.rows:
        seed = yield from toss(own)
        each = project(own.inbox, clients, seed, task.aggregation.rows) << (64 - own.inbox.card.bits)
        reach, root = task.bounds.limits(weights)
        inputs = [each, reach, *inputs] + ([each, root] if task.aggregation.bound is not None else [])
    share = yield from own.run("admit", *(own.slots(clients, x) for x in inputs))
    return tuple((yield from own.open_bits("accepted", clients, share)))


def _weights(own: Round, clients: Sequence[str]) -> torch.Tensor:
    each = [own.inbox.part(client).weight() for client in clients]
    return torch.from_numpy(np.array(each, np.uint64).view(np.int64))


def toss(own: Round) -> Walk:
    """32 bytes that no aggregator could choose: each commits to its own before it sees those of the others.

    They are the same when a round is repeated. With others, a client near a bound might pass in one of the repetitions
    alone, and the sums over two sets of clients would tell what it sent.
    """
    mine = drawn_once(own.inbox.spool.folder / "toss", "the toss of a round", lambda: os.urandom(32))
    bound = lambda rank, drawn: sha256(f"toss {own.inbox.card.digest} {rank} ".encode() + drawn).digest()
    promised = yield Exchange("toss", bound(own.inbox.rank, mine))
    drawn = yield Exchange("tossed", mine)
    names = [each.name for each in own.inbox.card.aggregators]
    for rank, (name, before, now) in enumerate(zip(names, promised, drawn, strict=True)):
        if bound(rank, now) != before:
            what = f"aggregator {name!r} opened another toss than it had promised"
            raise Mismatch(
                name, explain(what, why="it could choose how updates are checked", fix="look at that aggregator")
            )
    return bytes(np.bitwise_xor.reduce([np.frombuffer(each, np.uint8) for each in drawn]))


# ---- what is computed
def _sum(own: Round, accepted: Sequence[str], refused: dict[str, str]) -> Walk:
    """The sum of updates, and the number of clients or the sum of their weights: no more talk."""
    yield from ()
    total = total_of(own.inbox, accepted)
    if own.task.aggregation.weighted:
        divisor = sum(own.inbox.part(client).weight() for client in accepted) % 2**64
    else:
        divisor = len(accepted) if own.first else 0
    return Made(total, divisor, own.inbox.card.unit, tuple(accepted), refused)


def _vector(own: Round, blocks: Sequence[torch.Tensor], divisor: int, accepted, refused) -> Made:
    """A total out of its blocks."""
    total = torch.cat(list(blocks))[: own.inbox.card.count].contiguous().numpy().view(np.uint64)
    return Made(total, divisor if own.first else 0, own.inbox.card.unit, tuple(accepted), refused)


def _added(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(blocks)).sum(0)


def _scaled(own: Round, accepted: Sequence[str], refused: dict[str, str]) -> Walk:
    """The sum of updates, each times min(1, bound / norm), which nobody learns."""
    squares = _added((yield from own.each_block("squares", accepted)))
    factors = yield from own.run("factors", squares[0])
    blocks = yield from own.each_block("combine", accepted, factors)
    return _vector(own, blocks, len(accepted), accepted, refused)


def _sorted(own: Round, accepted: Sequence[str], refused: dict[str, str]) -> Walk:
    """Sums of those in the middle of all that are sorted: free slots are beyond both ends."""
    here, free = len(accepted), own.task.slots - len(accepted)
    cut = min(int(own.task.aggregation.trim * here), (here - 1) // 2)
    first = (free + 1) // 2 + cut
    if own.task.aggregation.mixes:
        dishonest = max(own.task.aggregation.dishonest - len(refused), 0)
        if here <= 2 * dishonest:
            return own.nothing((), {**refused, **dict.fromkeys(accepted, TOO_FEW)})
        mixed = here - dishonest
        blocks = yield from _mixed(own, accepted, mixed)
    else:
        mixed = 1
        blocks = yield from own.each_block("sorted", accepted, high=own.high)
    middle = [block[:, first : first + here - 2 * cut].sum(1) for block in blocks]
    return _vector(own, middle, (here - 2 * cut) * mixed, accepted, refused)


def _mixed(own: Round, accepted: Sequence[str], keep: int) -> Walk:
    """Blocks in order of the sums of each update and its nearest, `keep` altogether; nobody learns which they are.

    Distances are made different by the slot in their lowest bits, so that exactly `keep` are at most the limit.
    """
    here, slots = len(accepted), own.task.slots
    bits = (slots - 1).bit_length()
    distances = (yield from _distances(own, accepted)) << bits
    distances = distances + own.public(range(slots))
    ordered = yield from own.run("distances", distances)
    chosen = yield from own.run("nearest", distances, ordered[:, keep - 1].contiguous())
    free, made = own.free(here, keep * own.high), []
    for block in (yield from own.each_block("mixed", accepted, chosen)):
        sums = torch.cat([block[:, :here], free.expand(len(block), -1)], 1)
        made.append((yield from own.run("sorted", sums)))
    return made


_FAR = 1 << 61
TOO_FEW = "there are too few others to compare it with"


def _distances(own: Round, accepted: Sequence[str]) -> Walk:
    """Squared distances of updates (slots, slots); free slots are far from all."""
    here = len(accepted)
    products = _added((yield from own.each_block("products", accepted)))
    squares = products.diagonal()
    distances = squares[:, None] + squares[None, :] - 2 * products
    distances.fill_diagonal_(0)
    far = _FAR >> (own.task.slots - 1).bit_length() if own.task.aggregation.mixes else _FAR
    distances[here:, :] = distances[:, here:] = far if own.first else 0
    return distances


def _closest(own: Round, accepted: Sequence[str], refused: dict[str, str]) -> Walk:
    """The sum of the updates that are closest to their neighbors."""
    here, chosen = len(accepted), own.task.aggregation
    neighbors = here - chosen.dishonest - 2
    if neighbors < 1 or here < chosen.keep:
        return own.nothing((), {**refused, **dict.fromkeys(accepted, TOO_FEW)})
    distances = yield from _distances(own, accepted)
    ordered = yield from own.run("distances", distances)
    scores = ordered[:, : neighbors + 1].sum(1)
    scores[here:] = _FAR if own.first else 0
    share = yield from own.run("lowest", scores)
    kept = tuple((yield from own.open_bits("chosen", accepted, share)))
    others = {client: "others are closer to each other" for client in accepted if client not in kept}
    return (yield from _sum(own, kept, {**refused, **others}))


def _norms(own: Round, accepted: Sequence[str], refused: dict[str, str]) -> Walk:
    """How many norms are at least each edge; who is far beyond the last one is among them."""
    squares = _added((yield from own.each_block("squares", accepted)))[0]
    squares[len(accepted) :] = -1 if own.first else 0
    edges = own.public([math.ceil((edge / own.inbox.card.unit) ** 2) for edge in own.task.aggregation.edges])
    counts = yield from own.run("at_least", squares, edges)
    counts = counts + own.public([len(refused)] * len(counts))
    total = counts.numpy().view(np.uint64)
    return Made(total, 1 if own.first else 0, 1.0, own.presence.present, {})


def _custom(own: Round, accepted: Sequence[str], refused: dict[str, str]) -> Walk:
    """What a function of one's own makes of updates and weights."""
    weights = _weights(own, accepted) if own.task.aggregation.weighted else own.public([1] * len(accepted))
    blocks = yield from own.each_block("combine", accepted, own.slots(accepted, weights))
    return _vector(own, blocks, 1, accepted, refused)


KINDS: Mapping[str, Callable[[Round, Sequence[str], dict[str, str]], Walk]] = {
    "sum": _sum,
    "scaled": _scaled,
    "sorted": _sorted,
    "closest": _closest,
    "norms": _norms,
    "custom": _custom,
}


def aggregate_of(
    task: Task, card: RoundCard, clients: int, opened: tuple[np.ndarray, int], unit: float
) -> dict[str, Any]:
    """The arrays of an opened (total, divisor); of a histogram, its edges and counts of so many clients."""
    total, divisor = opened
    if task.aggregation.kind != "norms":
        return arrays_of(card, total, divisor, unit)
    counts = [more - less for more, less in pairwise([clients, *map(int, total), 0])]
    return {"edges": np.array(task.aggregation.edges), "counts": np.array(counts)}
