"""Preprocessing made beforehand: one folder per party, each run used once, also across crashes.

Layout of a party's folder
  store.json    what it belongs to: version, id (the same at all parties), party, digest, number of runs
  program.txt   the program it was made for
  key           this party's stream key (32 bytes, readable by its owner only)
  cursor.json   the next unused run, and a digest of what this party has of the values its load's masks were used with
  load.bin, run-N.bin   the last party's dealt shares and a checksum; a run's file is deleted when it is taken
  lock          held by the process that uses the folder

The cursor is on disk before a run is used: a crash loses that run and never uses it twice. A copy of a folder, or
one restored from a backup, must never be used: nothing in it tells that its runs were used elsewhere.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch

from protocols.devices import CPU
from protocols.errors import PreprocessingError, PreprocessingReused, PreprocessingUsedUp, explain, reason_of
from protocols.files import check_folder, create_secret, read_secret, sync_directory, write_atomically, write_secret
from protocols.gates import Dealt
from protocols.names import NAME_RULE, is_name
from protocols.prg import KEY_BYTES, Stream, new_key
from protocols.strict import strict_fields
from securemodel.compiler.ir import Phase
from securemodel.engines.masked.dealing import Dealing
from securemodel.engines.masked.sources import NoSource, Wanted, split_shares
from securemodel.errors import InputError
from securemodel.program import Program

_VERSION = 3
_CHECKSUM_BYTES = 32
MAX_RUNS = (1 << 20) - 1
_WHAT = "a store of preprocessing"
_Fields = dict[str, type | tuple[type, ...]]
_META: _Fields = {"version": int, "id": str, "party": str, "digest": str, "runs": int}
_CURSOR: _Fields = {"next": int, "weights": (str, type(None))}


def prepare(
    program: Program, count: int, directory: Path, progress: Callable[[int], None] = lambda done: None
) -> dict[str, Path]:
    """Makes preprocessing for `count` runs; returns each party's folder under `directory`.

    The folders appear whole or not at all. Each must reach its party over a safe way, and nobody else.
    Raises PreprocessingError when the directory already holds something.
    """
    directory = Path(directory)
    if program.protocol != "masked":
        raise InputError(
            explain(
                f"nothing can be prepared for a program of the protocol {program.protocol!r}",
                why="stores hold what the masked engine needs",
                fix="compile the model without protocol=",
            )
        )
    if bad := [name for name in program.parties if not is_name(name)]:
        raise InputError(explain(f"no folder can be named after {bad[0]!r}", why=NAME_RULE, fix="choose other names"))
    if not 0 < count <= MAX_RUNS:
        raise InputError(f"prepare() makes 1 to {MAX_RUNS} runs, not {count}. Choose another count.")
    with appearing(directory) as temporary:
        _write_stores(program, count, temporary, progress)
    return {name: directory / name for name in program.parties}


@contextmanager
def appearing(directory: Path) -> Iterator[Path]:
    """A folder to write into, which is `directory` in the end, or nothing where an error ends it. Raises PreprocessingError."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise PreprocessingError(
            explain(f"{directory} is not empty", why="a store is never overwritten", fix="choose a new directory")
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        yield temporary
        if directory.exists():
            directory.rmdir()
        os.replace(temporary, directory)
        sync_directory(directory.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_stores(program: Program, count: int, directory: Path, progress: Callable[[int], None]) -> None:
    keys = {name: new_key() for name in program.parties}
    store_id = os.urandom(16).hex()
    for name, key in keys.items():
        (directory / name).mkdir(mode=0o700)
        meta = {"version": _VERSION, "id": store_id, "party": name, "digest": program.digest, "runs": count}
        write_atomically(directory / name / "store.json", json.dumps(meta, indent=1).encode())
        write_atomically(directory / name / "program.txt", program.text().encode())
        write_secret(directory / name / "cursor.json", json.dumps({"next": 1, "weights": None}).encode(), _WHAT)
        write_secret(directory / name / "key", key, _WHAT)
    dealing = Dealing(program.graph, program.parties, {name: Stream(key) for name, key in keys.items()})
    last = directory / program.parties[-1]
    for run in range(count + 1):
        checksum = _checksum(store_id, run)
        with create_secret(last / _run_file(run), _WHAT) as file:
            for _, shares in dealing.deal(run, "run" if run else "load"):
                for share in shares:
                    data = share.contiguous().view(-1).view(torch.uint8).numpy().data
                    checksum.update(data)
                    file.write(data)
            file.write(checksum.digest())
            file.flush()
            os.fsync(file.fileno())
        progress(run)
    sync_directory(last)


def _checksum(store_id: str, run: int):
    """Over what a file holds, for which run and of which store: files that were mixed up are noticed."""
    return hashlib.sha256(f"{store_id} {run}\n".encode())


def _run_file(run: int) -> str:
    return "load.bin" if run == 0 else f"run-{run}.bin"


@dataclass
class Store:
    """One party's folder of preprocessing. Opened by `connect`; one process at a time."""

    path: Path
    id: str
    runs: int
    next_run: int
    weights: str | None = field(repr=False)
    _lock: IO | None = field(default=None, repr=False)
    _cleaned: bool = False

    def __post_init__(self) -> None:
        self._saved = self.next_run  # on disk: what peers say moves it only when a run is used

    @staticmethod
    def open(path: Path, program: Program, me: str) -> Store:
        """Opens the folder for this program and party, and locks it until `close`. Raises PreprocessingError."""
        lock = _locked(path)
        try:
            store = Store._read(path, program, me)
        except BaseException:
            lock.close()
            raise
        store._lock = lock
        return store

    @staticmethod
    def _read(path: Path, program: Program, me: str) -> Store:
        try:
            meta = strict_fields((path / "store.json").read_bytes(), "store.json", _META)
            cursor = strict_fields(read_secret(path / "cursor.json", _WHAT), "cursor.json", _CURSOR)
            found = (meta["version"], meta["party"], meta["digest"])
            store = Store(path, meta["id"], meta["runs"], cursor["next"], cursor["weights"])
            if not 1 <= store.next_run <= store.runs + 1:
                raise ValueError(f"cursor.json says that run {store.next_run} of {store.runs} is next")
            if len(store.key()) != KEY_BYTES:
                raise ValueError(f"the key has not {KEY_BYTES} bytes")
        except (OSError, ValueError) as error:
            raise PreprocessingError(
                explain(
                    f"{path} is not a store of preprocessing",
                    why=f"{type(error).__name__}: {reason_of(error)}",
                    fix="point to the folder that `securemodel prepare` made for this party; a damaged one is lost",
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
        return read_secret(self.path / "key", _WHAT)

    def consume(self, run: int) -> None:
        """Marks a run as used, on disk, before it is used. Raises PreprocessingUsedUp or PreprocessingReused."""
        self.check_has(run)
        if run != self.next_run:
            raise PreprocessingReused(
                explain(
                    f"run {run} is not the next unused one of this store, {self.next_run}",
                    where=str(self.path),
                    why="using it twice would leak data",
                    fix="make more with `securemodel prepare`, or connect to a dealer",
                )
            )
        self.next_run = self._saved = run + 1
        self._save()
        if not self._cleaned:
            self._cleaned = True
            self._remove_before(run)

    def check_has(self, run: int) -> None:
        """Raises PreprocessingUsedUp where the store ends before this run."""
        if run > self.runs:
            raise PreprocessingUsedUp(
                explain(
                    f"all {self.runs} prepared runs are used up",
                    where=str(self.path),
                    why="every run uses its preprocessing up",
                    fix="make more with `securemodel prepare`, or connect to a dealer",
                )
            )

    def start_at(self, run: int) -> None:
        """The next run is at least this one: another party used the earlier ones. They are given up with its use."""
        self.next_run = max(run, self.next_run)

    def _remove_before(self, run: int) -> None:
        """What was given up, and what a crash left."""
        for file in self.path.glob("run-*.bin"):
            number = file.stem.removeprefix("run-")
            if number.isdecimal() and int(number) < run:
                file.unlink(missing_ok=True)

    def bind_weights(self, digest: str | None) -> None:
        """Ties the store to the weights it is first used with. Raises PreprocessingReused for other weights."""
        if digest is None or digest == self.weights:
            return
        if self.weights is not None:
            raise PreprocessingReused(
                explain(
                    "this store's weight masks were used with other weights",
                    where=str(self.path),
                    why="the same mask over two sets of weights shows their difference; public ones, and how they are "
                    "computed with the others, count as well",
                    fix="prepare a new store for the new weights",
                )
            )
        self.weights = digest
        self._save()

    def close(self) -> None:
        """Lets other processes use the folder. Nothing more can be consumed."""
        self.next_run = self.runs + 1
        if self._lock:
            self._lock.close()

    def _save(self) -> None:
        cursor = json.dumps({"next": self._saved, "weights": self.weights})
        write_secret(self.path / "cursor.json", cursor.encode(), _WHAT)


def _locked(path: Path) -> IO:
    """Takes the folder for this process; freed when it is closed or the process ends. Raises PreprocessingError."""
    try:
        check_folder(path, _WHAT)
        file = open(path / "lock", "ab")
    except OSError as error:
        raise PreprocessingError(
            explain(
                f"{path} is not a store of preprocessing",
                why=error.strerror or type(error).__name__,
                fix="point to the folder that `securemodel prepare` made for this party",
            )
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise PreprocessingError(
            explain(
                "this store is in use by another session",
                where=str(path),
                why="two sessions would use the same runs, which would leak data",
                fix="wait until that session ends, or prepare a store for each",
            )
        ) from error
    return file


class StoreSource(NoSource):
    """The last party's shares out of its folder, in the program's order."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self._data = torch.empty(0, dtype=torch.uint8)
        self._at = 0

    def begin(self, epoch: int, phase: Phase, first: int = 0) -> None:
        """Takes an epoch's file; a run's file is deleted when it is in memory."""
        path = self._store.path / _run_file(epoch)
        try:
            raw = read_secret(path, _WHAT)
        except OSError as error:
            raise PreprocessingReused(
                explain(
                    f"the preprocessing of run {epoch} is gone",
                    where=str(path),
                    why="it was used before, or the folder is incomplete",
                    fix="give all parties a new store",
                )
            ) from error
        if phase == "run":
            path.unlink()
        checksum = _checksum(self._store.id, epoch)
        checksum.update(memoryview(raw)[:-_CHECKSUM_BYTES])
        if checksum.digest() != raw[-_CHECKSUM_BYTES:]:
            raise self._damaged(epoch, "its checksum is wrong")
        payload = bytearray(memoryview(raw)[:-_CHECKSUM_BYTES])
        self._data = torch.frombuffer(payload, dtype=torch.uint8) if payload else torch.empty(0, dtype=torch.uint8)
        self._at = 0

    def dealt(self, epoch: int, wanted: Wanted, device: torch.device) -> list[Dealt]:
        pieces = []
        for node, parts in wanted:
            nbytes = sum(part.nbytes for part in parts)
            piece = self._data[self._at : self._at + nbytes]
            if piece.numel() != nbytes:
                raise self._damaged(epoch, f"node {node} needs {nbytes} bytes, {piece.numel()} are left")
            self._at += nbytes
            pieces.append(piece if device != CPU else piece.clone())
        return split_shares(pieces, [parts for _, parts in wanted], device)

    def _damaged(self, epoch: int, why: str) -> PreprocessingError:
        what, fix = f"the preprocessing of run {epoch} is damaged", "give all parties a new store"
        return PreprocessingError(explain(what, where=str(self._store.path), why=why, fix=fix))
