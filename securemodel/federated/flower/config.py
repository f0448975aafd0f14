"""Who a Flower app's aggregators are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocols.errors import ConfigError, InputError, explain
from securemodel.edge.federation import Federation
from securemodel.edge.rounds import Layout, RoundCard
from securemodel.federated.aggregations import Aggregation
from securemodel.federated.flower.strategy import Aggregators, Opens
from securemodel.federated.local import open_local
from securemodel.federated.task import TO_AGGREGATORS, TO_CLIENTS, Outcome, Task

_LATE_S = 1.0
"""How long an aggregator is given to say that a part came after the deadline, which is by its clock."""


def insecure_local(aggregation: Aggregation, *, slots: int, name: str = "flower", **options: Any) -> Opens:
    """All aggregators of a task in the server's own process, which so can put the shares together: for simulations.

    `slots`: how many clients a round has at most; `options` are those of `Task`, such as `limit` and `max_weight`.
    """

    def opens(layout: Layout) -> Aggregators:
        return open_local(Task(name, aggregation, layout, slots=slots, **options))

    return opens


def relay(file: str | Path | Mapping[str, Any], *, key: str = "", patience_s: float = 60.0) -> Opens:
    """The aggregators of a federation.json, each where it runs; the server hands them what the clients sealed.

    Rounds begin and end when the aggregators say so. `key`: the API key, where they ask for one; `patience_s`: how long
    after a deadline an answer may take. Raises ConfigError where the task is of other arrays than the app's model.
    """
    return lambda layout: _Relay(Federation(file, key=key), layout, patience_s)


class _Relay:
    """Aggregators elsewhere, asked over HTTP."""

    def __init__(self, federation: Federation, layout: Layout, patience_s: float) -> None:
        self._federation, self._layout, self._patience_s = federation, layout, patience_s
        self._card: RoundCard | None = None

    def card(self, number: int, *, model: str = "") -> RoundCard:
        """The round that begins next; its number is that of the aggregators."""
        last = -1 if self._card is None else self._card.round
        card = self._federation.card(after=last, timeout=self._patience_s)
        if card.layout != self._layout:
            raise ConfigError(
                explain(
                    "the aggregators' task is of other arrays than the app's model and metrics",
                    where=f"task {card.task!r}",
                    fix="give the task layout_of(arrays, metrics, integers=False) of securemodel.edge.flower",
                )
            )
        self._card = card
        return card

    def receive(self, number: int, rank: int, client: str, data: bytes) -> None:
        """Hands an aggregator a client's part, and waits for it little longer than until the round's deadline."""
        left = self._patience_s if self._card is None else self._card.deadline - time.time()
        self._federation.pass_on(number, rank, client, data, timeout=min(max(left, _LATE_S), self._patience_s))

    def finish(self, number: int) -> Outcome:
        """The aggregate, once the round has ended; who was in is known to the aggregators alone."""
        if self._card is None:
            raise InputError(explain(f"round {number} is not open", fix="ask for its card first"))
        left = max(0.0, self._card.deadline - time.time()) + self._patience_s
        if self._card.reveal == "clients":
            self._federation.sealed_result(number, "", timeout=left)  # nobody's: it tells that there is one
            return Outcome(None, (), (), {}, TO_CLIENTS, {})
        aggregate = self._federation.revealed(self._card, timeout=left)
        return Outcome(aggregate, (), (), {}, TO_AGGREGATORS, {})

    def delivered(self, number: int, client: str) -> dict[int, bytes] | None:
        """What the aggregators sealed for a client of a round's result; None for one that was in no round."""
        return self._federation.sealed_result(number, client, timeout=self._patience_s)
