"""A folder of uploads: each is written before it counts, and read in place, so that memory holds none of them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from protocols.errors import FileError, explain

_SUFFIX = ".part"


class Spool:
    """One round's uploads at one aggregator, a file each. What was put is there after the process ends, too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _explained(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def put(self, client: str, data: bytes) -> None:
        """Keeps an upload; a file is there whole or not at all."""
        path = self._path(client)
        with _explained(path):
            new = path.with_suffix(".new")
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
            new.replace(path)

    def get(self, client: str) -> memoryview:
        """A client's upload, mapped into memory."""
        return _mapped(self._path(client))

    def all(self) -> Iterator[memoryview]:
        """All uploads."""
        return (_mapped(path) for path in sorted(self.folder.glob(f"*{_SUFFIX}")))

    def clear(self) -> None:
        """Removes the folder with all uploads."""
        with _explained(self.folder):
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()

    def _path(self, client: str) -> Path:
        return self.folder / (sha256(client.encode()).hexdigest() + _SUFFIX)


def _mapped(path: Path) -> memoryview:
    with _explained(path), open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class _explained:
    """Turns an error of the system into one of ours."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, OSError):
            what = "the folder of uploads cannot be used"
            raise FileError(explain(what, where=str(self.path), why=error.strerror or str(error))) from error
