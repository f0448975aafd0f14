"""How a front answers: names, limits, clock, and who may ask."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from securemodel.service.logs import Log, Record
from securemodel.service.metrics import Metrics

OPEN = "open"
"""The key id of everybody where no API key is asked for."""


class Key(Protocol):
    """What is known of an API key."""

    @property
    def id(self) -> str: ...

    @property
    def models(self) -> Sequence[str]:
        """What it is for; nothing: for all."""
        ...

    def allows(self, model: str) -> bool:
        """Whether it may ask this model."""
        ...


class KeyBook(Protocol):
    """The API keys that a party knows."""

    def lookup(self, bearer: str) -> Key | None:
        """The key that a client shows, in a time that says nothing about the others; None if it is not known."""
        ...


@dataclass(frozen=True)
class Settings:
    """How a front answers. `document` gives service.json; `rank` is the party's place (0: the leader)."""

    name: str
    rank: int
    document: Callable[[], Mapping[str, Any]]
    keys: KeyBook | None = None
    """None: no key is asked for."""
    metrics: Metrics = field(default_factory=Metrics)
    log: Log = field(default_factory=lambda: Log(None))
    max_body: int = 4 << 20
    """Bytes of the largest body, whatever a model's program takes."""
    reading: int = 256 << 20
    """Bytes of all bodies that are being read at a time."""
    running: int = 256
    """Requests that are being answered at once; further ones are refused."""
    running_per_key: int = 64
    per_second: float = 2000.0
    """Requests a second with one key; `burst` of them can be saved up."""
    burst: int = 4000
    check_started: Callable[[], None] = lambda: None
    """Raises Refused while it is not known yet what the models take."""
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000

    def ended(self, record: Record) -> None:
        """Counts a request that ended, and logs it."""
        self.metrics.request(record.model, record.code or "ok")
        self.log.request(record, time.perf_counter() - record.began)
