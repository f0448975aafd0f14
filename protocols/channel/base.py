"""What a party holds to talk to the others, whatever carries the messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from protocols.channel.buffers import Buffer
from protocols.channel.frame import Expected, Label
from protocols.channel.stats import ChannelStats, LinkCounter
from protocols.errors import InputError, ProtocolError, explain, public_reason

if TYPE_CHECKING:
    from typing_extensions import Self


class Channel(ABC):
    """Labeled messages between one party (`me`) and its peers; one per process and session, used by one thread.

    `session` is 32 bytes that all parties of the session computed alike and that no other session has.
    Every wait ends: with the message, or with a PeerError that names the peer, the message and the time waited.
    After an error the channel is closed and the peers were told.
    """

    def __init__(self, me: str, peers: Sequence[str], session: bytes) -> None:
        self.me = me
        self.peers = tuple(peers)
        self.session = session
        self._rounds = 0
        self._counters = {peer: LinkCounter() for peer in self.peers}
        self._closed = ""
        self._begun = False

    @property
    def stats(self) -> ChannelStats:
        """Counts up to now; the returned value does not change."""
        return ChannelStats(self._rounds, {peer: counter.snapshot() for peer, counter in self._counters.items()})

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return bool(self._closed)

    def exchange(
        self, label: Label, sends: Mapping[str, Sequence[Buffer]], receives: Mapping[str, int]
    ) -> dict[str, torch.Tensor]:
        """One round: send all, receive all, at once, whatever the sizes.

        `sends`: buffers per peer, joined into one message; `receives`: exact payload bytes per peer.
        Returns a new uint8 tensor per peer of `receives`. Raises PeerError.
        """
        self.begin(label, sends, receives)
        return self.finish()

    def begin(self, label: Label, sends: Mapping[str, Sequence[Buffer]], receives: Mapping[str, int]) -> None:
        """First half of `exchange`: hand over what is to be sent. The buffers must not change before `finish` returns."""
        self._check_usable((*sends, *receives))
        if sends or receives:
            self._rounds += 1
        self._start(label, sends, {peer: Expected(label, nbytes) for peer, nbytes in receives.items()})

    def finish(self) -> dict[str, torch.Tensor]:
        """Second half of `exchange`: wait until everything was sent and received."""
        self._begun = False
        try:
            return self._finish()
        except BaseException as error:  # also an interrupt: the peers must not be left waiting
            self.abort(public_reason(error))
            raise

    def send(self, peer: str, label: Label, buffers: Sequence[Buffer]) -> None:
        """Send one message, not counted as a round. Returns when the buffers may be reused. Raises PeerError."""
        self._check_usable((peer,))
        self._start(label, {peer: buffers}, {})
        self.finish()

    def receive(self, peer: str, label: Label, nbytes: int | None = None, *, max_bytes: int = 0) -> torch.Tensor:
        """Receive one message of exactly `nbytes`, or of at most `max_bytes`; not counted as a round. Raises PeerError."""
        self._check_usable((peer,))
        self._start(label, {}, {peer: Expected(label, max_bytes if nbytes is None else nbytes, nbytes is not None)})
        return self.finish()[peer]

    def look(self) -> None:
        """Whether all peers are still there, between two rounds and without waiting. Raises PeerError, and closes."""
        self._check_usable(())
        try:
            self._look()
        except BaseException as error:
            self.abort(public_reason(error))
            raise

    def _start(self, label: Label, sends: Mapping[str, Sequence[Buffer]], receives: Mapping[str, Expected]) -> None:
        if self._begun:
            raise ProtocolError(
                explain(
                    f"party {self.me!r} began {label} before it finished its previous round",
                    fix="call finish() after every begin()",
                )
            )
        self._begun = True
        try:
            self._begin(label, sends, receives)
        except BaseException as error:  # also an interrupt: the peers must not be left waiting
            self.abort(public_reason(error))
            raise

    @abstractmethod
    def abort(self, reason: str) -> None:
        """Tell every peer that still listens to stop, with a public reason, then close. Never raises, never waits long."""

    @abstractmethod
    def close(self) -> None:
        """End the session in good order. Closing twice does nothing."""

    @abstractmethod
    def _begin(self, label: Label, sends: Mapping[str, Sequence[Buffer]], receives: Mapping[str, Expected]) -> None: ...

    @abstractmethod
    def _finish(self) -> dict[str, torch.Tensor]: ...

    @abstractmethod
    def _look(self) -> None: ...

    def _check_usable(self, names: Sequence[str]) -> None:
        if self._closed:
            raise ProtocolError(
                explain(
                    f"the channel of party {self.me!r} is closed",
                    why=self._closed,
                    fix="start a new session; channels are not reopened",
                )
            )
        for name in names:
            if name not in self._counters:
                raise InputError(
                    explain(
                        f"party {self.me!r} has no peer {name!r}",
                        why=f"its peers are {', '.join(self.peers)}",
                        fix="use one of these names",
                    )
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort(f"{self.me} stopped with {kind.__name__}")
