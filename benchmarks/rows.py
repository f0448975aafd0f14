"""A measurement as a row, and the file of rows, which is complete after each and can be continued."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from protocols.errors import ConfigError, explain
from protocols.files import write_atomically

SYSTEM = {
    "tls": "securemodel",
    "plain": "securemodel, no TLS",
    "local": "securemodel, one process",
    "fast": "securemodel, fast rounding",
}
NOT_KNOWN = "case not known there"
"""The problem of a row of another commit that has no such case; it is no failure."""
_SAME = ("machine", "kernels", "commit", "repeat")


@dataclass(frozen=True)
class Row:
    """One measurement; seconds run from inputs shared to result shared, or from step to step, dealer included.

    `kernels` is the variant that ran, `repeat` how many runs were timed in each turn, `items` how many images or
    sequences one run takes, `problem` the first line of what went wrong. With `--against`, `ratio` is the fastest run
    by the fastest of the other commit, and the next two are the lowest and the highest ratio of medians of one turn.
    """

    case: str
    system: str
    parties: int
    seconds: float | None
    rounds: int | None
    sent_bytes_per_party: int | None
    preprocessing_bytes: int | None
    error: float | None
    machine: str
    whole_run_seconds: float | None = None
    load_seconds: float | None = None
    compile_seconds: float | None = None
    peak_memory_bytes: int | None = None
    plaintext_seconds: float | None = None
    kernels: str | None = None
    commit: str | None = None
    repeat: int | None = None
    items: int = 1
    problem: str | None = None
    ratio: float | None = None
    lowest_ratio: float | None = None
    highest_ratio: float | None = None

    @property
    def failed(self) -> bool:
        """Whether this build could not be measured where it should have been."""
        return self.problem not in (None, NOT_KNOWN) and self.system.partition(" @")[0] in SYSTEM.values()


def row_of(values: dict[str, Any]) -> Row:
    """A row out of JSON, of which it reads what it knows."""
    return Row(**{name: value for name, value in values.items() if name in Row.__dataclass_fields__})


@dataclass
class Rows:
    """The rows so far, and the file that has them all."""

    path: Path | None = None
    rows: list[Row] = field(default_factory=list)

    def add(self, row: Row) -> None:
        """Takes the place of what was known of the same case and system; the file is whole afterwards."""
        self.rows = [old for old in self.rows if (old.case, old.system) != (row.case, row.system)] + [row]
        if self.path:
            write_atomically(self.path, json.dumps([asdict(each) for each in self.rows], indent=1).encode())

    def has(self, case: str, system: str) -> bool:
        """Whether this was measured, and did not fail."""
        return any((row.case, row.system) == (case, system) and not row.failed for row in self.rows)


def continued(path: Path | None, same: dict[str, Any]) -> Rows:
    """The rows of a file, to go on with. `same`: machine, kernels, commit and repeat of what will be added.

    Raises ConfigError for a file that is no list of rows, or has rows of this project that were made otherwise.
    """
    if not path or not path.exists() or not path.read_text().strip():
        return Rows(path)
    try:
        rows = [row_of(values) for values in json.loads(path.read_text())]
    except (ValueError, TypeError, AttributeError) as error:
        what = "the file of rows cannot be continued"
        fix = "name a file that --json made, or one that is not there yet"
        raise ConfigError(explain(what, where=str(path), why=f"it is no list of rows ({error})", fix=fix)) from None
    for row in rows:
        _check_same(path, row, same)
    return Rows(path, rows)


def _check_same(path: Path, row: Row, same: dict[str, Any]) -> None:
    if row.system not in SYSTEM.values():
        return
    differ: Sequence[str] = [name for name in _SAME if getattr(row, name) != same[name]]
    if differ:
        raise ConfigError(
            explain(
                f"the file of rows cannot be continued: its {' and '.join(differ)} differ",
                where=f"{path}, {row.case}, {row.system}",
                why="; ".join(f"{name} is {same[name]} now, and {getattr(row, name)} there" for name in differ),
                fix="name another file; rows of one file can be compared with each other",
            )
        )
