"""What an aggregator must know after a restart: its rounds, who was in, its results, and what clients spent.

SQLite, on the disk before a call returns. Uploads and noise lie in files beside it; keys are nowhere. Who is in a round
is written once, before anything is computed: sums over two sets of clients would tell the difference of these.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from protocols.errors import FileError, explain
from securemodel.service.journal import open_database

OPEN, AGREED, COMPUTED, RELEASED, REFUSED = "open", "agreed", "computed", "released", "refused"
"""States of a round: it takes uploads; who is in is fixed; this aggregator has its result; all have, so clients may see
it; nothing is ever computed of it."""
_VERSION = 1
_TABLES = """
CREATE TABLE rounds (
    number INTEGER PRIMARY KEY, deadline REAL NOT NULL, state TEXT NOT NULL, epoch INTEGER NOT NULL, members BLOB,
    refused BLOB NOT NULL, reason TEXT NOT NULL, result BLOB
);
CREATE TABLE spent (client TEXT PRIMARY KEY, rounds INTEGER NOT NULL) WITHOUT ROWID;
"""
_UNUSABLE = (
    "the journal of this aggregator cannot be used",
    "if another process has it open, end that one; if it is damaged, begin anew in empty folders at all aggregators",
)


@dataclass(frozen=True)
class Round:
    """A round as the journal has it. `deadline` is in seconds of Unix time; `members` are known from AGREED on."""

    number: int
    deadline: float
    state: str
    epoch: int = 0
    members: tuple[str, ...] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)
    """By client, why it is not in."""
    reason: str = ""
    """Why the round is refused."""


class Journal:
    """One aggregator's journal, for any number of threads of one process."""

    def __init__(self, path: Path) -> None:
        """Opens or makes the file. Raises FileError."""
        self.path, self._lock = path, threading.Lock()
        self._database = open_database(path, _TABLES, _VERSION, *_UNUSABLE)

    def last(self) -> Round | None:
        """The latest round, or None before the first."""
        with self._reading() as run:
            found = run("SELECT max(number) FROM rounds").fetchone()[0]
        return None if found is None else self.round(found)

    def last_result(self, before: int) -> int | None:
        """The number of the last round before this one that was released, or None."""
        query = "SELECT max(number) FROM rounds WHERE state = ? AND number < ?"
        with self._reading() as run:
            return run(query, (RELEASED, before)).fetchone()[0]

    def round(self, number: int) -> Round | None:
        """The round of a number, or None."""
        columns = "number, deadline, state, epoch, members, refused, reason"
        with self._reading() as run:
            row = run(f"SELECT {columns} FROM rounds WHERE number = ?", (number,)).fetchone()
        if row is None:
            return None
        _, deadline, state, epoch, members, refused, reason = row
        known = None if members is None else tuple(msgspec.json.decode(members, type=list[str]))
        return Round(number, deadline, state, epoch, known, msgspec.json.decode(refused, type=dict[str, str]), reason)

    def open(self, number: int, deadline: float) -> None:
        """A round begins to take uploads."""
        with self._writing() as run:
            row = (number, deadline, OPEN, 0, None, b"{}", "", None)
            run("INSERT INTO rounds VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def agree(self, number: int, members: Sequence[str], refused: Mapping[str, str]) -> None:
        """Who is in, once and for all. Every member is charged: from now on its update may become part of a result."""
        with self._writing() as run:
            run(
                "UPDATE rounds SET state = ?, members = ?, refused = ? WHERE number = ? AND members IS NULL",
                (AGREED, msgspec.json.encode(list(members)), msgspec.json.encode(dict(refused)), number),
            )
            if run("SELECT changes()").fetchone()[0]:
                charge = "INSERT INTO spent VALUES (?, 1) ON CONFLICT DO UPDATE SET rounds = rounds + 1"
                for client in members:
                    run(charge, (client,))

    def attempt(self, number: int, epoch: int) -> None:
        """The round is computed from here on, for the `epoch`-th time."""
        with self._writing() as run:
            update = "UPDATE rounds SET state = ?, epoch = ?, result = NULL WHERE number = ?"
            run(update, (AGREED, epoch, number))

    def computed(self, number: int, result: bytes) -> None:
        """This aggregator has its result of the round."""
        with self._writing() as run:
            run("UPDATE rounds SET state = ?, result = ? WHERE number = ?", (COMPUTED, result, number))

    def release(self, number: int) -> None:
        """All aggregators have their results: clients may see this one's."""
        with self._writing() as run:
            run("UPDATE rounds SET state = ? WHERE number = ?", (RELEASED, number))

    def refuse(self, number: int, reason: str, refused: Mapping[str, str]) -> None:
        """Nothing is computed of the round. `refused`: by client, why it is not in."""
        with self._writing() as run:
            update = "UPDATE rounds SET state = ?, reason = ?, refused = ? WHERE number = ?"
            run(update, (REFUSED, reason, msgspec.json.encode(dict(refused)), number))

    def result(self, number: int) -> bytes | None:
        """This aggregator's result of a round that was released."""
        found = self.round(number)
        return self.kept(number) if found is not None and found.state == RELEASED else None

    def kept(self, number: int) -> bytes | None:
        """This aggregator's result of a round, released or not."""
        with self._reading() as run:
            row = run("SELECT result FROM rounds WHERE number = ?", (number,)).fetchone()
        return None if row is None else row[0]

    def spent(self, client: str) -> int:
        """In how many rounds a client was."""
        with self._reading() as run:
            row = run("SELECT rounds FROM spent WHERE client = ?", (client,)).fetchone()
        return 0 if row is None else row[0]

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextmanager
    def _reading(self) -> Iterator:
        """Raises FileError where the file fails."""
        with self._lock:
            try:
                yield self._database.execute
            except sqlite3.Error as error:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                what = "the journal of this aggregator cannot be read or written"
                fix = "make room on the disk; then start the aggregator again"
                raise FileError(explain(what, where=str(self.path), why=str(error), fix=fix)) from None

    @contextmanager
    def _writing(self) -> Iterator:
        """Everything inside is written together, or nothing of it."""
        with self._reading() as run:
            run("BEGIN IMMEDIATE")
            yield run
            run("COMMIT")
