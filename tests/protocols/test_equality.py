"""Two parties find out whether they hold the same bytes, and nothing else."""

from __future__ import annotations

import os

import pytest

from protocols.equality import POINT_BYTES, Equality, _point
from protocols.errors import ProtocolError


def compared(mine: bytes, theirs: bytes, sessions: tuple[bytes, bytes] = (b"s", b"s")) -> tuple[bool, bool]:
    a, b = Equality(mine, sessions[0], "a", "b"), Equality(theirs, sessions[1], "b", "a")
    to_b, to_a = a.second(b.first), b.second(a.first)
    assert len(a.first) == len(to_a) == POINT_BYTES
    return a.is_equal(to_a), b.is_equal(to_b)


@pytest.mark.parametrize("data", [b"", b"x", bytes(1000)])
def test_equal_bytes(data: bytes) -> None:
    assert compared(data, data) == (True, True)


@pytest.mark.parametrize("other", [b"", b"X", b"x ", b"\0x"])
def test_other_bytes(other: bytes) -> None:
    assert compared(b"x", other) == (False, False)


def test_messages_are_fresh_and_belong_to_a_session() -> None:
    assert Equality(b"x", b"s", "a", "b").first != Equality(b"x", b"s", "a", "b").first
    assert compared(b"x", b"x", (b"s", b"t")) == (False, False)


def test_hashes_are_points_of_the_curve_and_not_of_its_twist() -> None:
    p, a = 2**255 - 19, 486662
    for _ in range(50):
        u = int.from_bytes(_point(os.urandom(32)), "little")
        assert pow(u**3 + a * u**2 + u, (p - 1) // 2, p) == 1


@pytest.mark.parametrize(
    "point", [bytes(32), b"\1" + bytes(31), (2**255 - 19).to_bytes(32, "little")], ids=["0", "1", "p"]
)
def test_points_of_small_order_are_refused(point: bytes) -> None:
    with pytest.raises(ProtocolError, match="no point of the curve"):
        Equality(b"x", b"s", "a", "b").second(point)


def test_an_answer_sent_back_is_no_equality() -> None:
    side = Equality(b"x", b"s", "a", "b")
    side.second(Equality(b"y", b"s", "b", "a").first)
    assert not side.is_equal(side.first)


def test_what_a_party_says_cannot_be_said_to_it_again() -> None:
    """A peer that holds something else waits for the answer, and sends the same, or something that follows from it."""
    side = Equality(b"x", b"s", "a", "b")
    assert not side.is_equal(side.second(Equality(b"y", b"s", "b", "a").first))
    assert not side.is_equal(side.second(side.first))


def test_answers_of_others_do_not_count() -> None:
    """Who holds nothing stands between two parties who hold the same, and passes on what they say."""
    a, b = Equality(b"x", b"s", "a", "between"), Equality(b"x", b"s", "b", "between")
    assert not a.is_equal(b.second(a.first)) and not b.is_equal(a.second(b.first))
