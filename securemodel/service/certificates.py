"""Certificates that are renewed while a service runs: their files are read again when they change, without a restart."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from protocols.errors import ConfigError, explain
from securemodel.edge.errors import EdgeError
from securemodel.service.logs import Log

_LOOK_S = 5.0
"""How often the files are looked at."""


def fingerprint(path: str | None) -> str | None:
    """SHA-256 of the DER form of a front's certificate, in hex. Raises ConfigError."""
    if path is None:
        return None
    try:
        found = x509.load_pem_x509_certificates(Path(path).read_bytes())[0]
    except (OSError, ValueError) as error:
        raise ConfigError(explain("a front's certificate cannot be read", where=path, why=str(error))) from None
    return hashlib.sha256(found.public_bytes(serialization.Encoding.DER)).hexdigest()


async def watch(files: Sequence[str | Path], renew: Callable[[], None], log: Log) -> None:
    """Calls `renew` each time that files have changed. What it cannot use is logged: files are written one by one, and the
    next change may make them whole.
    """
    seen = _states(files)
    while True:
        await asyncio.sleep(_LOOK_S)
        if (now := _states(files)) == seen:
            continue
        seen = now
        try:
            renew()
        except (ConfigError, EdgeError, OSError) as error:
            log.event("certificates", state="refused", reason=str(error))
        else:
            log.event("certificates", state="renewed")


def _states(files: Sequence[str | Path]) -> list[tuple[int, int, int] | None]:
    """What changes when a file does; None where there is none."""
    return [_state(Path(file)) for file in files]


def _state(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
