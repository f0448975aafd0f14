"""What the readers of arrays, pictures and tables have in common: what is wanted of a file, batches, and problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from protocols.errors import InputError, explain
from securemodel.files.reader import Format

MOST_PROBLEMS = 5
_WHOLE_FLOATS = 2**53  # beyond, float64 does not tell whole numbers apart


@dataclass(frozen=True)
class Wanted:
    """What one row of an input looks like."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Choice:
    """Which part of a file is meant, how it is written, and what to divide its numbers by."""

    columns: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    divide_by: float = 1.0
    id: str = ""
    form: Format = field(default_factory=Format)


@dataclass(frozen=True)
class Batch:
    """Rows that follow each other: a tensor for each input, and names where the rows have them.

    `place(row, element)` is where a row is in the file, or one of its numbers, counted over all inputs.
    """

    tensors: list[torch.Tensor] = field(repr=False)
    place: Callable[[int, int | None], str] = field(repr=False)
    names: Sequence[str] = field(default=(), repr=False)

    @property
    def rows(self) -> int:
        return len(self.tensors[0])


class Problems:
    """What was found wrong, the first few of it, told together."""

    def __init__(self) -> None:
        self._found: list[tuple[str, str, str]] = []

    def add(self, what: str, place: str, fix: str = "") -> None:
        """Raises InputError when there are enough."""
        self._found.append((what, place, fix))
        if len(self._found) == MOST_PROBLEMS:
            self.raise_any()

    def raise_any(self) -> None:
        """Raises InputError if anything was found."""
        if not self._found:
            return
        what, place, fix = self._found[0]
        others = [f"{other}: {where}" if other != what else where for other, where, _ in self._found[1:]]
        why = f"also {'; '.join(others)}" if others else ""
        raise InputError(explain(what, where=place, why=why, fix=fix or "correct the file; no row is left out"))


class Source(Protocol):
    """A file of rows that is open. `id_name` is what its rows' names are called, "" where they have none."""

    id_name: str
    notes: tuple[str, ...]

    def batches(
        self, size: int, problems: Problems, chosen: Container[int] | None = None
    ) -> Iterator[tuple[int, Batch]]:
        """Batches of `size` rows, the last of what is left, with their numbers; only the chosen ones, if given."""
        ...

    def names(self) -> Iterator[str]:
        """The names of all rows in order."""
        ...


def check_division(wanted: Sequence[Wanted], divide_by: float, path: Path) -> None:
    """Raises InputError where whole numbers would be divided."""
    if divide_by != 1 and any(not w.dtype.is_floating_point for w in wanted):
        raise InputError(explain("--divide-by is for inputs of real numbers", where=str(path),
                                 why="whole numbers would be rounded", fix="leave it out"))  # fmt: skip


def as_input(values: np.ndarray, w: Wanted, divide_by: float) -> tuple[torch.Tensor, int | None, str]:
    """Numbers [rows, ...] as an input [rows, *w.shape]; the first element that has no room there, and what it is."""
    values = values.reshape(len(values), *w.shape)
    if w.dtype.is_floating_point:
        whole = values.dtype.kind in "iu"
        beyond = (values > _WHOLE_FLOATS) | (values < -_WHOLE_FLOATS) if whole else np.zeros(1, bool)
        made = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float64) / divide_by).to(w.dtype)
        bad, what = ~torch.isfinite(made).numpy() | beyond, f"a number is not finite, or too large for {w.dtype}"
        if beyond.any():
            what = "a whole number beyond 2^53 would be rounded"
    else:
        low, high = (0, 1) if w.dtype == torch.bool else (torch.iinfo(w.dtype).min, torch.iinfo(w.dtype).max)
        bad, what = (
            (values < low) | (values > high),
            f"a whole number is not from {low} to {high}, as {w.dtype} has them",
        )
        made = torch.from_numpy(np.where(bad, 0, values).astype(np.int64)).to(w.dtype)
    places = np.flatnonzero(bad)
    return made, int(places[0]) if len(places) else None, what
