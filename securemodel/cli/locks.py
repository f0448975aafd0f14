"""Files that one process uses at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocols.errors import InputError, explain
from protocols.files import file_errors


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a file for this process, by a lock beside it that ends with the process.

    Raises InputError with the number of the process that holds it, FileError where nothing can be written there.
    """
    path = Path(os.path.realpath(path))
    lock = path.with_name(f".{path.name}.lock")
    with file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _taken(lock)
    if isinstance(handle, str):
        raise InputError(explain("another process works with this file", where=str(path), why=handle,
                                 fix="wait until it has ended, or name another file"))  # fmt: skip
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held: nobody else can hold the name
        os.close(handle)


def _taken(lock: Path) -> int | str:
    """The open lock, or who has it."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = os.read(handle, 32).decode("ascii", "replace").strip()
            os.close(handle)
            return f"process {said}" if said.isdecimal() else "a process that has just begun"
        except BaseException:
            os.close(handle)
            raise
        if _is_at(handle, lock):
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
            return handle
        os.close(handle)  # whoever held it has removed it in between


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False
