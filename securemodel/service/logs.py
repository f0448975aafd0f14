"""One JSON line for each request: who, what, how long, and how it ended. Never a share, an input or a key."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO

import msgspec


@dataclass
class Record:
    """What is known of one request while it is being answered; all times in seconds on one monotonic clock."""

    began: float
    id: str = ""
    key_id: str = ""
    model: str = ""
    rows: int = 0
    run: str = ""
    status: int = 0
    code: str = ""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage: `read`, `check`, `desk`, and what the desk says of its own."""


class Log:
    """Writes records to a stream of bytes, a line each; None writes nothing."""

    def __init__(self, stream: BinaryIO | None) -> None:
        self._stream = stream

    def request(self, record: Record, seconds: float) -> None:
        """The line of a request that ended after `seconds`."""
        if self._stream is None:
            return
        line = {"time": round(time.time(), 3), "event": "request", "status": record.status, "code": record.code or "ok"}
        line |= {name: value for name in ("id", "key_id", "model", "rows", "run") if (value := getattr(record, name))}
        self._write(line | {"ms": _milliseconds({"all": seconds, **record.stages})})

    def event(self, event: str, **facts: str | float) -> None:
        """The line of anything else; `facts` are names and counts."""
        self._write({"time": round(time.time(), 3), "event": event, **facts})

    def _write(self, line: Mapping[str, object]) -> None:
        if self._stream is None:
            return
        with suppress(OSError):  # what cannot be logged, on a full disk, is done all the same
            self._stream.write(msgspec.json.encode(line) + b"\n")
            self._stream.flush()


class Handler(logging.Handler):
    """Makes lines of a log of what parts of a service say to Python's."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.event(record.levelname.lower(), text=record.getMessage())


def _milliseconds(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(1000 * value, 2) for name, value in seconds.items()}


def place_of(error: BaseException) -> str:
    """Where an error was raised: file and line, without its text, which may hold data."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
