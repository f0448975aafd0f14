"""What `securemodel predict` keeps on disk: results of finished batches, a journal of them, and the table at the end.

Beside the journal, NAME.journal, lie NAME.partial, the rows of results at their places, and NAME.digests, what each batch
of this party's input was when the job last began. The journal says which batches are finished and of which job. A batch
is on disk before the journal counts it, so a crash at any moment loses no finished batch; and no batch is counted whose
input has changed.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import IO

import numpy as np
import torch

from protocols.errors import DecodeError, FileError, InputError, explain
from protocols.files import (
    check_folder,
    create_secret,
    file_errors,
    open_atomically,
    open_secret,
    read_secret,
    write_secret,
)
from protocols.strict import strict_fields
from securemodel.files.rows import DIGEST_BYTES, Rows
from securemodel.sessions.resume import Batches, Kept, Start

FORMATS = (".csv", ".npz")
ROW = "row"
_WHAT, _MODE = "a file of results", 0o600  # they are for their receiver alone
_JOURNAL_BYTES = 1 << 26
_VERSION = 2
_TEXT = 10  # about as many characters has a real number


@dataclass(frozen=True)
class Result:
    """One result of each row."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def columns(self) -> list[str]:
        """Its names in a table: name, or name_0, name_1, ..."""
        return [f"{self.name}_{i}" for i in range(math.prod(self.shape))] if self.shape else [self.name]


@dataclass(frozen=True)
class Journal:
    """Which job this is, of which program, and which batches of its rows are finished, as [first, after the last]."""

    program: str
    version: int = _VERSION
    job: str = ""
    rows: int = 0
    done: tuple[tuple[int, int], ...] = ()

    def finished(self, batches: int) -> np.ndarray:
        """For so many batches, whether each is finished."""
        made = np.zeros(batches, bool)
        for first, after in self.done:
            made[first:after] = True
        return made


class Record:
    """The files of one party's part of a job. `output` is None where this party gets no results."""

    def __init__(self, output: Path | None, journal: Path, results: Sequence[Result], program: str, size: int) -> None:
        """Opens what is there. Raises InputError where it belongs to another program or is damaged, FileError."""
        self.output, self.path, self._size = output, journal, size
        self._results = tuple(results) if output else ()
        self._row = np.dtype([(r.name, r.dtype, r.shape) for r in self._results])
        base = journal.name.removesuffix(".journal")
        self._partial, self._digests = (journal.with_name(base + end) for end in (".partial", ".digests"))
        self._changed, self._rows = np.zeros(0, bool), 0
        for path in (output, journal):
            if path:
                with file_errors(path.parent):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    check_folder(path.parent, _WHAT)
        found = _read(journal)
        if found and found.program != program:
            if output:
                raise self._begun_with("program")
            found = None
        if output and not found and os.path.lexists(output):
            fix = "name another output, or move this one away"
            raise InputError(explain("the output exists already", where=str(output), fix=fix))
        self.journal = found or Journal(program)
        self._check_partial()

    def _begun_with(self, other: str) -> InputError:
        return InputError(
            explain(
                f"these results were begun with a different {other}",
                where=str(self.path),
                why="results of one file are of one program and one input; rows that are corrected may change, not all",
                fix="go on with what it was begun with, or name another output",
            )
        )

    def _check_partial(self) -> None:
        last = max((after for _, after in self.journal.done), default=0)
        rows = min(last * self._size, self.journal.rows)
        size = self._partial.stat().st_size if self._partial.exists() else 0
        if self.output and size < rows * self._row.itemsize and not self.is_complete:
            raise InputError(
                explain(
                    f"results of {self._done_rows()} rows are counted, but they are not there",
                    where=str(self._partial),
                    fix="bring them back, or name another output to begin again",
                )
            )

    def compare(self, rows: Rows) -> None:
        """Finds the batches whose input is another than when the job last began. Raises InputError if all are."""
        now = np.frombuffer(rows.digests, np.uint8).reshape(-1, DIGEST_BYTES)
        before = np.zeros_like(now)
        if self._digests.exists():
            with file_errors(self._digests):
                known = np.frombuffer(read_secret(self._digests, _WHAT)[: now.size], np.uint8)
            before.reshape(-1)[: known.size] = known
        self._rows, self._changed, self._now = rows.count, (now != before).any(1), rows.digests
        done = self.journal.finished(len(now))
        if self.is_complete and (self._changed.any() or rows.count != self.journal.rows):
            raise self._begun_with("input")
        if self.output and done.any() and self._changed.all():
            raise self._begun_with("input")
        if not self.output and self.journal.job and self._changed.all():
            self.journal = Journal(self.journal.program)

    @property
    def is_complete(self) -> bool:
        """Whether the results of all rows are in the output."""
        rows = self.journal.rows
        return bool(self.output and self.output.exists() and rows and self._done_rows() == rows)

    def _batches(self, rows: int) -> int:
        return -(-rows // self._size)

    def _done_rows(self) -> int:
        rows = self.journal.rows
        return min(rows, sum(min(after * self._size, rows) - first * self._size for first, after in self.journal.done))

    def kept(self, ids: bool = False) -> Kept:
        """What to tell the other parties."""
        return Kept(self.journal.job, self._done_rows(), self._rows, self.output is not None, ids)

    def batches(self, count: int) -> Batches:
        """Which of the job's batches this party lacks, and which of its inputs have changed."""
        missing, changed = np.zeros(count, bool), np.zeros(count, bool)
        if self.output:
            missing = ~self.journal.finished(count)
        changed[: len(self._changed)] = self._changed[:count]
        return Batches(missing, changed)

    def begin(self, start: Start) -> None:
        """Notes what the parties agreed on, and takes room for the results. Raises InputError, FileError."""
        if self.is_complete:
            if start.changed.any() or start.rows != self.journal.rows:
                raise InputError(
                    explain(
                        "all results are there, and another party's input has changed since",
                        where=str(self.output),
                        fix="name another output at every party to begin again",
                    )
                )
            return
        done = np.zeros(len(start.todo), bool)
        if start.job == self.journal.job and self.output:
            done = self.journal.finished(len(done)) & ~start.changed
        self._save(job=start.job, rows=start.rows, done=_ranges(done))
        if self.output:
            with file_errors(self._partial):
                if not done.any():
                    self._partial.unlink(missing_ok=True)
                    create_secret(self._partial, _WHAT).close()
                with open_secret(self._partial, _WHAT, write=True) as file:
                    _reserve(file, start.rows * self._row.itemsize)

    def begun(self) -> None:
        """Notes this party's inputs, when no party counts results of earlier ones any more. Raises FileError."""
        if len(self._changed) and not self.is_complete:
            with file_errors(self._digests):
                write_secret(self._digests, self._now, _WHAT)

    def add(self, batch: int, values: Sequence[torch.Tensor]) -> None:
        """Keeps the results of a batch; those that are here already stay as they are. Raises FileError."""
        done = self.journal.finished(self._batches(self.journal.rows))
        if not self._results or done[batch]:
            return
        table = np.empty(len(values[0]), self._row)
        for result, value in zip(self._results, values, strict=True):
            table[result.name] = value.detach().to(getattr(torch, result.dtype)).numpy()
        fix = f"make room and start again: {self._done_rows()} rows are done and stay"
        with file_errors(self._partial, fix), open_secret(self._partial, _WHAT, write=True) as file:
            file.seek(batch * self._size * self._row.itemsize)
            file.write(table.tobytes())
            file.flush()
            os.fsync(file.fileno())
        done[batch] = True
        self._save(done=_ranges(done))

    def _save(self, **changes) -> None:
        self.journal = replace(self.journal, **changes)
        with file_errors(self.path):
            write_secret(self.path, json.dumps(asdict(self.journal)).encode(), _WHAT)

    def finish(self, id_name: str = "", names: Iterable[str] = ()) -> None:
        """Writes the output, if all rows are done and it is not there yet; its rows are named, or counted from 1."""
        if self.output is None or self.is_complete:
            return
        with file_errors(self.output, "make room and start again: all results are there and stay"):
            write = _csv if self.output.suffix.lower() == ".csv" else _npz
            with open_secret(self._partial, _WHAT) as partial, open_atomically(self.output, _MODE) as file:
                table = np.memmap(partial, self._row, "r", shape=(self.journal.rows,))
                write(file, table, self._results, id_name or ROW, names if id_name else count(1))
            self._partial.unlink()


def _reserve(file: IO[bytes], size: int) -> None:
    """Takes room for a file, where its file system knows how to. Raises OSError where there is none."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def check_space(folder: Path, rows: int, results: Sequence[Result]) -> None:
    """Raises FileError where the disk has no room for the results of so many rows, in binary and as text."""
    kinds = [(np.dtype(r.dtype), math.prod(r.shape)) for r in results]
    needed = rows * sum(count * (kind.itemsize + (_TEXT if kind.kind == "f" else 2)) for kind, count in kinds)
    with file_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < needed:
        what = f"there is no room for the results of {rows} rows"
        raise FileError(explain(what, where=str(folder), why=f"they take about {needed} bytes, {free} are free",
                                fix="make room, or name an output elsewhere"))  # fmt: skip


def _ranges(done: np.ndarray) -> tuple[tuple[int, int], ...]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], done, [False]]).astype(np.int8)))
    return tuple((int(first), int(after)) for first, after in edges.reshape(-1, 2))


def _read(path: Path) -> Journal | None:
    kinds = {"program": str, "version": int, "job": str, "rows": int, "done": list}
    with file_errors(path):
        if not path.exists():
            return None
        text = read_secret(path, _WHAT)
    try:
        fields = strict_fields(text, "the journal", kinds, _JOURNAL_BYTES)
        done = tuple((int(first), int(after)) for first, after in fields.pop("done"))
        journal = Journal(**fields, done=done)
        flat = [edge for pair in done for edge in pair]
        if journal.version == _VERSION and journal.rows >= 0 and flat == sorted(set(flat)) and (
            not flat or (flat[0] >= 0 and flat[-1] <= journal.rows)
        ):  # fmt: skip
            return journal
    except (DecodeError, TypeError, ValueError):
        pass
    raise InputError(explain("this is not a journal of predict", where=str(path),
                             why="it is damaged, or of another version", fix="name another output"))  # fmt: skip


def _csv(file: IO[bytes], table: np.ndarray, results: Sequence[Result], id_name: str, names: Iterable[object]) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([id_name, *(name for result in results for name in result.columns())])
    for name, row in zip(names, table, strict=False):
        writer.writerow(
            [name, *(str(number) for result in results for number in np.asarray(row[result.name]).reshape(-1))]
        )
    text.detach()


def _npz(file: IO[bytes], table: np.ndarray, results: Sequence[Result], id_name: str, names: Iterable[object]) -> None:
    listed = np.array([name for name, _ in zip(names, table, strict=False)])
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in ((id_name, listed), *((r.name, np.ascontiguousarray(table[r.name])) for r in results)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
