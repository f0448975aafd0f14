"""What a party must know after a restart: which ids it has computed, in which run, and what keys have spent.

SQLite with a write-ahead log, and on the disk before a commit returns. No share, no input and no key is in it. Answers
are kept in memory alone: after a restart an id that is here is refused by name, and never computed again.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from protocols.errors import FileError, explain
from protocols.interpreter import share_the_interpreter
from securemodel.service.agreement import LOST
from securemodel.service.budgets import DAY_S, Spent

_VERSION = 1
_KEPT_S = 3600
_TABLES = """
CREATE TABLE requests (
    id BLOB PRIMARY KEY, at INTEGER NOT NULL, day INTEGER NOT NULL, body BLOB NOT NULL, key TEXT NOT NULL,
    model TEXT NOT NULL, rows INTEGER NOT NULL, state TEXT NOT NULL, run TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX requests_at ON requests (at);
CREATE TABLE spent (
    key TEXT NOT NULL, model TEXT NOT NULL, day INTEGER NOT NULL, rows INTEGER NOT NULL, PRIMARY KEY (key, model, day)
) WITHOUT ROWID;
"""


class JournalFailed(FileError):
    """The journal cannot be written now: the disk is full, or the file is damaged."""


_UNUSABLE = "the journal of the service cannot be used"
_REPAIR = (
    "if another process has it open, end that one; if the file is damaged, stop this party for 10 minutes,"
    " move the file and those beside it (-wal, -shm) away, and start again: ids of before are too old"
    " then to be asked for again, and budgets of today begin anew"
)


def open_database(
    path: Path,
    tables: str,
    version: int,
    what: str,
    fix: str,
    *,
    begin: Callable[[sqlite3.Connection], None] = lambda database: None,
) -> sqlite3.Connection:
    """Opens or makes a file of these tables, for this process and its user alone, and begins with it.

    Raises FileError of `what` and `fix` if it is damaged, of another version, or cannot be used.
    """
    unusable = lambda why: FileError(explain(what, where=str(path), why=why, fix=fix))
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite gives the files beside it the same mode
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
    except (OSError, sqlite3.Error) as error:
        raise unusable(str(error)) from None
    try:
        _prepare(database, tables, version, unusable)
        begin(database)
    except (sqlite3.Error, FileError) as error:
        database.close()
        raise error if isinstance(error, FileError) else unusable(str(error)) from None
    return database


def _prepare(database: sqlite3.Connection, tables: str, version: int, unusable: Callable[[str], FileError]) -> None:
    run = database.execute
    run("PRAGMA locking_mode = EXCLUSIVE")
    run("PRAGMA journal_mode = WAL")
    run("PRAGMA synchronous = FULL")
    found = run("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise unusable(found)
    known = run("PRAGMA user_version").fetchone()[0]
    if known not in (0, version):
        raise unusable(f"it is of version {known}, this program writes {version}")
    if known == 0:
        database.executescript(f"BEGIN; {tables} PRAGMA user_version = {version}; COMMIT;")


@dataclass(frozen=True)
class Entry:
    """An id that was computed: `state` is `computed`, `released` or `result_lost`; `run` is session and epoch."""

    id: str
    day: int
    body: bytes
    key_id: str
    model: str
    rows: int
    state: str
    run: str


class Journal:
    """One party's journal. Writes happen in a thread of its own, in the order in which they were asked for."""

    def __init__(self, path: str | Path) -> None:
        """Opens or makes the file. Raises FileError if it is damaged, of another version, or cannot be used."""
        self.path = Path(path)
        self._database = open_database(self.path, _TABLES, _VERSION, _UNUSABLE, _REPAIR, begin=_prune)
        share_the_interpreter()  # answers wait for the thread, also while requests keep the loop busy
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._written = 0

    def recent(self, seconds: float) -> list[Entry]:
        """Ids that were written in the last so many seconds, the oldest first."""
        columns = "id, day, body, key, model, rows, state, run"
        rows = self._database.execute(
            f"SELECT {columns} FROM requests WHERE at >= ? ORDER BY at", (int(time.time() - seconds),)
        )
        return [Entry(id.hex(), *rest) for id, *rest in rows]

    def spent(self) -> dict[Spent, int]:
        """Rows by key, model and day."""
        return {(key, model, day): rows for key, model, day, rows in self._database.execute("SELECT * FROM spent")}

    def write(self, entries: Sequence[Entry]) -> Future[None]:
        """Writes entries, or new states of those that are there, in one commit. Its result may be a JournalFailed.

        What is computed is charged; what becomes `result_lost` is given back.
        """
        return self._thread.submit(self._write, list(entries))

    def _write(self, entries: list[Entry]) -> None:
        run = self._database.execute
        try:
            run("BEGIN IMMEDIATE")
            now = int(time.time())
            for entry in entries:
                self._put(entry, now)
            if self._written >= 10_000:
                _prune(self._database)
                self._written = 0
            run("COMMIT")
            self._written += len(entries)
        except sqlite3.Error as error:
            if self._database.in_transaction:
                run("ROLLBACK")
            what = "the journal of the service cannot be written"
            fix = "make room on the disk, or restore the file; the service takes requests again by itself"
            raise JournalFailed(explain(what, where=str(self.path), why=str(error), fix=fix)) from None

    def _put(self, entry: Entry, now: int) -> None:
        run, id = self._database.execute, bytes.fromhex(entry.id)
        before = run("SELECT state FROM requests WHERE id = ?", (id,)).fetchone()
        run(
            "INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (id, now, entry.day, entry.body, entry.key_id, entry.model, entry.rows, entry.state, entry.run),
        )
        charged = (before is not None and before[0] != LOST, entry.state != LOST)
        change = entry.rows * (charged[1] - charged[0])
        if change:
            run(
                "INSERT INTO spent VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET rows = rows + excluded.rows",
                (entry.key_id, entry.model, entry.day, change),
            )

    def close(self) -> None:
        """Writes what is waiting, and closes the file."""
        self._thread.shutdown(wait=True)
        self._database.close()


def _prune(database: sqlite3.Connection) -> None:
    """What is older than any request that may still be asked for."""
    now = int(time.time())
    database.execute("DELETE FROM requests WHERE at < ?", (now - _KEPT_S,))
    database.execute("DELETE FROM spent WHERE day < ?", (now // DAY_S - 1,))
