"""A party's inputs, row by row, out of a table, arrays or a folder of images.

A file is looked through whole before anything else happens: what cannot be used is found with its place. What is read
later, batch by batch, is compared with what was looked through. Memory does not grow with the rows, but for 16 bytes a
batch, and 8 an id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from protocols.errors import InputError, explain
from securemodel.files import arrays, images, tables
from securemodel.files.batches import Batch, Choice, Problems, Source, Wanted
from securemodel.files.reader import is_table

DIGEST_BYTES = 16

Check = Callable[[list[torch.Tensor]], None]
"""Raises an error for a batch that the program has no room for."""


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


def open_rows(
    path: Path, wanted: Sequence[Wanted], choice: Choice, size: int, check: Check = lambda inputs: None
) -> Rows:
    """Looks a file through for these inputs, in batches of `size` rows. Raises InputError, FileError.

    `check` is asked about every batch; it may be called with rows that are repeated or replaced by zeros.
    """
    suffix = path.suffix.lower()
    if not path.exists():
        raise InputError(explain("there is no such file or folder", where=str(path), fix="correct --input"))
    if path.is_dir():
        source: Source = images.open_images(path, wanted, choice)
    elif not path.is_file():
        raise InputError(explain("this is no ordinary file", where=str(path), why="files are read more than once",
                                 fix="write the rows to a file"))  # fmt: skip
    elif is_table(path):
        source = tables.open_columns(path, wanted, choice)
    elif suffix in (".npy", ".npz"):
        source = arrays.open_arrays(path, wanted, choice)
    else:
        fix = "give a table (.csv, .tsv, .txt, .csv.gz), arrays of NumPy (.npy, .npz), or a folder of images; unpack or export others"
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
    suspects = {mark.tobytes() for mark in found[counts > 1]}
    places: dict[str, str] = {}
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
        what = (
            str(error).splitlines()[0]
            if isinstance(error, InputError)
            else f"the model cannot use this input: {type(error).__name__}"
        )
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
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()[:DIGEST_BYTES]


# ---- numbers of a file as inputs
