"""Peers that lie, die or fall silent in an alignment: each ends in an error that names the peer, within a time limit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import pytest

from protocols.channel import local_channels
from protocols.channel.testing import run_together
from protocols.errors import BadFrame, Mismatch, PeerDied, PeerError, PeerStalled, ProtocolError
from protocols.psi import direct, ring, union
from protocols.psi.aligning import align
from protocols.psi.curve import hash_to_curve
from protocols.psi.sets import own_set
from protocols.psi.terms import Peer, Terms, agree

PAIR = {"bank": [b"%d" % n for n in range(12)], "shop": [b"%d" % n for n in range(5, 15)]}
THREE = {**PAIR, "clinic": [b"%d" % n for n in range(3, 11)]}
LIAR, LIMIT_S = "shop", 120.0


def points(change: Callable[[bytes], bytes]) -> Callable[[int, int, bytes, str], bytes]:
    """The liar's first message of points is changed."""
    return lambda step, turn, data, peer: change(data) if (step, turn) == (direct.LISTS, 0) else data


FALSE_POINTS: dict[str, Callable[[bytes], bytes]] = {
    "zero": lambda data: bytes(32) + data[32:],
    "order 4": lambda data: data[:32] + b"\1" + bytes(31) + data[64:],
    "not reduced": lambda data: (2**255 - 19 + 9).to_bytes(32, "little") + data[32:],
    "high bit": lambda data: data[:31] + bytes([data[31] | 128]) + data[32:],
    "twice": lambda data: data[:32] + data[:32] + data[64:],
}


@pytest.mark.parametrize("learns", ["all", "bank"])
@pytest.mark.parametrize("name", FALSE_POINTS)
def test_false_points(parties, small_pieces: int, learns: str, name: str) -> None:
    found = parties.results(PAIR, Terms(learns), {LIAR: points(FALSE_POINTS[name])})
    assert isinstance(found["bank"], BadFrame) and found["bank"].party == LIAR
    assert ("an element twice" if name == "twice" else "no point of Curve25519") in str(found["bank"])
    assert isinstance(found[LIAR], Exception)


@pytest.mark.parametrize("learns", ["all", "count", "nobody"])
@pytest.mark.parametrize("name", ["zero", "not reduced"])
@pytest.mark.parametrize("hop", [1, 2])
def test_false_points_in_a_ring(parties, small_pieces: int, learns: str, name: str, hop: int) -> None:
    """Whoever gets them says so; the third party hears of it."""

    def change(step: int, turn: int, data: bytes, peer: str) -> bytes:
        return FALSE_POINTS[name](data) if (step, turn) == (ring.HOPS + hop, 0) else data

    found = parties.results(THREE, Terms(learns), {LIAR: change})
    assert isinstance(found["bank"], BadFrame) and found["bank"].party == LIAR
    assert all(isinstance(each, ProtocolError) for each in found.values())


@pytest.mark.parametrize("learns", ["all", "bank", "count", "nobody"])
@pytest.mark.parametrize("size", [-1, 1, 32])
def test_messages_of_another_length(parties, learns: str, size: int) -> None:
    def change(step: int, turn: int, data: bytes, peer: str) -> bytes:
        return data if step == 0 else data[:size] if size < 0 else data + os.urandom(size)

    found = parties.results(PAIR, Terms(learns), {LIAR: change})
    assert isinstance(found["bank"], BadFrame) and found["bank"].party == LIAR
    assert "too small" in str(found["bank"]) or "too large" in str(found["bank"])


def test_a_number_of_rows_that_is_not_true(parties, small_pieces: int) -> None:
    def change(step: int, turn: int, data: bytes, peer: str) -> bytes:
        return data.replace(b'"rows": 10', b'"rows": 11') if step == 0 else data

    found = parties.results(PAIR, Terms("all"), {LIAR: change})
    assert isinstance(found["bank"], BadFrame) and found["bank"].party == LIAR


@pytest.mark.parametrize(
    "old, new",
    [
        (b'"rows": 10', b'"rows": 99'),
        (b'"rows": 10', b'"rows": 0 '),
        (b'"rows": 10', b'"rows": -1'),
        (b'"rows": 10', b'"rows":1.5'),
        (b'"version": 1', b'"version": 2'),
        (b'"0000', b'"x000'),
        (b"{", b"["),
        (b'"rows"', b'"rowz"'),
    ],
)
def test_statements_that_make_no_sense(parties, old: bytes, new: bytes) -> None:
    def change(step: int, turn: int, data: bytes, peer: str) -> bytes:
        return data.replace(old, new) if step == 0 else data

    found = parties.results(PAIR, Terms("all", largest=50), {LIAR: change})
    assert isinstance(found["bank"], Mismatch) and found["bank"].party == LIAR


def test_wrong_tags_are_noticed_before_the_result_is_used(parties, small_pieces: int) -> None:
    """The liar returns other tags for 9 of our 12 ids: whatever their order, some that both have seem to be missing."""

    def change(step: int, turn: int, data: bytes, peer: str) -> bytes:
        return os.urandom(len(data)) if step == direct.LISTS and turn > direct.LAG else data

    found = parties.results(PAIR, Terms("all"), {LIAR: change})
    several = [isinstance(each, Mismatch) and "not the same ids" in str(each) for each in found.values()]
    assert any(several) and all(isinstance(each, (Mismatch, PeerError)) for each in found.values())


def test_tags_in_another_order_are_noticed(parties) -> None:
    def change(step: int, turn: int, data: bytes, peer: str) -> bytes:
        if (step, turn) != (direct.LISTS, direct.LAG):
            return data
        return b"".join(sorted(data[at : at + 16] for at in range(0, len(data), 16)))

    found = parties.results(PAIR, Terms("all"), {LIAR: change})
    assert isinstance(found["bank"], Mismatch) and "not the same ids" in str(found["bank"])


def test_messages_out_of_order(parties, small_pieces: int) -> None:
    def change(step: int, turn: int, data: bytes, peer: str) -> bytes | None:
        if step == direct.LISTS and turn == 1:
            return None  # the next one comes in its place
        return data

    found = parties.results(PAIR, Terms("all"), {LIAR: change})
    assert isinstance(found["bank"], BadFrame) and found["bank"].party == LIAR
    assert "the wrong message" in str(found["bank"])


@pytest.mark.parametrize("value", [11, 2**63])
def test_a_learner_that_tells_a_wrong_number(parties, value: int) -> None:
    def change(step: int, turn: int, data: bytes, peer: str) -> bytes:
        return value.to_bytes(8, "little") if step == direct.COUNT else data

    found = parties.results(PAIR, Terms(LIAR, unmatched="drop"), {LIAR: change})
    assert isinstance(found["bank"], BadFrame) and found["bank"].party == LIAR


@pytest.mark.parametrize("learns", ["all", "count", "nobody"])
@pytest.mark.parametrize("value", [0, 9, 41, 2**63])
def test_a_counter_that_tells_a_wrong_number(parties, learns: str, value: int) -> None:
    """`bank` counts. Where the number is one that can be, what follows does not fit to it."""

    def change(step: int, turn: int, data: bytes, peer: str) -> bytes:
        return value.to_bytes(8, "little") if step == ring.ANSWER else data

    found = parties.results(THREE, Terms(learns), {"bank": change})
    if learns == "count" and value == 0:
        assert found["shop"].outcome.common == 0  # a party may lie about what it counts: nothing shows it
    else:
        assert isinstance(found["shop"], PeerError)
        assert found["shop"].party in ("bank", "clinic")


@pytest.mark.parametrize("learns", ["all", "count", "nobody"])
def test_a_list_that_holds_an_element_twice(parties, learns: str) -> None:
    def change(step: int, turn: int, data: bytes, peer: str) -> bytes:
        size = 32 if learns == "nobody" else 16
        return data[:size] + data[:size] + data[2 * size :] if step == ring.COLLECT else data

    found = parties.results(THREE, Terms(learns), {LIAR: change})
    assert isinstance(found["bank"], BadFrame) and found["bank"].party == LIAR


@pytest.mark.parametrize("what", ["outside", "twice", "others"])
def test_places_that_cannot_be(parties, what: str) -> None:
    """The counter, or one on the way back, names places that are none, the same twice, or wrong ones."""

    def change(step: int, turn: int, data: bytes, peer: str) -> bytes:
        if step != ring.BACK + 1:
            return data
        places = np.frombuffer(data, "<u4").copy()
        places[0] = 2**31 if what == "outside" else places[1]
        if what == "others":
            places = np.frombuffer(data, "<u4")[::-1].copy()
        return places.tobytes()

    found = parties.results(THREE, Terms("all"), {LIAR: change})
    errors = [each for each in found.values() if isinstance(each, (BadFrame, Mismatch))]
    assert errors and all(isinstance(each, Exception) for each in found.values())
    if what != "others":
        assert {each.party for each in errors} == {LIAR}


@pytest.mark.parametrize("what", ["unsorted", "twice", "lacking", "other"])
def test_names_that_cannot_be(parties, what: str) -> None:
    def change(step: int, turn: int, data: bytes, peer: str) -> bytes:
        if step != union.NAMES:
            return data
        names = [data[at : at + 16] for at in range(0, len(data), 16)]
        if what == "unsorted":
            names = names[::-1]
        elif what == "twice":
            names[1] = names[0]
        elif what == "lacking":
            names = sorted(os.urandom(16) for _ in names)
        else:
            names[0] = bytes(16)
        return b"".join(names)

    found = parties.results(PAIR, Terms("nobody"), {LIAR: change})
    error = found["bank"]
    assert isinstance(error, Mismatch if what in ("lacking", "other") else BadFrame) and error.party == LIAR


@pytest.mark.parametrize("learns", ["all", "bank", "nobody", "count"])
@pytest.mark.parametrize("silent", [False, True])
def test_peers_that_end_or_fall_silent(parties, small_pieces: int, learns: str, silent: bool) -> None:
    def change(step: int, turn: int, data: bytes, peer: str) -> bytes:
        if step and turn == 1:
            if silent:
                time.sleep(1.5)
            raise KeyboardInterrupt  # as if the party were stopped
        return data

    start = time.monotonic()
    found = parties.results(THREE, Terms(learns), {LIAR: change}, timeout_s=0.7)
    assert time.monotonic() - start < LIMIT_S
    honest = [found[name] for name in THREE if name != LIAR]  # who waits longest says so first, and the other hears it
    assert all(isinstance(each, PeerError) for each in honest)
    assert not silent or any(isinstance(each, PeerStalled) for each in honest)
    assert isinstance(found[LIAR], KeyboardInterrupt)


def test_a_peer_that_is_gone(small_pieces: int) -> None:
    channels = local_channels(list(PAIR), 5.0)
    owns = {name: own_set(ids) for name, ids in PAIR.items()}

    def leave() -> None:
        agree(channels[LIAR], Terms("all"), Peer(10, "0" * 64))
        channels[LIAR].close()

    tasks = {"bank": lambda: align(channels["bank"], owns["bank"], Terms("all"), "0" * 64, 0), LIAR: leave}
    found = run_together(tasks)
    assert isinstance(found["bank"], PeerDied) and found["bank"].party == LIAR


def test_points_of_others_do_not_help_to_guess(parties) -> None:
    """What is sent is not the hash of an id, and not twice the same."""
    seen: list[bytes] = []

    def watch(step: int, turn: int, data: bytes, peer: str) -> bytes:
        if step == direct.LISTS and turn == 0:
            seen.extend(data[at : at + 32] for at in range(0, len(data), 32))
        return data

    for _ in range(2):
        parties.results(PAIR, Terms("all"), {LIAR: watch})
    assert len(set(seen)) == 2 * len(PAIR[LIAR])
    assert not set(seen) & {hash_to_curve(item, bytes(32)) for item in PAIR[LIAR]}
