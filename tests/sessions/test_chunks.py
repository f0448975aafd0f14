"""The rule by which lanes get chunks: nothing is lost, nothing is run twice at once, and every party orders the same."""

from __future__ import annotations

import copy
import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import BadFrame, ProtocolError
from securemodel.sessions.chunks import Chunks, Said, State, pack, packed_bytes, unpack

PARTIES = ("a", "b", "c")


class Lane:
    """A lane at all parties, which come on at their own pace: how far each is since the last start."""

    def __init__(self) -> None:
        self.queue: deque[int] = deque()
        self.given = 0
        self.said = dict.fromkeys(PARTIES, Said())

    def advance(self, chance: random.Random, fails: float) -> None:
        for party, said in self.said.items():
            if chance.random() < fails:
                self.said[party] = Said(said.done, State.FAILED)
            elif said.state == State.STARTING:
                self.said[party] = Said(0, State.READY if chance.random() < 0.5 else State.STARTING)
            elif said.state == State.READY and said.done < self.given and chance.random() < 0.5:
                self.said[party] = Said(said.done + 1, State.READY)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 40), lanes=st.integers(1, 4), seed=st.integers(0, 2**32), fails=st.sampled_from([0.0, 0.004])
)
def test_every_chunk_is_finished_at_every_party(count: int, lanes: int, seed: int, fails: float) -> None:
    chance, made = random.Random(seed), {lane: Lane() for lane in range(1, lanes + 1)}
    rules = [Chunks(count, lanes) for _ in PARTIES]
    finished: dict[str, set[int]] = {party: set() for party in PARTIES}
    owner: dict[int, int] = {}
    for _ in range(5000):
        if rules[0].over:
            break
        said = {party: {lane: state.said[party] for lane, state in made.items()} for party in PARTIES}
        try:
            first, *others = [rule.step(said) for rule in rules]
        except ProtocolError:
            assert fails
            return
        assert all(orders == first for orders in others)
        for lane in first.stop:
            owner = {chunk: at for chunk, at in owner.items() if at != lane}
            made[lane] = Lane()
            made[lane].said = dict.fromkeys(PARTIES, Said(0, State.FAILED))
        for lane in first.start:
            made[lane] = Lane()
        for lane, chunk in first.give:
            assert owner.setdefault(chunk, lane) == lane, "a chunk is in two hands"
            made[lane].queue.append(chunk)
            made[lane].given += 1
            assert made[lane].given - min(said.done for said in made[lane].said.values()) <= 2
        for state in made.values():
            before = {party: said.done for party, said in state.said.items()}
            state.advance(chance, fails)
            for party, said in state.said.items():
                finished[party].update(list(state.queue)[before[party] : said.done])
    assert rules[0].over
    assert all(chunks == set(range(count)) for chunks in finished.values())


def ready(lanes: int, done: int = 0) -> dict[str, dict[int, Said]]:
    return {party: {lane: Said(done, State.READY) for lane in range(1, lanes + 1)} for party in PARTIES}


def test_chunks_go_out_in_order_and_one_ahead() -> None:
    rule = Chunks(5, 2)
    assert rule.step({party: {1: Said(), 2: Said()} for party in PARTIES}).give == ()
    assert rule.step(ready(2)).give == ((1, 0), (2, 1), (1, 2), (2, 3))
    assert rule.step(ready(2)).give == ()
    assert rule.step(ready(2, 1)).give == ((1, 4),)


def test_a_failed_lane_gives_its_chunks_to_others_and_starts_again_when_all_have_stopped_it() -> None:
    rule = Chunks(4, 2)
    rule.step(ready(2))
    said = ready(2)
    said["b"][1] = Said(0, State.FAILED)
    orders = rule.step(said)
    assert orders.stop == (1,) and orders.start == () and orders.give == ()
    said["a"][2] = said["b"][2] = said["c"][2] = Said(1, State.READY)
    orders = rule.step(said)
    assert orders.stop == () and orders.start == (1,) and orders.give == ((2, 0),)


def fail_again_and_again(rule: Chunks, ready_first: bool) -> None:
    said = {party: {1: Said()} for party in PARTIES}
    for _ in range(10):
        if ready_first:
            rule.step(ready(1))
        said["c"] = {1: Said(0, State.FAILED)}
        rule.step(said)
        rule.step(said)


def test_a_chunk_that_fails_too_often_ends_the_job() -> None:
    with pytest.raises(ProtocolError, match="part 1 of 4 of this job has failed 3 times"):
        fail_again_and_again(Chunks(4, 1), True)


def test_lanes_that_never_come_up_end_the_job() -> None:
    with pytest.raises(ProtocolError, match="every lane has failed"):
        fail_again_and_again(Chunks(4, 1), False)


@pytest.mark.parametrize("done", [3, 2**32 - 1])
def test_a_party_that_says_that_it_has_finished_what_it_never_had(done: int) -> None:
    rule = Chunks(9, 1)
    rule.step(ready(1))
    said = ready(1)
    said["b"][1] = Said(done, State.READY)
    with pytest.raises(BadFrame, match=rf"'b' says that lane 1 has finished {done} chunks"):
        rule.step(said)


def test_a_party_that_takes_back_what_it_finished() -> None:
    rule = Chunks(9, 1)
    rule.step(ready(1))
    rule.step(ready(1, 1))
    with pytest.raises(BadFrame, match="finished 0 chunks"):
        rule.step(ready(1, 0))


def test_what_is_said_is_read_again() -> None:
    said = {1: Said(7, State.READY), 2: Said(2**32 - 1, State.FAILED)}
    data = pack(said)
    assert len(data) == packed_bytes(2) and unpack("b", data, [1, 2]) == said
    for wrong in (data[:-1], data + b"\0", b"", data[:4] + b"\3" + data[5:], copy.copy(data[:5])):
        with pytest.raises(BadFrame, match="'b'"):
            unpack("b", wrong, [1, 2])
