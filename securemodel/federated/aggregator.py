"""One aggregator: it takes its parts of uploads, and meets the others to open rounds and to end them.

A round goes open → agreed → computed → released; or it is refused. What it does is in its journal before anybody hears of
it, so after a crash the next meeting goes on: with the uploads that are there, the same clients and the same noise, in a
new epoch. A result may be seen once every aggregator has its own of the same epoch.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from protocols import kernels
from protocols.channel import Channel
from protocols.errors import InputError, Mismatch, explain
from securemodel.edge.sealing import can_seal_to
from securemodel.edge.updates import NO_WEIGHT, RoundCard, result_part
from securemodel.engines.labels import exchange_label
from securemodel.federated import agreement
from securemodel.federated.agreement import Decision, Standing, check_same, decide, exchange_standings
from securemodel.federated.budgets import exceeded
from securemodel.federated.journal import COMPUTED, OPEN, REFUSED, RELEASED, Journal, Round
from securemodel.federated.spool import Spool
from securemodel.federated.stages import Exchange, Made, Run, aggregate_of, open_result, protected, walk
from securemodel.federated.task import TO_AGGREGATORS, TO_CLIENTS, Outcome, Task
from securemodel.federated.uploads import Inbox, Presence
from securemodel.ledger import Ledger
from securemodel.service.desk import Refused

if TYPE_CHECKING:
    from securemodel.sessions.serving import ServingSession

ENDED = (RELEASED, REFUSED)
_SKEW_S = 300.0
"""How much the leader's clock may be ahead of another one's."""
_REFUSALS = {"length": "shape", "other_round": "wrong_program", "other_card": "wrong_program", "relabeled": "id_reused"}
"""How a front calls what is wrong with a part."""
_T = TypeVar("_T")


class _Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """This aggregator's result of a round: its share, what was opened (if anything), and who gets it under which key."""

    bits: int
    total: bytes
    divisor: int
    unit: float
    keys: dict[str, str]
    refused: dict[str, str]
    opened: tuple[bytes, int] | None
    earlier: dict[str, str]
    """Of clients that were in an earlier round and not in this one, the key of their last."""
    received: int
    """Bytes of uploads."""


@dataclass(frozen=True)
class Place:
    """Who an aggregator is: its name, its folder, the public keys of all by rank, and its own private one."""

    me: str
    folder: Path
    keys: Sequence[str]
    private_key: Any


class Aggregator:
    """One aggregator of a task. A front's threads and the meetings may use it at a time.

    `rounds`: after so many, no other one is opened, and `finished` is True once that is so everywhere. `model(number,
    outcome)` is the digest of the model that the updates of a round start from, given how the rounds before ended; `sessions`
    opens a session of all aggregators for the task's programs, where it has any.
    """

    def __init__(
        self,
        task: Task,
        place: Place,
        *,
        rounds: int | None = None,
        model: Callable[[int, Callable[[int], Outcome]], str] = lambda number, outcome: "",
        sessions: Callable[[], ServingSession] | None = None,
        ledger: Ledger | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        kernels.keep_freed_memory()
        place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.task, self.place, self.rank = task, place, task.aggregators.index(place.me)
        self.rounds, self.finished = rounds, False
        self.waits_for = ""
        """Because of whom the last meeting changed nothing, if that was so."""
        self.journal = Journal(place.folder / "journal.db")
        self._model, self._sessions, self._ledger, self._clock = model, sessions, ledger, clock
        self._lock = threading.RLock()
        self._inbox: Inbox | None = None
        try:
            self._go_on()
        except BaseException:
            self.journal.close()
            raise

    def _go_on(self) -> None:
        """Takes up what an earlier process left."""
        last = self.journal.last()
        if last is not None and last.state not in ENDED:
            self._inbox = self._opened(last)
        for left in self.place.folder.glob("round-*"):
            if self._inbox is None or left != self._inbox.spool.folder:
                Spool(left).clear()

    # ---- what the front asks
    def card(self) -> bytes:
        """The card of the round that takes uploads now. Raises Refused."""
        with self._lock:
            last = self.journal.last()
            if self._inbox is None or last is None or last.state != OPEN or self._clock() >= last.deadline:
                raise Refused("not_found", "no round takes uploads now", fix="ask again", retry_after=1.0)
            return self._inbox.card.text()

    def most_bytes(self, number: int) -> int:
        """The most bytes of a part of a round's uploads."""
        with self._lock:
            return 0 if self._inbox is None else self._inbox.card.value_bytes + (16 << 10)

    def _open_inbox(self) -> Inbox:
        if self._inbox is None:
            raise InputError(explain("no round is open at this aggregator", fix="open the next one first"))
        return self._inbox

    def receive(self, number: int, client: str, data: bytes) -> None:
        """Takes this aggregator's part of a client's upload. The same part may come again. Raises Refused."""
        with self._lock:
            self._check_open(number)
            why = exceeded(self.task.budget, self.journal.spent(client), self.task.protection)
            if why:
                raise Refused("budget", f"client {client!r} takes no more part", why=why)
            try:
                self._open_inbox().receive(client, data)
            except InputError as error:
                code = _REFUSALS.get(
                    getattr(error.__cause__, "code", ""), "id_reused" if error.__cause__ is None else "shape"
                )
                what, *more = str(error).splitlines()
                told = {head: rest.strip() for head, _, rest in (line.strip().partition(" ") for line in more)}
                raise Refused(code, what, why=told.get("why:", ""), fix=told.get("→", "")) from None

    def _check_open(self, number: int) -> None:
        last = self.journal.last()
        if last is None or number > last.number:
            raise Refused("not_found", f"there is no round {number} yet", fix="take the card of the current round")
        if number < last.number or last.state != OPEN or self._clock() >= last.deadline:
            fix = "take part in the next round"
            raise Refused("gone", f"an upload to round {number} came after its deadline", fix=fix)

    def card_of(self, number: int) -> bytes:
        """The card of a round that has ended with a result. Raises Refused."""
        return self._card(self._released(number)).text()

    def result(self, number: int, client: str, seal: str = "") -> bytes:
        """This aggregator's part of the result of a round, for clients to add up. Raises Refused.

        Where clients alone get it, it is sealed to the key of the client's last upload that was in until then, or to `seal`.
        """
        found, stored = self._released(number), self._stored(number)
        if self.task.reveal == "clients":
            seal = seal or stored.keys.get(client) or stored.earlier.get(client, "")
            if not can_seal_to(seal):
                fix = "ask with the API key of the client itself, and with a key to seal to"
                raise Refused("model_not_allowed", f"client {client!r} was in no round until {number}", fix=fix)
        share = np.frombuffer(stored.total, f"<u{stored.bits // 8}")
        key = seal if self.task.reveal == "clients" else ""
        return result_part(self._card(found), self.rank, share, stored.divisor, stored.unit, key)

    def _released(self, number: int) -> Round:
        found = self.journal.round(number)
        if found is None or found.state not in ENDED:
            raise Refused("not_found", f"round {number} has no result yet", fix="ask again", retry_after=1.0)
        if found.state == REFUSED:
            raise Refused("gone", f"round {number} has no result", why=found.reason, fix="take part in the next round")
        return found

    # ---- what this process asks
    def held(self, number: int) -> tuple[str, ...]:
        """The clients whose parts of the current round are here; nobody of another round."""
        with self._lock:
            inbox = self._inbox
            return () if inbox is None or inbox.card.round != number else tuple(inbox.receipts)

    def outcome(self, number: int) -> Outcome:
        """How a round ended, as this aggregator knows it. Raises InputError while it has not."""
        found = self.journal.round(number)
        if found is None or found.state not in ENDED:
            raise InputError(explain(f"round {number} has not ended", fix="wait for its deadline"))
        absent = tuple(client for client, why in found.refused.items() if why == agreement.OTHERS_LACK)
        refused = {client: why for client, why in found.refused.items() if why != agreement.OTHERS_LACK}
        if found.state == REFUSED:
            return Outcome(None, found.members or (), absent, refused, f"nothing: {found.reason}", {})
        stored, card = self._stored(number), self._card(found)
        present, refused = tuple(stored.keys), {**refused, **stored.refused}
        spent = max((self.journal.spent(client) for client in present), default=0)
        epsilon = self.task.protection.epsilon(spent) if self.task.protection else None
        received = {self.place.me: stored.received}
        if stored.opened is None:
            return Outcome(None, present, absent, refused, TO_CLIENTS, received, epsilon)
        data, divisor = stored.opened
        total = np.frombuffer(data, f"<i{stored.bits // 8}")
        aggregate = aggregate_of(self.task, card, len(present), (total, divisor), stored.unit)
        return Outcome(aggregate, present, absent, refused, TO_AGGREGATORS, received, epsilon)

    # ---- meetings
    @property
    def due(self) -> float:
        """When the next meeting is, in seconds of Unix time; 0 at once, as when all slots of the open round are taken."""
        last = self.journal.last()
        if last is None or last.state != OPEN or len(self.held(last.number)) >= self.task.slots:
            return 0.0
        return last.deadline

    def meet(self, channel: Channel) -> Round | None:
        """One meeting: it opens a round, or ends one, or goes on where a crash stopped. Returns the latest round.

        Raises PeerError, which names the aggregator that is the reason; the next meeting goes on.
        """
        with self._lock:  # what came until now counts, and nothing comes after it
            mine = self._standing()
            if self._inbox is not None and self._clock() >= mine.deadline:
                self._inbox.closed = True
        said, self.waits_for = exchange_standings(channel, mine, self.task.aggregators), ""
        newest = max(one.number for one in said.values())
        self._check_not_lost(said, newest)
        if newest == 0 or all(one.number == newest and one.state in ENDED for one in said.values()):
            self.finished = self.rounds is not None and newest >= self.rounds
            if not self.finished:
                self._open(channel, newest + 1, said[self.task.aggregators[0]].proposed)
        elif any(one.number < newest for one in said.values()):
            if mine.number < newest:  # it crashed when the others opened this round
                name, deadline = next((name, one.deadline) for name, one in said.items() if one.number == newest)
                self._check_deadline(name, deadline, -math.inf)
                self._begin(newest, deadline)
            else:
                self.waits_for = next(name for name, one in said.items() if one.number < newest)
        elif not_over := [name for name, one in said.items() if not self._is_over(one)]:
            self.waits_for = next((name for name in not_over if name != self.place.me), "")
        else:
            self._finish(channel, decide(said, self.task.minimum, self.task.slots))
        return self.journal.last()

    def _is_over(self, one: Standing) -> bool:
        """Whether an aggregator takes no more uploads to its round: it is past its deadline, or all slots are taken."""
        return one.state != OPEN or self._clock() >= one.deadline or len(one.held) >= self.task.slots

    def _standing(self) -> Standing:
        last = self.journal.last() or Round(0, 0.0, "")
        held = dict(self._inbox.receipts) if self._inbox is not None else {}
        refused = self._barred() if last.state == OPEN else dict(last.refused)
        members = None if last.members is None else list(last.members)
        proposed = self._clock() + self.task.deadline_s
        return Standing(
            task_digest(self.task, self.place.keys, self.rounds), last.number, last.state, last.epoch, last.deadline, held, members,
            refused, last.reason, proposed,
        )  # fmt: skip

    def _barred(self) -> dict[str, str]:
        """Clients whose parts were not as they should be, with why."""
        if self._inbox is None:
            return {}
        wrong = {c: why for c, why in self._inbox.refused.items() if c not in self._inbox.receipts}
        return dict(islice(wrong.items(), self.task.slots))

    def _check_not_lost(self, said: Mapping[str, Standing], newest: int) -> None:
        for name, one in said.items():
            if one.number < newest - 1 or (one.number == newest - 1 and one.number and one.state not in ENDED):
                what = f"aggregator {name!r} has lost rounds"
                fix = "begin a new federation with the latest model, in empty folders at all aggregators"
                why = f"its latest is round {one.number}, and others have ended that and begun round {newest}"
                raise Mismatch(name, explain(what, why=why, fix=fix))

    def _open(self, channel: Channel, number: int, deadline: float) -> None:
        """A new round, until the leader's deadline. Raises Mismatch."""
        self._check_deadline(self.task.aggregators[0], deadline, self._clock() - _SKEW_S)
        check_same(channel, Decision(number, OPEN, reason=deadline.hex()))
        self._begin(number, deadline)

    def _check_deadline(self, name: str, deadline: float, earliest: float) -> None:
        """Raises Mismatch for a deadline that an aggregator names and the task does not allow now."""
        latest = self._clock() + self.task.deadline_s + _SKEW_S
        if not math.isfinite(deadline) or not earliest < deadline < latest:
            fix = "set the clocks of all aggregators"
            raise Mismatch(name, explain(f"the deadline that {name!r} names is not as the task says", fix=fix))

    def _begin(self, number: int, deadline: float) -> None:
        with self._lock:
            self.journal.open(number, deadline)
            self._inbox = self._opened(Round(number, deadline, OPEN))

    def _finish(self, channel: Channel, decision: Decision) -> None:
        check_same(channel, decision)
        if decision.state == REFUSED:
            self._end(decision.number, lambda: self.journal.refuse(decision.number, decision.reason, decision.refused))
        elif decision.state == RELEASED:
            self._release(decision)
        else:
            self._aggregate(channel, decision)

    def _aggregate(self, channel: Channel, decision: Decision) -> None:
        number = decision.number
        self.journal.agree(number, decision.members, decision.refused)
        self.journal.attempt(number, decision.epoch)
        with closing(_Steps(channel, self.task.aggregators, decision.epoch, self._sessions)) as steps:
            self._compute(channel, decision, steps)

    def _compute(self, channel: Channel, decision: Decision, steps: _Steps) -> None:
        number = decision.number
        inbox = self._open_inbox()
        made = steps.through(walk(self.task, inbox, Presence(decision.members, (), {})))
        refused = {**decision.refused, **made.refused}
        if len(made.accepted) < self.task.minimum:
            reason = f"{len(made.accepted)} clients passed, and the round has a minimum of {self.task.minimum}"
            return self._end(number, lambda: self.journal.refuse(number, reason, refused))
        made = protected(self.task, inbox, made)
        opened = steps.through(open_result(self.task, made)) if self.task.reveal == "aggregators" else None
        if opened is not None and opened[1] == 0:
            return self._end(number, lambda: self.journal.refuse(number, NO_WEIGHT, refused))
        self.journal.computed(number, msgspec.msgpack.encode(self._to_store(made, opened)))
        check_same(channel, Decision(number, COMPUTED, decision.epoch))
        self._release(decision)

    def _to_store(self, made: Made, opened: tuple[np.ndarray, int] | None) -> _Stored:
        inbox = self._open_inbox()
        keys = {client: inbox.receipts[client].answer_key for client in made.accepted}
        told = None if opened is None else (opened[0].tobytes(), opened[1])
        return _Stored(
            8 * made.total.itemsize, made.total.tobytes(), made.divisor % 2**64, made.unit, keys, made.refused, told,
            self._earlier_keys(inbox.card.round, keys), inbox.received_bytes,
        )  # fmt: skip

    def _earlier_keys(self, number: int, now: Mapping[str, str]) -> dict[str, str]:
        """The last keys of clients that were in before a round, and are not in it."""
        if self.task.reveal == "aggregators" or (last := self.journal.last_result(number)) is None:
            return {}
        before = self._stored(last)
        return {client: key for client, key in {**before.earlier, **before.keys}.items() if client not in now}

    def _release(self, decision: Decision) -> None:
        number = decision.number
        if self._ledger is not None:
            self._ledger.append(self._line(number, decision.epoch))
        self._end(number, lambda: self.journal.release(number))

    def _line(self, number: int, epoch: int) -> dict[str, Any]:
        """The ledger's line of a round."""
        stored = msgspec.msgpack.decode(self.journal.kept(number) or b"", type=_Stored)
        what = f"{self.task.aggregation.name} of round {number}"
        receivers = self.task.aggregators if self.task.reveal == "aggregators" else ("clients",)
        return {
            "session": task_digest(self.task, self.place.keys, self.rounds).hex()[:16], "epoch": epoch, "program": self.task.digest,
            "protocol": "federated", "me": self.place.me,
            "peers": [name for name in self.task.aggregators if name != self.place.me],
            "reveals": {name: [what] for name in receivers}, "rows": len(stored.keys),
        }  # fmt: skip

    def _end(self, number: int, written: Callable[[], None]) -> None:
        """The round is over, and its uploads are not needed any more."""
        with self._lock:
            written()
            if self._inbox is not None:
                self._inbox.spool.clear()
                self._inbox = None

    def _opened(self, found: Round) -> Inbox:
        return Inbox(self._card(found), self.rank, Spool(self._folder(found.number)), self.place.private_key)

    def _folder(self, number: int) -> Path:
        return self.place.folder / f"round-{number}"

    def _card(self, found: Round) -> RoundCard:
        return self.task.card(
            found.number, self.place.keys, model=self._model(found.number, self.outcome), deadline=found.deadline
        )

    def _stored(self, number: int) -> _Stored:
        return msgspec.msgpack.decode(self.journal.result(number) or b"", type=_Stored)

    def close(self) -> None:
        """Closes the journal; what it holds goes on with another process."""
        self.journal.close()


@dataclass
class _Steps:
    """Steps this aggregator's walks, over a channel to the others."""

    channel: Channel
    names: Sequence[str]
    epoch: int
    sessions: Callable[[], ServingSession] | None
    count: int = 0
    session: ServingSession | None = None

    def through(self, steps: Generator[Any, Any, _T]) -> _T:
        """What a walk returns at its end."""
        answer: Any = None
        while True:
            try:
                ask = steps.send(answer)
            except StopIteration as end:
                return end.value
            answer = self._swap(ask.data) if isinstance(ask, Exchange) else self._ran(ask)

    def _swap(self, data: bytes) -> list[bytes]:
        """Everybody's bytes by rank, as many as this aggregator's own."""
        label = exchange_label(self.epoch, self.count)
        self.count += 1
        peers = self.channel.peers
        heard = self.channel.exchange(label, {peer: [data] for peer in peers}, dict.fromkeys(peers, len(data)))
        return [data if name == self.channel.me else heard[name].numpy().tobytes() for name in self.names]

    def _ran(self, ask: Run) -> Any:
        """This aggregator's share of each output of a program; the first one opens the session."""
        if self.session is None:
            if self.sessions is None:
                raise InputError(explain("this aggregator has no session to run programs in", fix="give sessions="))
            self.session = self.sessions()
        return self.session.run_shares(ask.program, ask.shares, ask.program, ask.manifest).shares

    def close(self) -> None:
        """Ends the session, if one was opened."""
        if self.session is not None:
            self.session.close()


def task_digest(task: Task, keys: Sequence[str], rounds: int | None) -> bytes:
    """SHA-256 of all that aggregators must have in common."""
    card = task.card(0, keys, deadline=0.0)
    more = repr((rounds, task.deadline_s, task.protection, task.budget))
    return hashlib.sha256(card.text() + more.encode()).digest()
