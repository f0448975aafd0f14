"""What the command line said about this process: who it is, its files, and the protocol of its programs.

A command says it here, in this process, around the script that it runs. Nothing is read from the environment: a
variable that somebody set long ago would weaken every session after it, and nobody would see it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from protocols.channel import Meeting
from protocols.channel.notices import silent


@dataclass(frozen=True)
class Progress:
    """How far a training is: steps made, and those there will be (None: not known); its epoch, from 1; what the last step
    returned to this party, by name.
    """

    step: int
    steps: int | None
    epoch: int
    returned: Mapping[str, float]


@dataclass(frozen=True)
class Invocation:
    """What `connect` and `compile` take where the script says nothing; None where the command line does not either.

    `script` is the SHA-256 of the script's file in hexadecimal. The parties compare it, and `protocol`. A `ledger` of
    False is none. `arrivals` is what the first session goes on from (`protocols.channel.arrive`). `say` is told for whom
    this party waits, and why. `progress` is told of each training step. `rows` is
    the folder of what owners gave who share their rows and take no part. `lane`: which of the parties' sessions this is; `lanes`: of
    how many, which the parties compare. `device`: what this party computes on, of which the others see nothing.
    """

    me: str | None = None
    config: Path | None = None
    store: Path | None = None
    paillier_key: Path | None = None
    protocol: str | None = None
    script: str = ""
    ledger: Path | bool | None = None
    arrivals: list[Meeting] = field(default_factory=list)
    progress: Callable[[Progress], None] | None = None
    rows: Path | None = None
    lane: int = 0
    lanes: int = 1
    say: Callable[[str], None] = silent
    device: str | None = None


_current = Invocation()


def current() -> Invocation:
    """What the running command said; nothing outside of one."""
    return _current


@contextmanager
def invoked(said: Invocation) -> Iterator[None]:
    """Inside, this is what the command line said, to all threads of this process."""
    global _current
    before, _current = _current, said
    try:
        yield
    finally:
        _current = before
