"""What a party knows of ids: the requests that wait here, answers for those who ask again, and states yet to be written."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from securemodel.service.agreement import COMPUTED, HELD, LOST, RELEASED, refused
from securemodel.service.desk import Answer, Refused, Submission
from securemodel.service.journal import Entry

_KEPT_BYTES = 64 << 20
_FINAL = frozenset({LOST, "gone", "commit_mismatch", "id_reused"})
"""Refusals after which the same id is refused again; after any other, it may be asked again."""


def is_final(code: str) -> bool:
    """Whether the same id is refused again after this refusal."""
    return code in _FINAL


@dataclass(eq=False, slots=True)
class Known:
    """An id, until `Limits.keep_s` after its end. `done` is there while somebody may wait for it."""

    key_id: str
    body: bytes
    model: str
    rows: int
    day: int
    state: str
    request: Submission | None = field(default=None, repr=False)
    where: str = ""
    since: float = field(default_factory=time.monotonic)
    answer: Answer | None = field(default=None, repr=False)
    refusal: Refused | None = None
    ended: float = 0.0
    charged: bool = True
    done: asyncio.Future[None] | None = None


class Records:
    """All ids that a party knows, the oldest first. `rows` and `bytes` are of the requests that wait."""

    def __init__(self, entries: Iterable[Entry], keep_s: float) -> None:
        """`entries`: ids of before a restart; their answers are no more."""
        self._keep_s = keep_s
        self._records = {entry.id: _remembered(entry) for entry in entries}
        self._marks: list[Entry] = []
        self._kept: deque[tuple[str, int]] = deque()
        self._kept_bytes = 0
        self.rows = self.bytes = 0

    def get(self, id: str) -> Known | None:
        """What is known of an id."""
        return self._records.get(id)

    def known(self, id: str) -> Known:
        """The same of an id that must be known."""
        return self._records[id]

    def states(self) -> Mapping[str, str]:
        """The state of each id."""
        return {id: record.state for id, record in self._records.items()}

    def unreleased(self, ids: Sequence[str]) -> list[str]:
        """Which of these were not released here."""
        return [id for id in ids if id not in self._records or self._records[id].state != RELEASED]

    def waiting(self) -> list[tuple[str, Known]]:
        """Those that somebody waits for."""
        return [(id, record) for id, record in self._records.items() if record.done]

    def take(self, request: Submission, day: int, done: asyncio.Future[None]) -> Known:
        """A request is held from now on, charged to that day."""
        record = Known(request.key_id, request.body_digest, request.model, request.rows, day, HELD, request, done=done)
        self._records.pop(request.id, None)  # the oldest come first
        self._records[request.id] = record
        self.rows += request.rows
        self.bytes += _bytes(request.shares)
        return record

    def asked_for(self, ids: Iterable[str]) -> list[Submission]:
        """The requests of those of these ids that are still there."""
        records = [self._records[id] for id in ids if id in self._records]
        return [record.request for record in records if record.request]

    def end(self, id: str, record: Known, answer: Answer | None = None, refusal: Refused | None = None) -> None:
        """A request's answer or refusal, for all who wait for it."""
        if record.request:
            self.rows -= record.rows
            self.bytes -= _bytes(record.request.shares)
            record.request = None
        record.answer, record.refusal, record.ended = answer, refusal, time.monotonic()
        record.state = RELEASED if answer else refusal.code if refusal else record.state
        if answer:
            size = _bytes(answer.shares)
            self._kept.append((id, size))
            self._kept_bytes += size
            self.mark(id, RELEASED)
        if record.done and not record.done.done():
            record.done.set_result(None)
        record.done = None

    def forget(self, now: float) -> None:
        """Ids that ended long ago, and the oldest answers where there are too many."""
        while self._records:
            id, record = next(iter(self._records.items()))
            if not record.ended or now < record.ended + self._keep_s:
                break
            del self._records[id]
        while self._kept and (self._kept_bytes > _KEPT_BYTES or self._kept[0][0] not in self._records):
            id, size = self._kept.popleft()
            self._kept_bytes -= size
            if id in self._records:
                self._records[id].answer = None

    # For the journal

    def computed(self, ids: Iterable[str], where: str) -> list[Entry]:
        """Entries of ids whose outputs are there, of this run."""
        entries = []
        for id in ids:
            record = self._records[id]
            record.where = where
            entries.append(_entry(id, record, COMPUTED))
        return entries

    def mark(self, id: str, state: str) -> None:
        """A new state of an id that the journal has; written with the next batch, or within a second."""
        if record := self._records.get(id):
            record.state = state
            self._marks.append(_entry(id, record, state))

    def marks(self) -> list[Entry]:
        """Entries of new states, to be written now, before what is computed later."""
        marks, self._marks = self._marks, []
        return marks

    def put_back(self, marks: list[Entry]) -> None:
        """These could not be written; they are once more in the next `marks`, before newer ones."""
        self._marks = marks + self._marks


def _remembered(entry: Entry) -> Known:
    record = Known(entry.key_id, entry.body, entry.model, entry.rows, entry.day, entry.state)
    record.where, record.charged, record.ended = entry.run, entry.state != LOST, time.monotonic()
    record.refusal = refused(LOST if entry.state == LOST else "gone")
    return record


def _entry(id: str, record: Known, state: str) -> Entry:
    return Entry(id, record.day, record.body, record.key_id, record.model, record.rows, state, record.where)


def _bytes(shares: Sequence) -> int:
    return sum(share.nbytes for share in shares)
