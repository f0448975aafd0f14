"""Parties that align their ids in threads of one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from protocols.channel import Label, local_channels
from protocols.channel.local import LocalChannel
from protocols.channel.testing import run_together
from protocols.psi import flows
from protocols.psi.aligning import Alignment, align
from protocols.psi.sets import own_set
from protocols.psi.terms import EPOCH, Terms

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


class Parties:
    """Runs an alignment of sets; `stats` has what each party's channel counted."""

    def __init__(self) -> None:
        self.stats: dict[str, Any] = {}

    def results(
        self,
        sets: Mapping[str, Sequence[bytes]],
        terms: Terms | Mapping[str, Terms],
        change: Mapping[str, Change] | None = None,
        workers: int = 0,
        timeout_s: float = 10.0,
    ) -> dict[str, Alignment | BaseException]:
        """What each party got, or the error that ended it."""
        channels: dict[str, Any] = dict(local_channels(list(sets), timeout_s))
        owns = {name: own_set(ids) for name, ids in sets.items()}
        for name, tamper in (change or {}).items():
            channels[name] = Tampered(channels[name], tamper)

        def task(name: str) -> Alignment:
            own_terms = terms if isinstance(terms, Terms) else terms[name]
            return align(channels[name], owns[name], own_terms, COMMITMENT, workers)

        out = run_together({name: lambda name=name: task(name) for name in sets})
        self.stats = {name: channel.stats for name, channel in channels.items()}
        return out

    def __call__(self, sets: Mapping[str, Sequence[bytes]], terms: Terms, workers: int = 0) -> dict[str, Any]:
        """Each party's outcome, where all went well."""
        found = self.results(sets, terms, workers=workers)
        for result in found.values():
            if isinstance(result, BaseException):
                raise result
        return {name: result.outcome for name, result in found.items()}


@pytest.fixture(scope="session")
def parties() -> Parties:
    return Parties()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Lists travel in many messages though they are short."""
    monkeypatch.setattr(flows, "PIECE", 3)
    yield 3
