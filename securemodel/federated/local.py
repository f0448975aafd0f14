"""A federation with all aggregators in this process, for tests and a first look."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocols.errors import InputError, explain
from securemodel.edge import sealing
from securemodel.edge.updates import RoundCard, arrays_of, result_part
from securemodel.federated.spool import Spool
from securemodel.federated.stages import Made, open_result, protected, walk
from securemodel.federated.task import Outcome, Task
from securemodel.federated.uploads import Inbox, agree


class LocalFederation:
    """All aggregators of a task. Rounds have growing numbers; each ends once."""

    def __init__(self, task: Task, folder: Path | None = None) -> None:
        self.task = task
        self._temporary = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="securemodel-federated-")) if folder is None else folder
        self._keys = [sealing.one_time_key() for _ in task.aggregators]
        self._rounds: dict[int, list[Inbox]] = {}
        self._cards: dict[int, RoundCard] = {}
        self._last = -1

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close()

    def close(self) -> None:
        """Removes what clients sent, where no folder was given for it."""
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def card(self, number: int, *, model: str = "", positions: Sequence[int] | None = None) -> RoundCard:
        """Opens a round, and gives its card; of a round that is open, the same card again. InputError for an old round."""
        if number in self._cards:
            return self._cards[number]
        if number <= self._last:
            raise InputError(explain(f"round {number} is over", fix=f"open round {self._last + 1} or a later one"))
        public = [sealing.public_of(key) for key in self._keys]
        card = self.task.card(number, public, model=model, positions=positions)
        self._cards[number] = card
        self._rounds[number] = [
            Inbox(card, rank, Spool(self.folder / f"round-{number}-{rank}"), key) for rank, key in enumerate(self._keys)
        ]
        return card

    def receive(self, number: int, rank: int, client: str, data: bytes) -> None:
        """Hands a client's part, sealed or not, to the aggregator of a rank. InputError says what is wrong with it."""
        if number not in self._rounds:
            why = "it is over" if number <= self._last else "it has not begun"
            raise InputError(explain(f"round {number} takes no uploads", where=f"client {client!r}", why=why))
        self._rounds[number][rank].receive(client, data)

    def finish(self, number: int) -> Outcome:
        """Ends a round: who is in is settled, the result is made, uploads are removed. InputError for a round not open."""
        if number not in self._rounds:
            raise InputError(explain(f"round {number} is not open", fix="ask for its card first"))
        inboxes, card = self._rounds.pop(number), self._cards.pop(number)
        self._last = max(self._last, number)
        try:
            return self._finish(inboxes, card)
        finally:
            for inbox in inboxes:
                inbox.spool.clear()

    def _finish(self, inboxes: list[Inbox], card: RoundCard) -> Outcome:
        for inbox in inboxes:
            inbox.closed = True
        presence = agree([inbox.receipts for inbox in inboxes], card.slots)
        refused = {client: why for inbox in inboxes for client, why in inbox.refused.items()} | dict(presence.refused)
        refused = {client: why for client, why in refused.items() if client not in presence.present}
        sent = {card.aggregators[inbox.rank].name: inbox.received_bytes for inbox in inboxes}
        absent = tuple(client for client in presence.absent if client not in refused)
        nothing = lambda present, more: Outcome(
            None, present, absent, refused | more, f"nothing: fewer than {card.minimum} clients", sent
        )
        if len(presence.present) < card.minimum:
            return nothing(presence.present, {})
        made = self._step([walk(self.task, inbox, presence) for inbox in inboxes])
        accepted, more = made[0].accepted, made[0].refused
        if len(accepted) < card.minimum:
            return nothing(accepted, more)
        made = [protected(self.task, inbox, own) for inbox, own in zip(inboxes, made, strict=True)]
        if card.reveal == "clients":
            deliveries = {
                inbox.rank: deliveries_of(inbox, own, accepted) for inbox, own in zip(inboxes, made, strict=True)
            }
            told = "to clients: the aggregate"
            return Outcome(None, accepted, absent, refused | more, told, sent, deliveries=deliveries)
        total, divisor = self._step([open_result(self.task, own) for own in made])[0]
        aggregate = arrays_of(card, total, divisor, made[0].unit)
        return Outcome(aggregate, accepted, absent, refused | more, "to aggregators: the aggregate", sent)

    def _step(self, walks: Sequence[Any]) -> list[Any]:
        """Steps the walks of all aggregators together; what each returns, by rank."""
        answers: list[Any] = [None] * len(walks)
        while True:
            asks, ended = [], []
            for each, answer in zip(walks, answers, strict=True):
                try:
                    asks.append(each.send(answer))
                except StopIteration as end:
                    ended.append(end.value)
            if ended:
                return ended
            answers = [[ask.data for ask in asks]] * len(asks)


def deliveries_of(inbox: Inbox, made: Made, clients: Sequence[str]) -> dict[str, bytes]:
    """This aggregator's share of the result for each client, sealed to its one-time key."""
    give = lambda client: result_part(
        inbox.card, inbox.rank, made.total, made.divisor, made.unit, inbox.receipts[client].answer_key
    )
    return {client: give(client) for client in clients}


def open_local(task: Task, folder: Path | None = None) -> LocalFederation:
    """A federation of a task with all aggregators in this process. `folder`: where uploads lie until their round ends."""
    return LocalFederation(task, folder)
