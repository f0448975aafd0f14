"""A party's inputs, row by row, out of a table, arrays or a folder of images.

A file is looked through whole before anything else happens: what cannot be used is found with its place. What is read
later, batch by batch, is compared with what was looked through. Memory does not grow with the rows, but for 16 bytes a
batch, and 8 an id.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from protocols.errors import InputError, explain
from securemodel.data.reader import Format

DIGEST_BYTES = 16
MOST_PROBLEMS = 5
_WHOLE_FLOATS = 2**53  # beyond, float64 does not tell whole numbers apart

Check = Callable[[list[torch.Tensor]], None]
"""Raises an error for a batch that the program has no room for."""


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

    def batches(self, size: int, problems: Problems, chosen: Container[int] | None = None) -> Iterator[tuple[int, Batch]]:
        """Batches of `size` rows, the last of what is left, with their numbers; only the chosen ones, if given."""
        ...

    def names(self) -> Iterator[str]:
        """The names of all rows in order."""
        ...


@dataclass(frozen=True)
class Rows:
    """A file that was looked through: rows in all, digests of what each batch gives to the program, and of the names.

    `id_name` is empty where rows have no names; `ids` is the digest of the names where it is to be compared.
    `notes` is what the owner should know about how the file was read.
    """

    count: int
    digests: bytes = field(repr=False)
    source: Source = field(repr=False)
    size: int
    named: bytes = field(default=b"", repr=False)
    ids: bytes = field(default=b"", repr=False)

    @property
    def id_name(self) -> str:
        return self.source.id_name

    @property
    def notes(self) -> tuple[str, ...]:
        return self.source.notes

    def read(self, chosen: Sequence[int]) -> Iterator[list[torch.Tensor]]:
        """The inputs of the chosen batches, in order. Raises InputError where the file has changed."""
        due = iter(chosen)
        for index, batch in self.source.batches(self.size, Problems(), frozenset(chosen)):
            if index != next(due, None) or _digest(batch) != self._digest_of(index):
                raise _changed(batch.place(0, None))
            yield batch.tensors
        if next(due, None) is not None:
            raise _changed("end of the file")

    def names(self) -> Iterator[str]:
        """The rows' names, in order. Raises InputError where they have changed."""
        digest, rows = hashlib.sha256(), 0
        for name in self.source.names():
            digest.update(_framed(name))
            rows += 1
            yield name
        if rows != self.count or digest.digest() != self.named:
            raise _changed("the names of its rows")

    def _digest_of(self, index: int) -> bytes:
        return self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]


def _changed(place: str) -> InputError:
    return InputError(explain("the file has changed since it was looked through", where=place,
                              fix="start again; a file stays as it is while it is read"))  # fmt: skip


def open_rows(path: Path, wanted: Sequence[Wanted], choice: Choice, size: int, check: Check = lambda inputs: None) -> Rows:
    """Looks a file through for these inputs, in batches of `size` rows. Raises InputError, FileError.

    `check` is asked about every batch; it may be called with rows that are repeated or replaced by zeros.
    """
    from securemodel.data import arrays, images, tables

    suffix = path.suffix.lower()
    if not path.exists():
        raise InputError(explain("there is no such file or folder", where=str(path), fix="correct --input"))
    if path.is_dir():
        source: Source = images.open_images(path, wanted, choice)
    elif not path.is_file():
        raise InputError(explain("this is no ordinary file", where=str(path), why="files are read more than once",
                                 fix="write the rows to a file"))  # fmt: skip
    elif suffix in tables.SUFFIXES:
        source = tables.open_columns(path, wanted, choice)
    elif suffix in (".npy", ".npz"):
        source = arrays.open_arrays(path, wanted, choice)
    else:
        fix = "give a table (.csv, .tsv, .txt), arrays of NumPy (.npy, .npz), or a folder of images; unpack or export others"
        raise InputError(explain("not a kind of file that rows can be read from", where=str(path), fix=fix))
    made = _look_through(source, size, check, bool(choice.id))
    if not made.count:
        raise InputError(explain("there are no rows", where=str(path), why="\n".join(made.notes),
                                 fix="give a file with at least one row"))  # fmt: skip
    return made


def _look_through(source: Source, size: int, check: Check, with_ids: bool) -> Rows:
    problems, digests, count, ids, marks = Problems(), bytearray(), 0, hashlib.sha256(), bytearray()
    try:
        for _, batch in source.batches(size, problems):
            _ask(check, batch, problems)
            digests += _digest(batch)
            count += batch.rows
            for name in batch.names:
                ids.update(_framed(name))
                marks += _mark(name) if with_ids else b""
    except InputError:
        problems.raise_any()  # what was found before comes first
        raise
    problems.raise_any()
    _check_no_id_twice(source, size, np.frombuffer(marks, np.uint64))
    return Rows(count, bytes(digests), source, size, ids.digest(), ids.digest() if with_ids else b"")


def _check_no_id_twice(source: Source, size: int, marks: np.ndarray) -> None:
    """Raises InputError where two rows have one id: the same ids in one order then do not show whose rows meet."""
    found, counts = np.unique(marks, return_counts=True)
    suspects, places = {mark.tobytes() for mark in found[counts > 1]}, {}
    for _, batch in source.batches(size, Problems()) if suspects else ():
        for row, name in enumerate(batch.names):
            if _mark(name) not in suspects:
                continue
            place = batch.place(row, None)
            if places.setdefault(name, place) != place:
                raise InputError(explain("two rows have the same id", where=f"{places[name]}; and {place}",
                                         why="by their ids, the rows of parties and results are told apart",
                                         fix="give every row its own id, or leave out --id"))  # fmt: skip


def _mark(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()[:8]


def _framed(name: str) -> bytes:
    """A name behind its length, so that it is told apart from what follows."""
    data = name.encode()
    return f"{len(data)} ".encode() + data


def _ask(check: Check, batch: Batch, problems: Problems) -> None:
    try:
        check(batch.tensors)
    except (InputError, RuntimeError, ValueError, IndexError) as error:
        what = str(error).splitlines()[0] if isinstance(error, InputError) else f"the model cannot use this input: {type(error).__name__}"
        problems.add(what, _culprit(batch, check), "correct or rescale what stands there")


def _fails(check: Check, inputs: list[torch.Tensor]) -> bool:
    try:
        check(inputs)
    except Exception:
        return True
    return False


def _culprit(batch: Batch, check: Check) -> str:
    """Where in a batch that fails the first row, and in that row the first number, fails by itself."""
    for row in range(batch.rows):
        alone = [x[row : row + 1] for x in batch.tensors]
        if _fails(check, alone):
            return batch.place(row, _element(alone, check))
    return f"{batch.place(0, None)} or one of the {batch.rows} rows from there"


def _element(row: list[torch.Tensor], check: Check) -> int | None:
    zeros, at = [torch.zeros_like(x) for x in row], 0
    if _fails(check, zeros):
        return None
    for index, x in enumerate(row):
        for place in x.reshape(-1).nonzero().reshape(-1).tolist():
            trial = list(zeros)
            trial[index] = torch.zeros_like(x)
            trial[index].view(-1)[place] = x.reshape(-1)[place]
            if _fails(check, trial):
                return at + place
        at += x.numel()
    return None


def _digest(batch: Batch) -> bytes:
    digest = hashlib.sha256()
    for tensor in batch.tensors:
        digest.update(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.digest()[:DIGEST_BYTES]


# ---- numbers of a file as inputs
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
        bad, what = (values < low) | (values > high), f"a whole number is not from {low} to {high}, as {w.dtype} has them"
        made = torch.from_numpy(np.where(bad, 0, values).astype(np.int64)).to(w.dtype)
    places = np.flatnonzero(bad)
    return made, int(places[0]) if len(places) else None, what
