"""Preprocessing made beforehand: one folder per party, each run used once, also across crashes.

Layout of a party's folder
  store.json    what it belongs to: version, id (the same at all parties), party, digest, number of runs
  program.txt   the program it was made for
  key           this party's stream key (32 bytes, readable by its owner only)
  cursor.json   the next unused run, and a digest of the weights its masks were used with
  load.bin, run-N.bin   the last party's dealt shares; a run's file is deleted when it is taken

The cursor is on disk before a run is used: a crash loses that run and never uses it twice.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional, Sequence

import torch

from protocols.errors import PreprocessingError, PreprocessingReused, PreprocessingUsedUp, explain
from protocols.gates import Dealt, Part
from protocols.prg import Stream, new_key
from securemodel.atomic import write_atomically
from securemodel.program import Program
from securemodel.runtime.dealing import Dealing
from securemodel.runtime.sources import split_shares

_VERSION = 1


def prepare(
    program: Program, count: int, directory: Path, progress: Callable[[int], None] = lambda done: None
) -> dict[str, Path]:
    """Makes preprocessing for `count` runs; returns each party's folder under `directory`.

    The folders appear whole or not at all. Each must reach its party over a safe way, and nobody else.
    Raises PreprocessingError when the directory already holds something.
    """
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise PreprocessingError(
            explain(f"{directory} is not empty", why="a store is never overwritten", fix="choose a new directory")
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        _write_stores(program, count, temporary, progress)
        if directory.exists():
            directory.rmdir()
        os.replace(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return {name: directory / name for name in program.parties}


def _write_stores(program: Program, count: int, directory: Path, progress: Callable[[int], None]) -> None:
    keys = {name: new_key() for name in program.parties}
    store_id = os.urandom(16).hex()
    for name, key in keys.items():
        meta = {"version": _VERSION, "id": store_id, "party": name, "digest": program.digest, "runs": count}
        write_atomically(directory / name / "store.json", json.dumps(meta, indent=1).encode())
        write_atomically(directory / name / "program.txt", program.text().encode())
        write_atomically(directory / name / "cursor.json", json.dumps({"next": 1, "weights": None}).encode())
        write_atomically(directory / name / "key", key, 0o600)
    dealing = Dealing(program.graph, program.parties, {name: Stream(key) for name, key in keys.items()})
    last = directory / program.parties[-1]
    for run in range(count + 1):
        with open(last / _run_file(run), "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            for _, shares in dealing.deal(run, run == 0):
                for share in shares:
                    file.write(memoryview(share.contiguous().view(-1).view(torch.uint8).numpy()))
            file.flush()
            os.fsync(file.fileno())
        progress(run)


def _run_file(run: int) -> str:
    return "load.bin" if run == 0 else f"run-{run}.bin"


@dataclass
class Store:
    """One party's folder of preprocessing. Opened by `connect`; one process at a time."""

    path: Path
    id: str
    runs: int
    next_run: int
    weights: Optional[str]

    @staticmethod
    def open(path: Path, program: Program, me: str) -> Store:
        """Opens the folder for this program and party. Raises PreprocessingError."""
        try:
            meta = json.loads((path / "store.json").read_text())
            cursor = json.loads((path / "cursor.json").read_text())
            found = (meta["version"], meta["party"], meta["digest"])
            store = Store(path, meta["id"], int(meta["runs"]), int(cursor["next"]), cursor["weights"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PreprocessingError(
                explain(
                    f"{path} is not a store of preprocessing",
                    why=f"{type(error).__name__}: {error}",
                    fix="point to the folder that `securemodel prepare` made for this party",
                )
            ) from error
        if found != (_VERSION, me, program.digest):
            raise PreprocessingError(
                explain(
                    f"{path} was made for party {found[1]!r} and program {found[2][:12]} (version {found[0]})",
                    why=f"this is party {me!r} with program {program.digest[:12]} (version {_VERSION})",
                    fix="prepare a store for this program, and give each party its own folder",
                )
            )
        return store

    @property
    def left(self) -> int:
        """Unused runs."""
        return self.runs - self.next_run + 1

    def key(self) -> bytes:
        """This party's stream key."""
        return (self.path / "key").read_bytes()

    def consume(self, run: int) -> None:
        """Marks a run as used, on disk, before it is used. Raises PreprocessingUsedUp or PreprocessingReused."""
        if run > self.runs:
            raise PreprocessingUsedUp(
                explain(
                    f"all {self.runs} prepared runs are used up",
                    where=str(self.path),
                    fix="make more with `securemodel prepare`, or connect to a dealer",
                )
            )
        if run < self.next_run:
            raise PreprocessingReused(
                explain(f"run {run} was used before", where=str(self.path), why="using it twice would leak data")
            )
        self.skip_to(run + 1)

    def skip_to(self, run: int) -> None:
        """Gives up all runs before `run`: another party has used them already."""
        if run <= self.next_run:
            return
        skipped, self.next_run = range(self.next_run, run - 1), run
        self._save()
        for old in skipped:
            (self.path / _run_file(old)).unlink(missing_ok=True)

    def bind_weights(self, digest: Optional[str]) -> None:
        """Ties the store to the weights it is first used with. Raises PreprocessingReused for other weights."""
        if digest is None or digest == self.weights:
            return
        if self.weights is not None:
            raise PreprocessingReused(
                explain(
                    "this store's weight masks were used with other weights",
                    where=str(self.path),
                    why="the same mask over two sets of weights shows their difference",
                    fix="prepare a new store for the new weights",
                )
            )
        self.weights = digest
        self._save()

    def close(self) -> None:
        """Lets other processes use the folder."""

    def _save(self) -> None:
        cursor = json.dumps({"next": self.next_run, "weights": self.weights})
        write_atomically(self.path / "cursor.json", cursor.encode())


class StoreSource:
    """The last party's shares out of its folder, in the program's order."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._data = torch.empty(0, dtype=torch.uint8)
        self._at = 0

    def begin(self, epoch: int, load: bool) -> None:
        """Takes an epoch's file; a run's file is deleted when it is in memory."""
        path = self._store.path / _run_file(epoch)
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise PreprocessingReused(
                explain(f"the preprocessing of run {epoch} is gone", where=str(path), why=str(error))
            ) from error
        self._data = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
        self._at = 0
        if not load:
            path.unlink()

    def dealt(self, epoch: int, node: int, parts: Sequence[Part]) -> Dealt:
        nbytes = sum(part.nbytes for part in parts)
        piece = self._data[self._at : self._at + nbytes]
        if piece.numel() != nbytes:
            raise PreprocessingError(
                explain(
                    f"the preprocessing of run {epoch} is damaged",
                    where=f"{self._store.path}, node {node}",
                    why=f"{nbytes} bytes are due, {piece.numel()} are left",
                    fix="give all parties a new store",
                )
            )
        self._at += nbytes
        return split_shares(piece.clone(), parts)

    def interrupt(self) -> None:
        return None

    def abort(self, reason: str) -> None:
        return None

    def close(self) -> None:
        return None
