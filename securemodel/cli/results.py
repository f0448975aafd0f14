"""What `securemodel predict` keeps on disk: results of finished batches, a journal beside them, and the table at the end.

OUTPUT.partial has the rows that are finished, OUTPUT.journal how many these are and of which job. A batch is in the
first before it is counted in the second, so a crash at any moment loses no finished batch.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from protocols.errors import InputError, explain
from protocols.files import create_secret, open_secret, read_secret, write_secret
from protocols.strict import strict_fields
from securemodel.runtime.resume import Kept

FORMATS = (".csv", ".npz")
_WHAT = "a file of results"  # they are for their receiver alone


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
    """How far a job is, and what it must go on with: the digests of its program and of this party's input."""

    program: str
    input: str = field(repr=False)
    job: str = ""
    rows: int = 0
    done: int = 0


class Record:
    """The files of one party's part of a job. `output` is None where this party gets no results."""

    def __init__(self, output: Path | None, journal: Path, results: Sequence[Result], fresh: Journal) -> None:
        """Opens what is there. Raises InputError where it belongs to something else or is damaged."""
        self.output, self.path = output, journal
        self._results = tuple(results) if output else ()
        self._row = np.dtype([(r.name, r.dtype, r.shape) for r in self._results])
        self._partial = journal.with_suffix(".partial")
        found = _read(journal)
        self.journal = found or fresh
        parts = {"program": "program", "input": "input file or choice out of it"}
        differ = [name for key, name in parts.items() if getattr(self.journal, key) != getattr(fresh, key)]
        if not output:
            self.journal = fresh if differ else self.journal
        elif found:
            self._check(differ)
        elif output.exists():
            fix = "name another output, or move this one away"
            raise InputError(explain("the output exists already", where=str(output), fix=fix))

    def _check(self, differ: Sequence[str]) -> None:
        if differ:
            raise InputError(
                explain(
                    f"these results were begun with a different {' and '.join(differ)}",
                    where=str(self.path),
                    why=f"{self.journal.done} of {self.journal.rows} rows are done, and the rest must fit to them",
                    fix="go on with what it was begun with, or name another output",
                )
            )
        size = self._partial.stat().st_size if self._partial.exists() else 0
        if size < self.journal.done * self._row.itemsize and not self.is_complete:
            raise InputError(
                explain(
                    f"results of {self.journal.done} rows are counted, but they are not there",
                    where=str(self._partial),
                    fix="bring them back, or name another output to begin again",
                )
            )

    @property
    def is_complete(self) -> bool:
        """Whether the results of all rows are in the output."""
        return bool(self.output and self.output.exists() and 0 < self.journal.rows == self.journal.done)

    def kept(self, rows: int) -> Kept:
        """What to tell the other parties; `rows` is how many rows this party's input has, if it has one."""
        return Kept(self.journal.job, self.journal.done, rows or self.journal.rows, self.output is not None)

    def begin(self, agreed: Kept) -> None:
        """Takes part in the job the parties agreed on."""
        if agreed.job != self.journal.job:
            self._save(job=agreed.job, rows=agreed.rows, done=0)

    def add(self, first: int, rows: int, values: Sequence[torch.Tensor]) -> None:
        """Keeps the results of a batch that begins at row `first`; rows that are here already stay as they are."""
        if not self._results or first + rows <= self.journal.done:
            return
        table = np.empty(rows, self._row)
        for result, value in zip(self._results, values, strict=True):
            table[result.name] = value.detach().numpy()
        self._append(table.tobytes())
        self._save(done=first + rows)

    def _append(self, data: bytes) -> None:
        if self.journal.done:
            file = open_secret(self._partial, _WHAT, write=True)
        else:
            self._partial.unlink(missing_ok=True)
            file = create_secret(self._partial, _WHAT)
        with file:
            file.truncate(self.journal.done * self._row.itemsize)  # what a crash left of a batch not counted
            file.seek(0, os.SEEK_END)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _save(self, **changes) -> None:
        self.journal = replace(self.journal, **changes)
        write_secret(self.path, json.dumps(asdict(self.journal)).encode(), _WHAT)

    def finish(self, names: Sequence[str] = ()) -> None:
        """Writes the output, if all rows are done and it is not there yet. `names` has a name for each row."""
        if self.output is None or self.is_complete:
            return
        with open_secret(self._partial, _WHAT) as file:
            table = np.fromfile(file, self._row, count=self.journal.done)
        text = _csv if self.output.suffix == ".csv" else _npz
        write_secret(self.output, text(table, self._results, names), _WHAT)
        self._partial.unlink()


def _read(path: Path) -> Journal | None:
    if not path.exists():
        return None
    try:
        kinds = {"program": str, "input": str, "job": str, "rows": int, "done": int}
        journal = Journal(**strict_fields(read_secret(path, _WHAT), "a journal", kinds))
        if 0 <= journal.done <= journal.rows:
            return journal
    except (OSError, ValueError):
        pass
    raise InputError(explain("this is not a journal of predict", where=str(path), fix="name another output"))


def _csv(table: np.ndarray, results: Sequence[Result], names: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    columns = [name for result in results for name in result.columns()]
    writer.writerow([*(["file_name"] if names else []), *columns])
    for index, row in enumerate(table):
        numbers = [str(number) for result in results for number in np.asarray(row[result.name]).reshape(-1)]
        writer.writerow([*([names[index]] if names else []), *numbers])
    return text.getvalue().encode()


def _npz(table: np.ndarray, results: Sequence[Result], names: Sequence[str]) -> bytes:
    data = io.BytesIO()
    arrays = {result.name: np.ascontiguousarray(table[result.name]) for result in results}
    np.savez(data, **arrays, **({"file_name": np.array(names)} if names else {}))
    return data.getvalue()
