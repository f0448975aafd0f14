"""Counts of what a party sent and received.

Bytes are header plus payload of every message, the same on every transport; what TLS and TCP add is not counted.
Set-up (HELLO) and the end of a session (BYE, ABORT) are not counted either, so that counts can be compared with a plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields


@dataclass(slots=True)
class LinkCounter:
    """The running counts of one link."""

    sent_bytes: int = 0
    received_bytes: int = 0
    sent_messages: int = 0
    received_messages: int = 0

    def sent(self, nbytes: int) -> None:
        self.sent_bytes += nbytes
        self.sent_messages += 1

    def received(self, nbytes: int) -> None:
        self.received_bytes += nbytes
        self.received_messages += 1

    def snapshot(self) -> LinkStats:
        return LinkStats(self.sent_bytes, self.received_bytes, self.sent_messages, self.received_messages)


@dataclass(frozen=True, slots=True)
class LinkStats:
    """Counts of one link at one moment, or between two moments."""

    sent_bytes: int = 0
    received_bytes: int = 0
    sent_messages: int = 0
    received_messages: int = 0

    def __sub__(self, earlier: LinkStats) -> LinkStats:
        return LinkStats(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)))


@dataclass(frozen=True, slots=True)
class ChannelStats:
    """Counts of one party at one moment; `later - earlier` counts what happened in between."""

    rounds: int = 0
    links: Mapping[str, LinkStats] = field(default_factory=dict)

    def __sub__(self, earlier: ChannelStats) -> ChannelStats:
        links = {peer: link - earlier.links.get(peer, LinkStats()) for peer, link in self.links.items()}
        return ChannelStats(self.rounds - earlier.rounds, links)

    @property
    def sent_bytes(self) -> int:
        return sum(link.sent_bytes for link in self.links.values())

    @property
    def received_bytes(self) -> int:
        return sum(link.received_bytes for link in self.links.values())

    @property
    def sent_messages(self) -> int:
        return sum(link.sent_messages for link in self.links.values())

    @property
    def received_messages(self) -> int:
        return sum(link.received_messages for link in self.links.values())
