"""What fits of several columns ask of a joint table, put together into few queries.

A fit that needs the other parties is a generator: it yields an `Ask` and is sent its results. All columns' fits go on side by
side, so a round of theirs is one query, whatever the number of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from protocols.errors import InputError, explain
from securemodel.data.query import Query, Tensors
from securemodel.training.datasets import Owned

Results = Mapping[str, torch.Tensor | None]
Fit = Generator["Ask", Results, dict[str, torch.Tensor]]
"""Gives the parameters in the end; those that are not for the parties of this process are zeros."""


@dataclass(frozen=True, repr=False)
class Ask:
    """A part of a query, see there. `what` names it in plans and errors; `reveal`: who learns each result."""

    what: str
    finish: Callable[..., Tensors]
    reveal: Mapping[str, str]
    rows: Mapping[str, tuple[Owned, ...]] = field(default_factory=dict)
    once: Mapping[str, Owned] = field(default_factory=dict)
    sums: Callable[..., Tensors] = dict
    frac_bits: int = 16
    whole: bool = False


def ask_all(asks: Sequence[Ask], ask: Callable[[Query], Results]) -> list[Results]:
    """The results of each, by as few queries as there are kinds: with rows, all at once or in blocks, and without, and of
    unlike precision."""
    groups: dict[tuple[bool, bool, int], list[int]] = {}
    for at, one in enumerate(asks):
        groups.setdefault((bool(one.rows), one.whole, one.frac_bits), []).append(at)
    found: list[Results] = [{} for _ in asks]
    for places in groups.values():
        results = ask(merged([asks[at] for at in places]))
        for number, at in enumerate(places):
            found[at] = {name: results[f"{name}_{number}"] for name in asks[at].reveal}
    return found


def merged(asks: Sequence[Ask]) -> Query:
    """One query of several: names of arguments and results end in the number of what they belong to."""

    def apart(given: Mapping[str, Any]) -> list[dict[str, Any]]:
        made: list[dict[str, Any]] = [{} for _ in asks]
        for name, value in given.items():
            own, _, number = name.rpartition("_")
            made[int(number)][own] = value
        return made

    def together(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {f"{name}_{number}": value for number, some in enumerate(results) for name, value in some.items()}

    def sums(**rows: torch.Tensor) -> Tensors:
        return together([one.sums(**some) for one, some in zip(asks, apart(rows), strict=True)])

    def finish(**given: torch.Tensor) -> Tensors:
        return together([one.finish(**some) for one, some in zip(asks, apart(given), strict=True)])

    return Query(
        ", ".join(one.what for one in asks), finish, reveal=together([one.reveal for one in asks]),
        rows=together([one.rows for one in asks]), once=together([one.once for one in asks]), sums=sums,
        frac_bits=asks[0].frac_bits, whole=asks[0].whole,
    )  # fmt: skip


def run_fits(fits: Sequence[Fit], ask: Callable[[Query], Results]) -> list[dict[str, torch.Tensor]]:
    """Steps all fits side by side until each has its parameters."""
    done: list[dict[str, torch.Tensor]] = [{} for _ in fits]
    waiting: dict[int, Ask] = {}

    def step(at: int, results: Results | None) -> None:
        try:
            waiting[at] = fits[at].send(results)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as end:
            waiting.pop(at, None)
            done[at] = end.value

    for at in range(len(fits)):
        step(at, None)
    while waiting:
        places = list(waiting)
        for at, results in zip(places, ask_all([waiting[at] for at in places], ask), strict=True):
            step(at, results)
    return done


# ---- numbers that are revealed bit for bit
def words_of(values: torch.Tensor) -> torch.Tensor:
    """The bits of float64[...] as int64[..., 4], each below 2^16."""
    bits = values.double().contiguous().view(torch.int64).unsqueeze(-1)
    return (bits >> torch.arange(0, 64, 16)) & 0xFFFF


def values_of(words: torch.Tensor) -> torch.Tensor:
    """The float64 of such words."""
    return (words << torch.arange(0, 64, 16)).sum(-1).contiguous().view(torch.float64)


def learnt(results: Mapping[str, torch.Tensor | None], name: str) -> torch.Tensor:
    """A result that is revealed to all. Raises InputError where this party was not to learn it."""
    found = results[name]
    if found is None:
        what = f"this party did not learn {name!r}, which a fit needs"
        raise InputError(explain(what, why="it was revealed to another party alone", fix='reveal it to "all"'))
    return found


def told(
    what: str, owner: str, of: Mapping[str, tuple[int, ...]], make: Callable[[], Mapping[str, torch.Tensor]]
) -> Fit:
    """Parameters that one party has, to all others, to the last bit."""
    sizes = {name: int(torch.Size(shape).numel()) for name, shape in of.items()}

    def words() -> torch.Tensor:
        made = make()
        return words_of(torch.cat([made[name].reshape(-1) for name in of]))

    given = Owned(owner, words, (sum(sizes.values()), 4), torch.int64)
    results = yield Ask(what, lambda words: {"told": words * 1}, {"told": "all"}, once={"words": given})
    parts = values_of(learnt(results, "told")).split(list(sizes.values()))
    return {name: part.reshape(of[name]) for name, part in zip(of, parts, strict=True)}
