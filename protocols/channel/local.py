"""Parties in one process: the same frames, checks and counts as over a network, through queues.

Parties may be stepped in one thread (`begin` of all, then `finish` of all) or run in a thread each.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import permutations

import torch

from protocols.channel.base import Channel
from protocols.channel.buffers import Buffer, byte_view, gather
from protocols.channel.frame import (
    HEADER_BYTES,
    Expected,
    Label,
    Purpose,
    check_expected,
    pack_header,
    parse_header,
)
from protocols.channel.stats import LinkCounter
from protocols.errors import PeerAborted, PeerDied, PeerStalled, explain

_SMALL_BYTES = 1 << 16  # below this, what a tensor is copied to need not lie in pages for a GPU


class _Hub:
    """What the parties of one process share: a queue per direction, and who ended the session how."""

    def __init__(self, names: Sequence[str], timeout_s: float) -> None:
        self.changed = threading.Condition()
        self.queues: dict[tuple[str, str], deque[tuple[bytes, torch.Tensor]]] = {
            pair: deque() for pair in permutations(names, 2)
        }
        self.aborted: tuple[str, str] | None = None
        self.gone: set[str] = set()
        self.timeout_s = timeout_s
        self.waiting = 0
        """How many threads wait for a message."""


class _Lane:
    """One party's end of the two queues between it and one peer."""

    def __init__(self, hub: _Hub, me: str, peer: str, counter: LinkCounter) -> None:
        self._hub, self._me, self._peer, self._counter = hub, me, peer, counter
        self._outgoing, self._incoming = hub.queues[me, peer], hub.queues[peer, me]
        self._sent = self._received = 0

    def post(self, label: Label, buffers: Sequence[Buffer]) -> None:
        payload = _copied(buffers)
        nbytes = payload.numel()
        message = (pack_header(self._sent, label, nbytes), payload)
        with self._hub.changed:
            if self._peer in self._hub.gone:
                self._raise_gone(str(label))
            self._outgoing.append(message)
            if self._hub.waiting:
                self._hub.changed.notify_all()
        self._sent += 1
        self._counter.sent(HEADER_BYTES + nbytes)

    def take(self, expected: Expected, timeout_s: float | None = None) -> tuple[Label, torch.Tensor]:
        with self._hub.changed:
            if not self._incoming:
                self._wait(expected, self._hub.timeout_s if timeout_s is None else timeout_s)
            data, payload = self._incoming.popleft()
        header = parse_header(data, self._received, self._peer)
        check_expected(header, expected, self._peer)
        self._received += 1
        self._counter.received(HEADER_BYTES + header.nbytes)
        return header.label, payload

    def _wait(self, expected: Expected, timeout_s: float) -> None:
        """Until there is a message, with the hub held."""
        deadline = time.monotonic() + timeout_s
        while not self._incoming:
            if self._hub.aborted or self._peer in self._hub.gone:
                self._raise_gone(str(expected))
            left = deadline - time.monotonic()
            if left <= 0:
                self._raise_stalled(expected, timeout_s)
            self._hub.waiting += 1
            try:
                self._hub.changed.wait(left)
            finally:
                self._hub.waiting -= 1

    def look(self) -> None:
        with self._hub.changed:
            if self._hub.aborted or self._peer in self._hub.gone:
                self._raise_gone("between two messages")

    def _raise_gone(self, where: str) -> None:
        if self._hub.aborted:
            raise PeerAborted(*self._hub.aborted)
        raise PeerDied(
            self._peer,
            explain(
                f"party {self._peer!r} closed the session too early",
                where=where,
                why="the peer ended before this message was exchanged",
                fix="make sure that all parties run the same program",
            ),
        )

    def _raise_stalled(self, expected: Expected, timeout_s: float) -> None:
        raise PeerStalled(
            self._peer,
            explain(
                f"party {self._peer!r} sent nothing for {timeout_s:g} s",
                where=f"waiting for [{expected}]",
                why="that message was not sent; in one thread, every party must begin a round before any finishes it",
                fix="step the parties in order, or give local_channels a timeout_s if each party has its own thread",
            ),
        )


def _copied(buffers: Sequence[Buffer]) -> torch.Tensor:
    """The bytes of all buffers as one new tensor."""
    if len(buffers) == 1:
        (only,) = buffers
        if isinstance(only, torch.Tensor) and only.dtype is torch.uint8 and only.nbytes < _SMALL_BYTES and only.is_cpu:
            return only.reshape(-1).clone()
    views = [byte_view(buffer) for buffer in buffers]
    return gather(views, sum(map(len, views)))


class LocalChannel(Channel):
    """A party's channel to others in the same process."""

    def __init__(self, hub: _Hub, me: str, peers: Sequence[str], session: bytes) -> None:
        super().__init__(me, peers, session)
        self._hub = hub
        self._lanes = {peer: _Lane(hub, me, peer, self._counters[peer]) for peer in peers}
        self._waiting: dict[str, Expected] = {}

    def _begin(self, label: Label, sends: Mapping[str, Sequence[Buffer]], receives: Mapping[str, Expected]) -> None:
        for peer, buffers in sends.items():
            self._lanes[peer].post(label, buffers)
        self._waiting = dict(receives)

    def _finish(self) -> dict[str, torch.Tensor]:
        waiting, self._waiting = self._waiting, {}
        return {peer: self._lanes[peer].take(expected)[1] for peer, expected in waiting.items()}

    def _look(self) -> None:
        for lane in self._lanes.values():
            lane.look()

    def abort(self, reason: str) -> None:
        if not self._closed:
            self._closed = f"it was aborted: {reason}"
            with self._hub.changed:
                self._hub.aborted = self._hub.aborted or (self.me, reason)
                self._hub.changed.notify_all()

    def close(self) -> None:
        if not self._closed:
            self._closed = "close() was called"
            with self._hub.changed:
                self._hub.gone.add(self.me)
                self._hub.changed.notify_all()


class LocalLink:
    """One end of a link between two roles of one process; has what a network `Link` has."""

    def __init__(self, hub: _Hub, me: str, peer: str) -> None:
        self.me, self.peer, self.counter = me, peer, LinkCounter()
        self._hub = hub
        self._lane = _Lane(hub, me, peer, self.counter)

    def send(self, label: Label, buffers: Sequence[Buffer], *, timeout_s: float | None = None) -> None:
        """Send one message."""
        self._lane.post(label, buffers)

    def receive(
        self, label: Label, nbytes: int | None = None, *, max_bytes: int = 0, timeout_s: float | None = None
    ) -> torch.Tensor:
        """Receive one message of exactly `nbytes`, or of at most `max_bytes`."""
        expected = Expected(label, max_bytes if nbytes is None else nbytes, nbytes is not None)
        return self._lane.take(expected, timeout_s)[1]

    def receive_next(
        self, purposes: Sequence[Purpose], max_bytes: int, *, timeout_s: float | None = None
    ) -> tuple[Label, torch.Tensor]:
        """Receive the next message, whatever its epoch and node, if it has one of these purposes."""
        return self._lane.take(Expected(None, max_bytes, False, tuple(purposes)), timeout_s)

    def abort(self, reason: str) -> None:
        """Tell the other end to stop, with a public reason."""
        with self._hub.changed:
            self._hub.aborted = self._hub.aborted or (self.me, reason)
            self._hub.changed.notify_all()

    def close(self) -> None:
        """End the link in good order."""
        with self._hub.changed:
            self._hub.gone.add(self.me)
            self._hub.changed.notify_all()


def local_channels(names: Sequence[str], timeout_s: float = 0.0) -> dict[str, LocalChannel]:
    """Channels between parties of this process, by name.

    Stepped in one thread, a message that is not there when it is needed is an error at once (`timeout_s` = 0);
    with a thread for each party, give the longest time in seconds to wait for a message.
    """
    hub, session = _Hub(names, timeout_s), os.urandom(32)
    return {me: LocalChannel(hub, me, [name for name in names if name != me], session) for me in names}


def local_links(first: str, second: str, timeout_s: float = 0.0) -> tuple[LocalLink, LocalLink]:
    """The two ends of a link between two roles of this process, for instance a dealer and a party."""
    hub = _Hub((first, second), timeout_s)
    return LocalLink(hub, first, second), LocalLink(hub, second, first)
