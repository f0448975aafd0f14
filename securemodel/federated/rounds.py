"""One aggregator as a process: a front for clients in a thread of its own, and meetings with the other aggregators.

Meetings are sessions over the parties' links (mutual TLS, pinned certificates), one to open a round and one to end it. An
aggregator that is gone is waited for, and named when its time is over; one that says something else than the others ends
all of them at once.
"""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from protocols.channel import Channel
from protocols.channel import connect as connect_channel
from protocols.errors import PeerAborted, PeerAbsent, PeerDied, PeerStalled, explain
from protocols.identity import Identity, PartiesConfig
from protocols.sealing import decryption_key, encryption_key
from securemodel.federated.aggregator import ENDED, Aggregator, Place
from securemodel.federated.front import Front
from securemodel.federated.task import Outcome, Task
from securemodel.service import server
from securemodel.service.certificates import fingerprint
from securemodel.service.connections import Limits
from securemodel.service.keys import KeyBook
from securemodel.service.logs import Log
from securemodel.sessions.serving import ServingSession, open_connection

_POLL_S = 1.0
_GRACE_S = 5.0
_LIMITS = Limits(arrival_s=300.0)
"""An upload may be some megabytes, over a slow line."""


@dataclass(frozen=True)
class Listening:
    """Where clients reach an aggregator, with which certificate (none: HTTP without TLS), and whose keys it takes."""

    host: str
    port: int
    tls: tuple[Path, Path] | None = None
    keys: KeyBook | None = None


def place_of(task: Task, me: str, config: PartiesConfig, own: Identity, folder: Path) -> Place:
    """Who this aggregator is; keys are those of the identities in the parties file. Raises ConfigError."""
    keys = [public_key(config, name) for name in task.aggregators]
    return Place(me, folder, keys, decryption_key(own))


def public_key(config: PartiesConfig, name: str) -> str:
    """The key that parts are sealed to for an aggregator, in base64url. Raises ConfigError."""
    raw = encryption_key(config.entry(name)).public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def entry(me: str, config: PartiesConfig, url: str, tls: tuple[Path, Path] | None) -> dict[str, Any]:
    """What federation.json says of this aggregator. Raises ConfigError."""
    shown = None if tls is None else fingerprint(str(tls[0]))
    return {"name": me, "url": url, "certificate": shown, "ca": None, "hpke": public_key(config, me)}


def meetings(me: str, config: PartiesConfig, own: Identity) -> Callable[[], AbstractContextManager[Channel]]:
    """Each call connects with all other aggregators. Raises PeerAbsent after the parties file's time."""
    return lambda: connect_channel(me, config, own)


def sessions(task: Task, me: str, config: PartiesConfig) -> Callable[[], ServingSession]:
    """Each call opens a session of all aggregators and the dealer for a task's programs, one lane beside the meetings."""

    def opened() -> ServingSession:
        session = open_connection(task.programs, task.digest, me, config.at_lane(1), ahead=False)
        session.load(task, None)
        return session

    return opened


def run(
    aggregator: Aggregator,
    meet: Callable[[], AbstractContextManager[Channel]],
    *,
    ended: Callable[[int, Outcome], None] = lambda number, outcome: None,
    patience_s: float = 600.0,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], Any] = time.sleep,
) -> None:
    """All rounds of an aggregator, to the last one. `ended` is told each round that ends here.

    Where another one is gone, dies, is silent or does not go on, the meeting is tried again until `patience_s` seconds after the first
    failure and the round's deadline; then its PeerError is raised, and the journal keeps what there is. Other errors of the
    agreement are raised at once.
    """
    told, failed_at = 0, None
    while not aggregator.finished:
        if (wait := aggregator.due - clock()) > 0:
            sleep(min(wait, _POLL_S))
            continue
        try:
            with meet() as channel:
                aggregator.meet(channel)
            if name := aggregator.waits_for:  # it may have begun the round in this meeting; if not, it never will
                fix = "look at that aggregator, and start it again"
                raise PeerStalled(name, explain(f"aggregator {name!r} does not go on with the round", fix=fix))
        except (PeerAbsent, PeerAborted, PeerDied, PeerStalled):
            last = aggregator.journal.last()
            failed_at = max(clock() if failed_at is None else failed_at, 0.0 if last is None else last.deadline)
            if clock() - failed_at >= patience_s:
                raise
            sleep(min(_POLL_S, patience_s))
            continue
        failed_at = None
        told = _tell(aggregator, told, ended)


def _tell(aggregator: Aggregator, told: int, ended: Callable[[int, Outcome], None]) -> int:
    """Tells of rounds that have ended since, and returns the last of them."""
    last = aggregator.journal.last()
    until = 0 if last is None else last.number if last.state in ENDED else last.number - 1
    for number in range(told + 1, until + 1):
        ended(number, aggregator.outcome(number))
    return max(told, until)


@contextmanager
def front(aggregator: Aggregator, at: Listening, log: Log) -> Iterator[int]:
    """Inside, clients are answered; the port where they are. Raises ConfigError."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="federation-front", daemon=True)
    thread.start()
    app = Front(aggregator, at.keys, log)
    try:
        started = asyncio.run_coroutine_threadsafe(
            server.start(app, at.host, at.port, tls=at.tls, limits=_LIMITS), loop
        ).result()
        try:
            yield started.port
        finally:
            asyncio.run_coroutine_threadsafe(started.stop(_GRACE_S), loop).result(4 * _GRACE_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_GRACE_S)
        loop.close()
