"""A party's channel to parties in other processes: one thread drives all links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from protocols.channel.base import Channel
from protocols.channel.buffers import Buffer
from protocols.channel.frame import Expected, Label, Purpose
from protocols.channel.link import Link, Pump, say_goodbye


class TcpChannel(Channel):
    """Links to all peers over TLS (or plain TCP inside one host); made by `connect`."""

    def __init__(self, me: str, links: Mapping[str, Link], session: bytes) -> None:
        super().__init__(me, tuple(links), session)
        self._links = dict(links)
        self._counters = {peer: link.counter for peer, link in links.items()}
        self._pump = Pump(list(links.values()))
        self._receiving: list[str] = []

    def _begin(self, label: Label, sends: Mapping[str, Sequence[Buffer]], receives: Mapping[str, Expected]) -> None:
        self._receiving = list(receives)
        for peer, expected in receives.items():
            self._links[peer].expect(expected)
        for peer, buffers in sends.items():
            self._links[peer].post(label, buffers)
        for peer in sends:
            self._links[peer].flush()

    def _finish(self) -> dict[str, torch.Tensor]:
        peers, self._receiving = self._receiving, []
        self._pump.run()
        return {peer: self._links[peer].take()[1] for peer in peers}

    def _look(self) -> None:
        for link in self._links.values():
            link.look()

    def abort(self, reason: str) -> None:
        self._end(Purpose.ABORT, reason, f"it was aborted: {reason}")

    def close(self) -> None:
        self._end(Purpose.BYE, "", "close() was called")

    def _end(self, purpose: Purpose, reason: str, closed: str) -> None:
        if not self._closed:
            self._closed = closed
            say_goodbye(list(self._links.values()), purpose, reason)
            self._pump.close()
