"""A folder of uploads: each is written before it counts, and read in place, so that memory holds none of them."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

from protocols.errors import FileError, explain
from protocols.files import open_atomically, read_secret, sync_directory, write_secret

_SUFFIX = ".part"


class Spool:
    """One round's uploads at one aggregator, a file each. What was put is there after the process ends, too; unless
    `fleeting`, also after the machine lost its power: what was taken and is lost ends a round that has been agreed on.
    """

    def __init__(self, folder: Path, *, fleeting: bool = False) -> None:
        self.folder, self._fleeting = folder, fleeting
        with _explained(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not fleeting:
                sync_directory(folder.parent)

    def put(self, client: str, data: bytes) -> None:
        """Keeps an upload; a file is there whole or not at all."""
        path = self._path(client)
        with _explained(path), open_atomically(path, 0o600, durable=not self._fleeting) as file:
            file.write(data)

    def get(self, client: str) -> memoryview:
        """A client's upload, mapped into memory."""
        return _mapped(self._path(client))

    def all(self) -> Iterator[tuple[Path, memoryview]]:
        """All uploads, and where they are."""
        return ((path, _mapped(path)) for path in sorted(self.folder.glob(f"*{_SUFFIX}")))

    def remove(self, path: Path) -> None:
        """Removes an upload that cannot be read."""
        with _explained(path):
            path.unlink()

    def clear(self) -> None:
        """Removes the folder with all uploads."""
        with _explained(self.folder):
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()

    def _path(self, client: str) -> Path:
        return self.folder / (sha256(client.encode()).hexdigest() + _SUFFIX)


def drawn_once(path: Path, what: str, draw: Callable[[], bytes]) -> bytes:
    """Random bytes of a round that are drawn once, and kept beside its uploads: a round that is repeated has the same."""
    try:
        return read_secret(path, what)
    except FileNotFoundError:
        data = draw()
        write_secret(path, data, what, new=True)
        return data


def _mapped(path: Path) -> memoryview:
    with _explained(path), open(path, "rb") as file:
        if path.stat().st_size == 0:  # nothing that could be mapped
            return memoryview(b"")
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
