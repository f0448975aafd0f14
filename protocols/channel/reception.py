"""Links that come to the dealer at any time, put together to sessions: those of one lane and one session of all parties.

What a session is called follows from what its parties drew at random when they met, so two sessions are never mixed up:
not those of two lanes, nor one with the one before it. Who has come waits at most `connect_s` for the others, counted anew
while they say that they are there and not ready, and for the end of what must end first. Nobody's error ends the waiting of another session.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from protocols.channel.hello import Hello
from protocols.channel.link import Link
from protocols.channel.meeting import Meeting, connected_twice
from protocols.channel.notices import Notices, Say, silent
from protocols.errors import PeerAbsent, PeerDied, PeerError, explain, public_reason
from protocols.identity import Identity, PartiesConfig

_POLL_S = 0.5


@dataclass
class Gathering:
    """The links of one session by party, and how long who has come waits, on the monotonic clock."""

    lane: int
    session: bytes = field(repr=False)
    until: float
    links: dict[str, Link] = field(default_factory=dict)

    @property
    def key(self) -> tuple[int, bytes]:
        """What its links have in common."""
        return self.lane, self.session

    def abort(self, error: BaseException) -> None:
        """Tells all who have come why it is over."""
        for link in self.links.values():
            link.abort(public_reason(error))


class _Door(Meeting):
    """A meeting that everybody may come to again, for another session."""

    def _note(self, hello: Hello) -> None:
        """Who came is looked at with its session."""


class Reception:
    """Receives the links of some parties until it is closed. `most`: sessions that wait at a time.

    Raises ConfigError where its address cannot be listened on.
    """

    def __init__(
        self,
        me: str,
        names: Sequence[str],
        config: PartiesConfig,
        identity: Identity | None = None,
        *,
        most: int,
        insecure_plain: bool = False,
    ) -> None:
        self._names, self._most, self._patience_s = set(names), most, config.timeouts.connect_s
        self._door = _Door(me, config, identity, insecure_plain, idle_s=math.inf)
        self._waiting: list[Gathering] = []
        self._door.open(accept=list(names), dial=[])

    def next(self, may_begin: Callable[[Gathering], str], first_s: float = math.inf, say: Say = silent) -> Gathering:
        """The next session of which all links are there and that may begin; `may_begin` says why not, or nothing.

        `say` is told, after some seconds, who is missing, and why.

        Raises what ends one session before it began, or a link, after telling those concerned: PeerAbsent for who has
        not come, or where nobody has in `first_s` seconds, Mismatch, IdentityError, BadFrame. Call it again for the
        other sessions.
        """
        until, notices = time.monotonic() + first_s, Notices(self._door.me, say)
        while True:
            for gathering in list(self._waiting):
                missing = sorted(self._names - gathering.links.keys())
                obstacle = "" if missing else may_begin(gathering)
                if not (missing or obstacle):
                    self._waiting.remove(gathering)
                    return gathering
                if missing:
                    gathering.until = max(gathering.until, self._door.patience(missing))
                if time.monotonic() >= gathering.until:
                    self._waiting.remove(gathering)
                    raise self._over(gathering, missing, obstacle)
            until = max(until, self._door.patience(self._names))
            if not self._waiting and time.monotonic() >= until:
                raise self._door._absent(sorted(self._names), first_s)
            ends = [gathering.until for gathering in self._waiting] or [until]
            if min(ends) == math.inf:  # nobody has come, and nobody has to
                self._take(threading.TIMEOUT_MAX)
                notices = Notices(self._door.me, say)
            elif not self._take(min(max(min(ends) - time.monotonic(), 0.001), _POLL_S)):
                notices.waiting(self._door.reasons(self._missing()))

    def look_again(self) -> None:
        """From another thread: what may begin has changed."""
        self._door._results.put(None)

    def close(self) -> None:
        """Frees the address, and tells who waits that this party has stopped."""
        self._door.close()
        stopped = explain(f"party {self._door.me!r} has stopped", fix="start it again")
        for gathering in self._waiting:
            gathering.abort(PeerAbsent(self._door.me, stopped))
        self._waiting.clear()

    def _missing(self) -> set[str]:
        """Who has not come: those of the sessions that wait, or everybody."""
        missing = [self._names - gathering.links.keys() for gathering in self._waiting]
        return set().union(*missing) if missing else self._names

    def _take(self, timeout_s: float) -> bool:
        """Waits for one more link, for a while; whether anything came. Raises what was wrong with it."""
        try:
            came = self._door._results.get(timeout=timeout_s)
        except queue.Empty:
            return False
        if isinstance(came, Exception):
            raise came
        if came:
            self._seat(*came)
        return True

    def _seat(self, hello: Hello, link: Link) -> None:
        """Puts a link to the others of its session. Raises IdentityError, PeerError for one that has no place."""
        key = hello.lane, hello.session
        gathering = next((found for found in self._waiting if found.key == key), None)
        error: PeerError | None = None
        if gathering is None and len(self._waiting) >= self._most:
            what = f"{self._door.me!r} has {self._most} sessions waiting, and takes no more"
            error = PeerError(hello.name, explain(what, fix="wait, or let it serve more sessions at a time"))
        elif gathering and (before := gathering.links.get(hello.name)) and not _is_gone(before):
            error = connected_twice(hello.name)
        if error:
            link.abort(public_reason(error))
            raise error
        if gathering is None:
            gathering = Gathering(*key, time.monotonic() + self._patience_s)
            self._waiting.append(gathering)
        gathering.links[hello.name] = link

    def _over(self, gathering: Gathering, missing: Sequence[str], obstacle: str) -> PeerError:
        """What ends a session that has waited for too long, once who has come knows it."""
        if missing:
            error = self._door._absent(missing, self._patience_s)
        else:
            fix = f"end another session first; it has waited for {self._patience_s:g} s"
            error = PeerError(next(iter(gathering.links)), explain(obstacle, where=f"{self._door.me!r}", fix=fix))
        gathering.abort(error)
        return error


def _is_gone(link: Link) -> bool:
    try:
        link.beat()
    except PeerDied:
        return True
    return False
