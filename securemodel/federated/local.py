"""A federation with all aggregators in this process, for tests and a first look."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocols import kernels
from protocols.errors import InputError, explain
from securemodel.edge import sealing
from securemodel.edge.updates import RoundCard, result_part
from securemodel.federated.budgets import exceeded
from securemodel.federated.spool import Spool
from securemodel.federated.stages import Exchange, Made, Run, Walk, aggregate_of, open_result, protected, walk
from securemodel.federated.task import TO_AGGREGATORS, TO_CLIENTS, Outcome, Task
from securemodel.federated.uploads import Inbox, agree

if TYPE_CHECKING:
    from securemodel.sessions.serving import ServingSession


class LocalFederation:
    """All aggregators of a task. Rounds have growing numbers; each ends once."""

    def __init__(self, task: Task, folder: Path | None = None) -> None:
        kernels.keep_freed_memory()
        self.task = task
        self._folder = folder
        self._remove: weakref.finalize | None = None
        """Removes a folder of its own, at the latest when the process ends."""
        self._keys = [sealing.one_time_key() for _ in task.aggregators]
        self._rounds: dict[int, list[Inbox]] = {}
        self._cards: dict[int, RoundCard] = {}
        self._last = -1
        self._opened: ServingSession | None = None
        self._spent = Counter[str]()
        self._answer_keys: dict[str, str] = {}
        """Of each client that was in a round, the key of its last upload that was."""
        self._results: dict[int, tuple[RoundCard, list[Made]]] = {}

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close()

    def close(self) -> None:
        """Ends the session, and removes what clients sent, where no folder was given for it."""
        try:
            if self._opened is not None:
                self._opened.close()
        finally:
            self._clear()

    def _place(self) -> Path:
        """Where uploads lie: in the folder that was given, or in one of its own as long as a round is open."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="securemodel-federated-"))
            self._remove = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def _clear(self) -> None:
        """Removes its own folder, if there is one."""
        if self._remove is not None:
            self._remove()
            self._folder = self._remove = None

    def card(self, number: int, *, model: str = "", positions: Sequence[int] | None = None) -> RoundCard:
        """Opens a round, and gives its card; of a round that is open, the same card again. InputError for an old round."""
        if type(number) is not int:
            raise InputError(explain(f"{number!r:.40} is no number of a round", fix="give a whole number, 1 at first"))
        if number in self._cards:
            return self._cards[number]
        if number <= self._last:
            raise InputError(explain(f"round {number} is over", fix=f"open round {self._last + 1} or a later one"))
        public = [sealing.public_of(key) for key in self._keys]
        card = self.task.card(number, public, model=model, positions=positions)
        place = self._place()
        self._rounds[number] = [
            Inbox(card, rank, Spool(place / f"round-{number}-{rank}", fleeting=True), key)
            for rank, key in enumerate(self._keys)
        ]
        self._cards[number] = card
        return card

    def receive(self, number: int, rank: int, client: str, data: bytes) -> None:
        """Hands a client's part, sealed or not, to the aggregator of a rank. InputError says what is wrong with it."""
        if number not in self._rounds:
            why = "it is over" if isinstance(number, int) and number <= self._last else "it has not begun"
            raise InputError(explain(f"round {number} takes no uploads", where=f"client {client!r}", why=why))
        if why := exceeded(self.task.budget, self._spent[client], self.task.protection):
            raise InputError(explain(f"client {client!r} takes no more part", why=why))
        if type(rank) is not int or not 0 <= rank < len(self._rounds[number]):
            what = f"there is no aggregator of rank {rank!r}"
            raise InputError(explain(what, where=f"client {client!r}", fix="hand each part to the rank it is for"))
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
            if not self._rounds:
                self._clear()

    def delivered(self, number: int, client: str) -> dict[int, bytes] | None:
        """Each aggregator's share of the result of a round, by rank, where clients alone get it: sealed to the key of the
        client's last upload. None for a client that was in no round, and for a round without a result."""
        key = self._answer_keys.get(client)
        if key is None or number not in self._results:
            return None
        card, made = self._results[number]
        return {rank: result_part(card, rank, own.total, own.divisor, own.unit, key) for rank, own in enumerate(made)}

    def _finish(self, inboxes: list[Inbox], card: RoundCard) -> Outcome:
        for inbox in inboxes:
            inbox.closed = True
        presence = agree([inbox.receipts for inbox in inboxes], card.slots)
        refused = {client: why for inbox in inboxes for client, why in inbox.refused.items()} | dict(presence.refused)
        refused = {client: why for client, why in refused.items() if client not in presence.present}
        sent = {card.aggregators[inbox.rank].name: inbox.received_bytes for inbox in inboxes}
        absent = tuple(client for client in presence.absent if client not in refused)
        made = self._step([walk(self.task, inbox, presence) for inbox in inboxes])
        accepted, refused = made[0].accepted, refused | made[0].refused
        if len(accepted) < card.minimum:
            return Outcome(None, accepted, absent, refused, f"nothing: fewer than {card.minimum} clients", sent)
        made = [protected(self.task, inbox, own) for inbox, own in zip(inboxes, made, strict=True)]
        self._spent.update(presence.present)
        spent = max(self._spent[client] for client in accepted)
        epsilon = self.task.protection.epsilon(spent) if self.task.protection else None
        if card.reveal == "clients":
            self._answer_keys |= {client: inboxes[0].receipts[client].answer_key for client in accepted}
            self._results[card.round] = card, made
            each = {client: self.delivered(card.round, client) or {} for client in accepted}
            deliveries = {rank: {client: parts[rank] for client, parts in each.items()} for rank in range(len(made))}
            return Outcome(None, accepted, absent, refused, TO_CLIENTS, sent, epsilon, deliveries)
        opened = self._step([open_result(self.task, own) for own in made])[0]
        aggregate = aggregate_of(self.task, card, len(accepted), opened, made[0].unit)
        return Outcome(aggregate, accepted, absent, refused, TO_AGGREGATORS, sent, epsilon)

    def _step(self, walks: Sequence[Walk]) -> list[Any]:
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
            answers = self._answers(asks)

    def _answers(self, asks: Sequence[Exchange | Run]) -> list[Any]:
        first = asks[0]
        if isinstance(first, Exchange):
            return [[ask.data for ask in asks if isinstance(ask, Exchange)]] * len(asks)
        names = self.task.aggregators
        shares = {name: ask.shares for name, ask in zip(names, asks, strict=True) if isinstance(ask, Run)}
        made = self._session().run_shares(first.program, shares, first.program, first.manifest).shares
        return [made[name] for name in names]

    def _session(self) -> ServingSession:
        """The session of the task's programs, from its first run on."""
        if self._opened is None:
            from securemodel.sessions import serving  # not needed for sums, and large

            self._opened = serving.open_local(self.task.programs, self.task.digest)
            self._opened.load(self.task, None)
        return self._opened


def open_local(task: Task, folder: Path | None = None) -> LocalFederation:
    """A federation of a task with all aggregators in this process. `folder`: where uploads lie until their round ends."""
    return LocalFederation(task, folder)
