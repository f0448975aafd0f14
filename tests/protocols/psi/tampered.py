"""Channels of parties that do not keep to the protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from protocols.channel import Label
from protocols.channel.local import LocalChannel
from protocols.psi.terms import EPOCH

COMMITMENT = "0" * 64
Change = Callable[[int, int, bytes, str], "bytes | None"]


class Tampered:
    """A channel whose party does not keep to the protocol: `change` is given step, turn, message and receiver."""

    def __init__(self, channel: LocalChannel, change: Change) -> None:
        self._channel, self._change = channel, change

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def exchange(self, label: Label, sends: Mapping[str, Sequence[Any]], receives: Mapping[str, int]) -> Any:
        changed = {}
        for peer, parts in sends.items():
            data = self._change(label.epoch - EPOCH, label.node, b"".join(bytes(memoryview(p)) for p in parts), peer)
            if data is not None:
                changed[peer] = [data]
        return self._channel.exchange(label, changed, receives)
