"""The server's side of a Flower app: a strategy's rounds, with the sum of the updates in place of the updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from logging import INFO, WARNING
from typing import Any, Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as strategies
from flwr.supercore import log

from protocols.errors import ConfigError, InputError, explain
from securemodel.edge.errors import EdgeError
from securemodel.edge.flower import METRIC, RECORD, card_record, layout_of, numpy_of, record_of, unpacked
from securemodel.edge.rounds import Layout, RoundCard, digest_of
from securemodel.federated.flower.results import Results
from securemodel.federated.task import TO_CLIENTS, Outcome

LOOK_AT_EACH = (
    "FedMedian", "FedTrimmedAvg", "Krum", "MultiKrum", "Bulyan", "QFedAvg", "FedXgbBagging", "FedXgbCyclic",
)  # fmt: skip
"""Strategies of Flower that look at each client's update, which nobody can here."""


class Aggregators(Protocol):
    """Who gets the shares of a round and gives its result: `securemodel.federated.open_local` makes one."""

    def card(self, number: int, *, model: str = "") -> RoundCard: ...
    def receive(self, number: int, rank: int, client: str, data: bytes) -> None: ...
    def finish(self, number: int) -> Outcome: ...
    def delivered(self, number: int, client: str) -> dict[int, bytes] | None: ...


Opens = Callable[[Layout], Aggregators]
"""Makes the aggregators of a task, once the arrays that it is about are known."""


class SecureStrategy(strategies.Strategy):
    """A strategy of Flower, such as FedAvg, FedAvgM, FedAdam or FedProx, that gets the aggregate and no update.

    `aggregators` makes those of training: `insecure_local(weighted_mean(), …)`, say. `metrics`: what clients report beside
    their updates, as part of the aggregate; each name with the largest magnitude that it can have. `integers`: whole
    numbers of a model (counters) are "keep", left as they are, or "round", averaged and rounded. `evaluate`: aggregators
    for rounds of evaluation, of `evaluate_metrics` alone; "clear": the strategy's own, where clients allow it; None: none.
    Where the task of training reveals to clients, the server never knows a model after the first: clients keep it, and get
    what moves it after each round; then the strategy is FedAvg or FedProx, and metrics are of evaluation alone. `outcomes` has what became of each round of training. Raises ConfigError for a strategy that has to see each update.
    """

    def __init__(
        self,
        strategy: strategies.FedAvg,
        aggregators: Opens,
        *,
        metrics: Mapping[str, float] | None = None,
        integers: str = "keep",
        evaluate: Opens | str | None = None,
        evaluate_metrics: Mapping[str, float] | None = None,
    ) -> None:
        _check(strategy)
        self.strategy = strategy
        self._integers = integers == "round"
        self._train = _Rounds(aggregators, dict(metrics or {}))
        self._evaluate = _Rounds(evaluate, dict(evaluate_metrics or {})) if callable(evaluate) else None
        self._clear = evaluate == "clear"
        self._model: dict[str, np.ndarray] = {}
        self._results, self._only_told = Results(), set[int]()
        self.outcomes: dict[int, Outcome] = {}

    def summary(self) -> None:
        """Logs what the strategy is."""
        log(INFO, "\t├──> Updates are shared with aggregators: the server sees their aggregate alone")
        self.strategy.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's messages, with the round's card."""
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self._model = numpy_of(arrays)
        layout = layout_of(self._model, self._train.metrics, integers=self._integers)
        messages = self._train.announce(messages, layout, self._model, self.strategy.weighted_by_key)
        if self._train.hidden:
            _check_hidden(self.strategy, self._train.metrics)
            self._tell(messages)
        return messages

    def _tell(self, messages: Iterable[Message]) -> None:
        """Puts what clients lack into messages."""
        for message in messages:
            self._results.add_to(message, self._train.deliver)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the strategy makes of the aggregate, as of one client that trained what all did; (None, None) without one."""
        replies = list(replies)
        outcome = self._train.collect(replies)
        self.outcomes[server_round] = replace(outcome, deliveries=None)
        if self._train.hidden:
            self._results.heard(replies)
            if outcome.revealed == TO_CLIENTS:
                self._results.ended(self._train.last_card)
        if outcome.aggregate is None:
            return None, None
        model = _moved(self._model, outcome.aggregate)
        reply = self._reply(outcome.aggregate, self._train.metrics)
        reply.content[self.strategy.arrayrecord_key] = record_of(model)
        arrays, metrics = self.strategy.aggregate_train(server_round, [reply])
        return arrays and _as_before(arrays, model), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's messages, with a card of their own, where evaluation was asked for."""
        messages = self._asked_to_evaluate(server_round, arrays, config, grid)
        if not self._train.hidden:
            return messages
        self._tell(messages)
        asked = {message.metadata.dst_node_id for message in messages}
        others = self._results.alone(set(grid.get_node_ids()) - asked, self._train.deliver)
        self._only_told = {message.metadata.dst_node_id for message in others}
        return messages + others

    def _asked_to_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        if self._evaluate is None and not self._clear:
            return []
        messages = list(self.strategy.configure_evaluate(server_round, arrays, config, grid))
        if self._evaluate is None:
            return messages
        layout = layout_of({}, self._evaluate.metrics, integers=False)
        return self._evaluate.announce(messages, layout, numpy_of(arrays), self.strategy.weighted_by_key)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """What the strategy makes of the aggregated metrics, if there are any."""
        if self._train.hidden:
            replies = list(replies)
            self._results.heard(replies)
            for reply in replies:
                if reply.has_error():
                    log(WARNING, "client %s: %s", reply.metadata.src_node_id, reply.error.reason.split("\n", 1)[0])
            replies = [reply for reply in replies if reply.metadata.src_node_id not in self._only_told]
        if self._clear:
            return self.strategy.aggregate_evaluate(server_round, replies)
        if self._evaluate is None:
            return None
        outcome = self._evaluate.collect(replies)
        if outcome.aggregate is None:
            return None
        return self.strategy.aggregate_evaluate(server_round, [self._reply(outcome.aggregate, self._evaluate.metrics)])

    def _reply(self, aggregate: Mapping[str, Any], bounds: Mapping[str, float]) -> Message:
        """The aggregate's metrics as those of one client."""
        found = {name: float(aggregate[METRIC + name]) for name in bounds}
        metrics = MetricRecord({self.strategy.weighted_by_key: 1, **found})
        return Message(RecordDict({"metrics": metrics}), dst_node_id=0, message_type="train")


def _check(strategy: strategies.Strategy) -> None:
    kind = type(strategy).__name__
    each = [base.__name__ for base in type(strategy).__mro__ if base.__name__ in LOOK_AT_EACH]
    if each or not isinstance(strategy, strategies.FedAvg):
        raise ConfigError(
            explain(
                f"the strategy {kind} cannot work on the aggregate alone",
                why="it looks at the update of each client, or is not a kind of Flower's FedAvg",
                fix="take FedAvg, FedAvgM, FedAdam or FedProx, and an aggregation such as trimmed_mean(), median() or "
                "norm_bounded_mean() for the aggregators",
            )
        )


def _check_hidden(strategy: strategies.FedAvg, metrics: Mapping[str, float]) -> None:
    """Raises ConfigError for what the server would have to know the aggregate for."""
    if type(strategy).aggregate_train is not strategies.FedAvg.aggregate_train or metrics:
        kind = type(strategy).__name__
        raise ConfigError(
            explain(
                f"{kind} with metrics of training" if metrics else f"the strategy {kind} works on the aggregate",
                why="the task reveals to clients alone, so the server has none",
                fix="take FedAvg or FedProx, and metrics of evaluation; or reveal to aggregators",
            )
        )


class _Rounds:
    """The rounds of one task."""

    def __init__(self, opens: Opens, metrics: dict[str, float]) -> None:
        self.metrics = metrics
        self._opens = opens
        self._opened: tuple[Layout, Aggregators] | None = None
        self._card: RoundCard | None = None
        self._number = 0

    @property
    def last_card(self) -> RoundCard:
        """The card of the round that was announced last. Raises InputError before the first."""
        if self._card is None:
            raise InputError(explain("no round has begun", fix="begin one"))
        return self._card

    @property
    def hidden(self) -> bool:
        """Whether clients alone get the aggregates."""
        return self._card is not None and self._card.reveal == "clients"

    def deliver(self, number: int, client: str) -> dict[int, bytes] | None:
        """What the aggregators sealed for a client."""
        return self._opened[1].delivered(number, client) if self._opened else None

    def announce(
        self, messages: list[Message], layout: Layout, model: Mapping[str, np.ndarray], weight: str
    ) -> list[Message]:
        """Opens a round, and tells the clients."""
        if self._opened is None:
            self._opened = layout, self._opens(layout)
        before, aggregators = self._opened
        if layout != before:
            raise InputError(explain("the model has other arrays than in the round before", fix="begin a new task"))
        self._card = None
        if not messages:
            return messages
        self._number += 1
        card = aggregators.card(self._number, model=digest_of(model))
        if len(messages) > card.slots:
            raise ConfigError(
                explain(
                    f"the strategy asks {len(messages)} clients, and the task has {card.slots} slots",
                    fix="give the task more slots, or the strategy a smaller fraction_train",
                )
            )
        self._card = card
        for message in messages:
            message.content[RECORD] = card_record(card, self.metrics, weight if card.max_weight > 1 else "")
        return messages

    def collect(self, replies: Iterable[Message]) -> Outcome:
        """Hands the replies' shares to the aggregators, and ends the round. Clients that sent none are named in the log."""
        if self._card is None or self._opened is None:
            return Outcome(None, (), (), {}, "nothing: no client was asked", {})
        card, (_, aggregators), refused = self._card, self._opened, {}
        for reply in replies:
            client = str(reply.metadata.src_node_id)
            try:
                for rank, part in enumerate(_parts(reply, len(card.aggregators))):
                    aggregators.receive(card.round, rank, client, part)
            except (EdgeError, InputError) as error:
                refused[client] = str(error).split("\n", 1)[0]
        for client, why in refused.items():
            log(WARNING, "client %s is not in: %s", client, why)
        try:
            outcome = aggregators.finish(card.round)
        except EdgeError as error:
            outcome = Outcome(None, (), (), {}, f"nothing: {error.what}", {})
        for client in set(outcome.refused) - set(refused):
            log(WARNING, "client %s is not in: %s", client, outcome.refused[client])
        log(INFO, "round %s: %s clients are in; revealed: %s", card.round, len(outcome.present), outcome.revealed)
        if outcome.aggregate is not None:
            for name, bound in self.metrics.items():
                outcome.aggregate[METRIC + name] = outcome.aggregate[METRIC + name] * bound / card.limit
        return replace(outcome, refused=refused | outcome.refused)


def _parts(reply: Message, count: int) -> list[bytes]:
    """A reply's part for each aggregator, by rank."""
    if reply.has_error():
        raise InputError(reply.error.reason)
    parts = unpacked(reply.content)
    if set(parts) != set(range(count)):
        raise InputError("its reply has not a part for each aggregator")
    return [parts[rank] for rank in range(count)]


def _moved(model: Mapping[str, np.ndarray], by: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A model after an update, in its own types; what the update has not is as it was."""
    return {name: (x + by[name]).astype(x.dtype) if name in by else x for name, x in model.items()}


def _as_before(arrays: ArrayRecord, model: Mapping[str, np.ndarray]) -> ArrayRecord:
    """What a strategy made, in the types of the model; its whole numbers are the model's own, not results of momentum."""
    made = {name: array.numpy() for name, array in arrays.items()}
    return record_of({name: made[name].astype(x.dtype) if x.dtype.kind == "f" else x for name, x in model.items()})
