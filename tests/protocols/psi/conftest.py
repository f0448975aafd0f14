"""Parties that align their ids in threads of one process."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from protocols.channel import local_channels
from protocols.channel.testing import run_together
from protocols.psi import flows
from protocols.psi.aligning import Alignment, align
from protocols.psi.sets import own_set
from protocols.psi.terms import Terms

sys.path.insert(0, str(Path(__file__).parent))
from tampered import COMMITMENT, Change, Tampered


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
