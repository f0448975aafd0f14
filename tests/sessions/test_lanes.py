"""Lanes: sessions of the same parties side by side, served by one dealer, none of which another one's trouble reaches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from protocols.channel import Link, Reception, dial
from protocols.channel.testing import free_addresses, run_together
from protocols.errors import ConfigError, IdentityError, PeerAborted, PeerAbsent, PeerError
from protocols.identity import DEALER, MOST_LANES, Timeouts, load_config, plain_config
from securemodel.engines.labels import PROGRAM, STREAM_KEY
from securemodel.sessions.session import Session


def in_lanes(world: Any, tasks: dict[int, dict[str, Callable[[Session], Any]]], limit_s: float) -> dict:
    """What each party of each lane returned or raised, by lane and party."""

    def party(lane: int, me: str) -> Any:
        with world.connect(me, lane=lane) as session:
            return tasks[lane][me](session)

    return run_together(
        {(lane, me): lambda lane=lane, me=me: party(lane, me) for lane in tasks for me in tasks[lane]}, limit_s
    )


@pytest.mark.parametrize("lanes", [1, 3])
def test_lanes_run_side_by_side(worlds, program, tools, lanes: int) -> None:
    """All are inside a session at the same moment, and each gets its own answers and its own keys."""
    world, together = worlds(program, lanes=lanes), threading.Barrier(2 * lanes)

    def run(x: Any) -> Callable[[Session], Any]:
        def task(session: Session) -> Any:
            mine = x if session.me == "hospital" else None
            session.run(mine)
            together.wait(tools.limit_s)
            return session.run(mine), session.channel.session

        return task

    inputs = {lane: tools.rows(2, seed=lane) for lane in range(lanes)}
    results = in_lanes(world, {lane: dict.fromkeys(program.parties, run(x)) for lane, x in inputs.items()}, 120)
    for lane, x in inputs.items():
        answer, session = results[lane, "hospital"]
        assert (answer - program.model(x)).abs().max() < 2**-10
        assert results[lane, "bank"][1] == session
    assert len({session for _, session in results.values()}) == lanes
    world.wait_until_said("session ended", lanes)
    for lane in range(1, lanes):
        assert f"lane {lane}: session ended" in world.said
    assert "session ended" in world.said  # of lane 0, which nobody has to know about


def test_a_lane_that_fails_reaches_no_other(worlds, program, tools) -> None:
    world, x, dead = worlds(program, lanes=2), tools.rows(2), threading.Event()

    def die(session: Session) -> None:
        session.run(x)
        for link in [*session.channel._links.values(), session.walk.source._link]:
            link.interrupt()
        session.run(x)

    def go_on(session: Session) -> Any:
        mine = x if session.me == "hospital" else None
        session.run(mine)
        assert dead.wait(tools.limit_s)
        return session.run(mine)

    def tell() -> None:
        world.wait_until_said("lane 1: session failed")
        dead.set()

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    some = tools.tasks(program, x)
    results = in_lanes(world, {0: dict.fromkeys(program.parties, go_on), 1: {**some, "hospital": die}}, 120)
    assert isinstance(results[1, "hospital"], PeerError) and isinstance(results[1, "bank"], PeerError)
    assert (results[0, "hospital"] - program.model(x)).abs().max() < 2**-10
    again = in_lanes(
        world, {1: dict.fromkeys(program.parties, lambda s: s.run(x if s.me == "hospital" else None))}, 120
    )
    assert (again[1, "hospital"] - program.model(x)).abs().max() < 2**-10


def test_garbage_in_one_lane_reaches_no_other(worlds, program, tools) -> None:
    world, x = worlds(program, lanes=2), tools.rows(2)
    said = {name: world.config.at_lane(1) for name in program.parties}

    def ask(me: str) -> None:
        link = dial(me, DEALER, said[me], session=b"g" * 32, insecure_plain=True)
        link.send(PROGRAM, [b"hello"])
        link.receive(STREAM_KEY, 32)

    def between(session: Session) -> Any:
        mine = x if session.me == "hospital" else None
        session.run(mine)
        with pytest.raises(PeerAborted, match="cannot be read|is refused"):
            ask(session.me)
        return session.run(mine)

    results = in_lanes(world, {0: dict.fromkeys(program.parties, between)}, 120)
    assert (results[0, "hospital"] - program.model(x)).abs().max() < 2**-10
    assert any(line.startswith("lane 1: session failed") for line in world.said)


def test_a_dealer_serves_no_more_sessions_than_it_was_told_to(worlds, program, tools) -> None:
    """The next one waits its turn, and no longer than connect_s: then it is told why it cannot begin."""
    world, x = worlds(program, lanes=2, sessions=1, connect_s=1.5, receive_s=20.0), tools.rows(2)
    busy, refused = threading.Barrier(4), threading.Barrier(4)

    def first(session: Session) -> Any:
        mine = x if session.me == "hospital" else None
        session.run(mine)
        busy.wait(tools.limit_s)
        refused.wait(tools.limit_s)
        return session.run(mine)

    def second(me: str) -> None:
        busy.wait(tools.limit_s)
        try:
            with pytest.raises(PeerAborted, match="serves 1 sessions, and no more at a time"):
                world.connect(me, lane=1)
        finally:
            refused.wait(tools.limit_s)

    tasks: dict = {me: lambda me=me: second(me) for me in program.parties}

    def party(me: str) -> Any:
        with world.connect(me, lane=0) as session:
            return first(session)

    results = run_together({**tasks, **{f"first {me}": lambda me=me: party(me) for me in program.parties}}, 120)
    assert results["bank"] is None and results["hospital"] is None, results
    assert (results["first hospital"] - program.model(x)).abs().max() < 2**-10
    again = in_lanes(
        world, {1: dict.fromkeys(program.parties, lambda s: s.run(x if s.me == "hospital" else None))}, 120
    )
    assert (again[1, "hospital"] - program.model(x)).abs().max() < 2**-10


# The room in which links wait for their session.


@pytest.fixture
def room():
    """A dealer's reception for two sessions, and who may dial it."""
    first, second, third = free_addresses(3, lanes=3)
    config = plain_config({"a": first, "b": second}, dealer=third, timeouts=Timeouts(connect_s=1.0, receive_s=5.0))
    with closing(Reception(DEALER, ("a", "b"), config, most=2, insecure_plain=True)) as reception:

        def call(me: str, lane: int = 0, session: bytes = bytes(32)) -> Link:
            before = reception._door._results.qsize()
            link = dial(me, DEALER, config.at_lane(lane), session=session, insecure_plain=True)
            while reception._door._results.qsize() == before:
                time.sleep(0.005)  # links are then looked at in the order of the calls
            return link

        yield reception, call


def anything(gathering: Any) -> str:
    return ""


def test_links_are_put_together_by_lane_and_session(room) -> None:
    reception, call = room
    one, two = b"1" * 32, b"2" * 32
    made = [call("a", 0, one), call("a", 0, two), call("b", 0, two), call("b", 0, one)]
    found = [reception.next(anything), reception.next(anything)]
    assert {gathering.session for gathering in found} == {one, two}
    for gathering in found:
        assert sorted(gathering.links) == ["a", "b"]
    call("a", 1, one), call("b", 2, one)
    with pytest.raises(PeerAbsent, match="no connection with '[ab]'"):
        reception.next(anything)
    assert made


def test_one_party_twice_in_one_session_is_refused_by_name(room) -> None:
    reception, call = room
    first, second = call("a"), call("a")
    with pytest.raises(IdentityError, match="'a' connected twice"):
        reception.next(anything)
    with pytest.raises(PeerAborted, match="'a' connected twice"):
        second.receive(STREAM_KEY, 32)
    kept = call("b")
    assert sorted(reception.next(anything).links) == ["a", "b"] and first and kept


def test_a_party_that_went_away_may_come_again(room) -> None:
    reception, call = room
    call("a").interrupt()
    made = [call("a"), call("b")]
    gathering = reception.next(anything)
    gathering.links["a"].send(STREAM_KEY, [bytes(32)])
    assert made[0].receive(STREAM_KEY, 32).numel() == 32


def test_no_more_sessions_wait_than_there_is_room_for(room) -> None:
    reception, call = room
    made = [call("a", 0, bytes([n]) * 32) for n in range(3)]
    with pytest.raises(PeerError, match="has 2 sessions waiting"):
        reception.next(anything)
    with pytest.raises(PeerAborted, match="has 2 sessions waiting"):
        made[2].receive(STREAM_KEY, 32)
    call("b", 0, bytes(32))
    assert reception.next(anything).session == bytes(32)


# Where lanes are.


PLACES = {"a": "127.0.0.1:7000", "b": "127.0.0.1:7100"}


@pytest.mark.parametrize("lane", [0, 1, 99])
def test_lanes_are_on_the_ports_after_the_first(lane: int) -> None:
    config = plain_config(PLACES, dealer="127.0.0.1:6999").at_lane(lane)
    assert [entry.port for entry in config.parties.values()] == [7000 + lane, 7100 + lane]
    assert config.entry(DEALER).port == 6999 and config.lane == lane
    assert config.roster_digest() == plain_config(PLACES, dealer="127.0.0.1:6999").roster_digest()


@pytest.mark.parametrize(
    "places, lane, why",
    [
        (PLACES, 100, "'b' is at 127.0.0.1:7100"),
        (PLACES, 101, "'b' is at 127.0.0.1:7100"),
        ({**PLACES, "b": "127.0.0.1:65530"}, 6, "port 65536 is none"),
        (PLACES, MOST_LANES, f"no lane {MOST_LANES}"),
        (PLACES, -1, "no lane -1"),
    ],
)
def test_a_lane_that_has_no_place_is_refused(places: dict, lane: int, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        plain_config(places).at_lane(lane)


def test_a_lane_has_no_lanes() -> None:
    config = plain_config(PLACES).at_lane(2)
    assert config.at_lane(2) is config
    with pytest.raises(ConfigError, match="lane 3 of lane 2"):
        config.at_lane(3)


FILE = """[parties.a]
address = "10.0.0.1:7000"
lanes = ["10.0.0.2:7000", "[::1]:7001"]
[parties.b]
address = "10.0.0.9:7000"
[me]
listen = "0.0.0.0:7000"
"""


def test_a_parties_file_says_where_lanes_are(tmp_path) -> None:
    path = tmp_path / "parties.toml"
    path.write_text(FILE)
    config = load_config(path, require_certificates=False)
    found = [config.at_lane(lane).entry("a").address for lane in range(4)]
    assert found == ["10.0.0.1:7000", "10.0.0.2:7000", "[::1]:7001", "10.0.0.1:7003"]
    assert config.at_lane(2).entry("b").address == "10.0.0.9:7002"
    assert config.at_lane(2).listen == ("0.0.0.0", 7002)


@pytest.mark.parametrize("lanes", ['"10.0.0.2:7000"', "[1]", '["10.0.0.2"]'])
def test_lanes_that_are_no_addresses_are_refused(tmp_path, lanes: str) -> None:
    path = tmp_path / "parties.toml"
    path.write_text(FILE.replace('["10.0.0.2:7000", "[::1]:7001"]', lanes))
    with pytest.raises(ConfigError, match="line 3"):
        load_config(path, require_certificates=False)
