"""Alignments over TLS: what comes out, and peers that die or fall silent on a real connection."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocols.channel import Channel, connect
from protocols.channel import link as link_module
from protocols.channel.testing import loopback_parties, run_together
from protocols.errors import PeerAborted, PeerDied, PeerStalled
from protocols.identity import Timeouts
from protocols.psi.aligning import align
from protocols.psi.sets import own_set
from protocols.psi.terms import Peer, Terms, agree

SETS = {"bank": [b"%d" % n for n in range(40)], "shop": [b"%d" % n for n in range(20, 60)]}
COMMITMENT, LIMIT_S = "0" * 64, 120.0


@pytest.fixture(autouse=True)
def short_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_GOODBYE_S", 0.2)


def together(tmp_path: Path, receive_s: float, **tasks: Callable[[Channel], Any]) -> dict[str, Any]:
    """Each party's task on its own channel over TLS."""
    config, own = loopback_parties(tuple(SETS), tmp_path, timeouts=Timeouts(connect_s=20, receive_s=receive_s))

    def run(name: str) -> Any:
        channel = connect(name, config, own[name])
        try:
            return tasks[name](channel)
        finally:
            channel.close()

    return run_together({name: lambda name=name: run(name) for name in SETS})


def honest(terms: Terms) -> dict[str, Callable[[Channel], Any]]:
    return {
        name: lambda channel, ids=ids: align(channel, own_set(ids), terms, COMMITMENT, 0) for name, ids in SETS.items()
    }


@pytest.mark.parametrize("learns", ["all", "nobody"])
def test_two_parties(tmp_path: Path, learns: str) -> None:
    found = {name: made.outcome for name, made in together(tmp_path, 20, **honest(Terms(learns))).items()}
    bank, shop = found["bank"], found["shop"]
    if learns == "all":
        rows = zip(bank.positions, shop.positions, strict=True)
        assert {(int(a), int(b)) for a, b in rows} == {(n + 20, n) for n in range(20)}
    else:
        assert bank.rows == shop.rows == 60 and bank.common == 20
        assert [bank.places[n + 20] for n in range(20)] == [shop.places[n] for n in range(20)]


def test_a_peer_that_is_killed(tmp_path: Path) -> None:
    def killed(channel: Any) -> None:
        agree(channel, Terms("all"), Peer(40, COMMITMENT))
        channel._links["bank"]._stream.socket.close()  # as the system does for a process that is gone
        channel._closed = "killed"

    found = together(tmp_path, 20, bank=honest(Terms("all"))["bank"], shop=killed)
    assert isinstance(found["bank"], PeerDied) and found["bank"].party == "shop"


def test_a_peer_that_falls_silent(tmp_path: Path) -> None:
    heard = []

    def silent(channel: Channel) -> None:
        agree(channel, Terms("all"), Peer(40, COMMITMENT))
        time.sleep(2)
        heard.append(time.monotonic())

    start = time.monotonic()
    found = together(tmp_path, 0.5, bank=honest(Terms("all"))["bank"], shop=silent)
    assert isinstance(found["bank"], PeerStalled) and found["bank"].party == "shop"
    assert heard[0] - start < LIMIT_S


def test_a_peer_hears_why_the_other_stopped(tmp_path: Path) -> None:
    def refuses(channel: Channel) -> Any:
        def agreed(parties: Any) -> None:
            raise KeyboardInterrupt

        return align(channel, own_set(SETS["shop"]), Terms("all"), COMMITMENT, 0, agreed)

    found = together(tmp_path, 20, bank=honest(Terms("all"))["bank"], shop=refuses)
    assert isinstance(found["shop"], KeyboardInterrupt)
    assert isinstance(found["bank"], PeerAborted) and found["bank"].reason == "it was stopped by KeyboardInterrupt"
