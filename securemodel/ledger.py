"""The ledger: what this party helped to answer, and for whom. One line for each run, and no secret in any.

A line is a JSON object on a line of its own. Its field `previous` is the SHA-256 of the bytes of the line before it
(zeros in the first), so a line that is changed, removed or put in between breaks the chain and is noticed. What the
chain cannot show is the end cut off: note the digest of the last line elsewhere from time to time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from protocols.errors import ConfigError, DecodeError, explain
from protocols.files import create_secret, open_secret, sync_directory
from protocols.strict import strict_json, typed
from securemodel.errors import LedgerError
from securemodel.invocation import current

if TYPE_CHECKING:
    from securemodel.program import Program

FIELDS: dict[str, type | tuple[type, ...]] = {
    "time": str, "session": str, "epoch": int, "program": str, "protocol": str, "me": str, "peers": list,
    "reveals": dict, "rows": int, "previous": str,
}  # fmt: skip
"""What a line holds; docs/audit.md says what each field means."""
SETS = "sets"
"""A further field, of alignments: by party, how many rows its set of ids has, and a commitment to it."""
QUESTION = "question"
"""A further field, of questions to a joint table: what they are called, and the digest of the rows that they are about."""

_WHAT = "the ledger"
_START = "0" * 64
_MOST_BYTES = 1 << 16  # of a line


@dataclass(frozen=True)
class Line:
    """One line that could be read, and its number in the file, from 1."""

    number: int
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Break:
    """Where the chain is broken: at this line, and how."""

    number: int
    how: str


@dataclass(frozen=True)
class Contents:
    """A ledger as it was read. `last` is the digest of its last line: whoever notes it can show later what came after."""

    path: Path
    lines: tuple[Line, ...]
    breaks: tuple[Break, ...]
    last: str


def state_folder() -> Path:
    """`securemodel` in the user's state folder: XDG_STATE_HOME, or else ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return folder / "securemodel"


def default_path() -> Path:
    """`ledger` in the user's state folder."""
    return state_folder() / "ledger"


class Ledger:
    """A file to which runs are appended, by any number of processes of one user at once.

    Every call raises LedgerError where the file cannot be written, or others could read or change it.
    """

    def __init__(self, path: str | Path) -> None:
        """Makes the file and its folder where there are none, and checks that it can be written."""
        self.path = Path(path)
        with self._locked():
            pass

    def append(self, fields: Mapping[str, Any]) -> None:
        """Writes a line, with the time and the chain; on disk when this returns."""
        with self._locked() as file:
            before = _last_line(file)
            previous = _START if before is None else _digest(before)
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            line = json.dumps({"time": now, **fields, "previous": previous}, separators=(",", ":")).encode() + b"\n"
            whole = before is None or before.endswith(b"\n")  # else a crash cut it off: it stays, and is seen
            file.write(line if whole else b"\n" + line)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        try:
            with self._opened() as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield file
        except (OSError, ConfigError) as error:
            why = str(error).replace("\n", "; ") if isinstance(error, ConfigError) else f"{self.path}: {error.strerror}"
            raise LedgerError(
                explain(
                    "the ledger cannot be written",
                    why=why,
                    fix="correct it, or name another file: connect(ledger=...), or --ledger FILE",
                )
            ) from None

    def _opened(self) -> BinaryIO:
        try:
            return open_secret(self.path, _WHAT, append=True)
        except FileNotFoundError:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            create_secret(self.path, _WHAT).close()
            sync_directory(self.path.parent)
        except FileExistsError:
            pass  # another process was faster
        return open_secret(self.path, _WHAT, append=True)


@dataclass(frozen=True)
class Record:
    """Where a session writes its runs, and what all its lines have in common. `about`: rows, where no run reads any."""

    ledger: Ledger
    common: Mapping[str, Any]
    about: int | None = None

    def run(self, epoch: int, rows: int) -> None:
        """Writes one run of so many rows. Raises LedgerError."""
        self.ledger.append({**self.common, "epoch": epoch, "rows": rows if self.about is None else self.about})

    def shared(self, rows: int) -> None:
        """Writes that so many rows were shared for a training, of which this owner learns nothing. Raises LedgerError."""
        self.ledger.append({**self.common, "epoch": 0, "rows": rows, "reveals": {}})

    def weights(self, epoch: int, receivers: Sequence[str], names: Sequence[str]) -> None:
        """Writes that weights were handed out after a run: those of models with these names. Raises LedgerError."""
        reveals = {to: [f"weights of {name}" for name in names] for to in receivers}
        self.ledger.append({**self.common, "epoch": epoch, "rows": 0, "reveals": reveals})


def book_of(ledger: str | Path | bool) -> Ledger | None:
    """The ledger of that path; True: the one that the command line names, or else the user's own; False: none. Raises LedgerError."""
    chosen = current().ledger if ledger is True else ledger
    if chosen is None or chosen is True:
        chosen = default_path()
    return Ledger(chosen) if chosen else None


def record_for(ledger: Ledger, program: Program, me: str, session: bytes) -> Record:
    """For one session of a program; `session` is what all its parties have in common, and tells their lines apart."""
    names = program.result_names
    reveals: dict[str, list[str]] = {}
    for name, to in zip(names, program.header.outputs, strict=True):
        reveals.setdefault(to, []).append(name)
    common = {
        "session": hashlib.sha256(b"ledger" + session).hexdigest()[:16],
        "program": program.digest,
        "protocol": program.protocol,
        "me": me,
        "peers": [name for name in program.parties if name != me],
        "reveals": reveals,
    }
    return Record(ledger, common)


def read_ledger(path: str | Path) -> Contents:
    """Reads a ledger and checks its chain. Raises LedgerError where it cannot be read."""
    path = Path(path)
    try:
        with open_secret(path, _WHAT) as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            data = file.read()
    except FileNotFoundError:
        fix = "name the file: securemodel audit --ledger FILE; sessions that connect() opens write one"
        raise LedgerError(explain("there is no ledger", where=str(path), fix=fix)) from None
    except OSError as error:
        raise LedgerError(explain("the ledger cannot be read", where=str(path), why=str(error.strerror))) from None
    lines, breaks, previous = [], [], _START
    for number, raw in enumerate(data.splitlines(keepends=True), 1):
        try:
            if not raw.endswith(b"\n"):
                raise DecodeError("the line is cut off")
            fields = _fields(raw)
            if fields["previous"] != previous:
                breaks.append(Break(number, "does not follow the line before it"))
            lines.append(Line(number, fields))
        except DecodeError:
            breaks.append(Break(number, "cannot be read"))
        previous = _digest(raw)
    return Contents(path, tuple(lines), tuple(breaks), previous)


def _fields(raw: bytes) -> dict[str, Any]:
    """The fields of a line. Raises DecodeError."""
    what = "a line of the ledger"
    value = strict_json(raw, what, _MOST_BYTES)
    more = {name: dict for name in (SETS, QUESTION) if isinstance(value, dict) and name in value}
    return typed(value, what, {**FIELDS, **more})


def _digest(line: bytes) -> str:
    return hashlib.sha256(line.rstrip(b"\n")).hexdigest()


def _last_line(file: BinaryIO) -> bytes | None:
    """The last line, with its end if it has one; None in an empty file."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return None
    file.seek(max(0, size - 2 * _MOST_BYTES))
    return file.read().splitlines(keepends=True)[-1]
