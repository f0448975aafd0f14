"""Parties whose compile times differ meet anyway: who is there and not ready is waited for, and who waits is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import securemodel
from protocols import identity
from protocols.channel import Reception, arrive, dial, notices
from protocols.channel.testing import loopback_parties, run_together
from protocols.errors import PeerAbsent
from protocols.identity import DEALER, PartiesConfig, Timeouts
from securemodel.engines.masked.dealer import serve
from securemodel.invocation import Invocation, invoked

CONNECT_S = 1.5
PARTIES = ("bank", "hospital")


class Place:
    """Parties and a dealer with identities, and what who waits was told."""

    def __init__(self, folder: Path) -> None:
        times = Timeouts(connect_s=CONNECT_S, receive_s=30.0)
        self.roster, self.identities = loopback_parties(PARTIES, folder, dealer=True, timeouts=times)
        self.folder, self.said = folder, []

    def config(self, me: str) -> PartiesConfig:
        return replace(self.roster, identity=self.folder / me)

    def wait_until_told(self, *parts: str) -> None:
        """Waits until lines with all of these were said, and the limit that does not count has passed twice."""
        deadline, least = time.monotonic() + 60, time.monotonic() + 2 * CONNECT_S
        while time.monotonic() < least or not all(any(part in line for line in self.said) for part in parts):
            assert time.monotonic() < deadline, f"nobody said {parts}, but {self.said}"
            time.sleep(0.02)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(notices, "_FIRST_S", 0.0)
    made = Place(tmp_path)
    assert identity.load(tmp_path / "bank").name == "bank"
    with invoked(Invocation(say=made.said.append)):
        yield made


@pytest.mark.parametrize("slow", [("hospital",), PARTIES])
def test_a_compile_longer_than_connect_s_ends_nobody(place: Place, program, tools, slow: tuple[str, ...]) -> None:
    """The other party waits for one; where both compile, it is the dealer that waits, for its first session."""
    compiled, x = threading.Event(), tools.rows(2)

    def party(me: str) -> Any:
        with securemodel.arriving(me, place.config(me)):
            if me in slow:
                assert compiled.wait(tools.limit_s)
            with securemodel.connect(program, me, place.config(me), ledger=False) as session:
                return session.run(x if me == "hospital" else None)

    def deal() -> None:
        serve(place.config(DEALER), place.identities[DEALER], once=True, say=place.said.append)

    def release() -> None:
        waits = ["bank: waiting for 'hospital'"] if slow != PARTIES else []
        place.wait_until_told("dealer: waiting for 'bank'", "it is there and not ready", *waits)
        compiled.set()

    parts = {**{me: lambda me=me: party(me) for me in PARTIES}, DEALER: deal, "release": release}
    results = run_together(parts, tools.limit_s)
    assert not any(isinstance(result, BaseException) for result in results.values()), results
    assert (results["hospital"] - program.model(x)).abs().max() < 2**-10


def in_time(action: Callable[[], Any]) -> float:
    """Seconds that an action took to say that a party is absent."""
    began = time.monotonic()
    with pytest.raises(PeerAbsent, match="'bank'"):
        action()
    return time.monotonic() - began


def test_the_dealer_does_not_wait_for_a_party_that_is_gone(place: Place, tools) -> None:
    """Neither for the first one, nor beside one that has come; who has not come is named."""
    config = place.config(DEALER)
    with closing(Reception(DEALER, PARTIES, config, place.identities[DEALER], most=2)) as reception:
        arrival = arrive("bank", place.config("bank"), place.identities["bank"], dealer=True)
        assert arrival is not None
        gone = threading.Timer(2 * CONNECT_S, arrival.close)
        gone.start()
        took = in_time(lambda: reception.next(lambda gathering: "", CONNECT_S, place.said.append))
        assert 2.5 * CONNECT_S < took < tools.limit_s
        link = dial("hospital", DEALER, place.config("hospital"), place.identities["hospital"])
        assert in_time(lambda: reception.next(lambda gathering: "")) < tools.limit_s
        link.abort("the test is over")
    assert any("'bank': it is there and not ready" in line for line in place.said)
    assert any("'hospital': it has not come" in line for line in place.said)


def test_arriving_is_over_at_its_end(place: Place) -> None:
    """The party's address is free again, and a second arrival, as under `securemodel run`, does no harm."""
    for _ in range(2):
        with securemodel.arriving("bank", place.config("bank")), securemodel.arriving("bank", place.config("bank")):
            pass
    with pytest.raises(securemodel.SecureModelError, match="does not know who this process is"):
        securemodel.arriving().__enter__()
