"""Which lane runs which chunk of a long job: a public rule, so that all parties know it from what all of them have said.

The parties exchange, again and again, how far each of their lanes is. A lane that is ready at all parties has up to two
chunks, one that it runs and one that follows. A lane that fails at one party is stopped at all, its chunks go to other
lanes, and it starts again, in a new session, when all have stopped it.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from protocols.errors import BadFrame, ProtocolError, explain

_AHEAD = 2  # chunks in the hands of a lane
_MOST_STARTS, _MOST_TRIES = 4, 3
_SAID = struct.Struct("<IB")


class State(IntEnum):
    """How a lane is at one party."""

    STARTING = 0
    READY = 1
    FAILED = 2


@dataclass(frozen=True)
class Said:
    """What a party says of one of its lanes: the chunks that it has finished since it was started last."""

    done: int = 0
    state: State = State.STARTING


@dataclass(frozen=True)
class Orders:
    """What every party does now: lanes to stop, lanes to start again, and chunks for lanes, as (lane, chunk)."""

    stop: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    give: tuple[tuple[int, int], ...] = ()


@dataclass
class _Lane:
    queue: deque[int] = field(default_factory=deque)
    done: int = 0
    starts: int = 1
    stopped: bool = False


class Chunks:
    """Chunks 0 to `count` - 1 of a job, on lanes 1 to `lanes`."""

    def __init__(self, count: int, lanes: int) -> None:
        self._waiting, self._left = deque(range(count)), set(range(count))
        self._lanes = {lane: _Lane() for lane in range(1, lanes + 1)}
        self._tries = dict.fromkeys(range(count), 0)

    @property
    def over(self) -> bool:
        """Whether all parties have finished all chunks."""
        return not self._left

    def step(self, said: Mapping[str, Mapping[int, Said]]) -> Orders:
        """What follows from what all parties have said of their lanes.

        Raises BadFrame for what cannot be, ProtocolError where a chunk, or every lane, has failed too often.
        """
        stop, start = [], []
        for number, lane in self._lanes.items():
            if lane.stopped:
                if lane.starts < _MOST_STARTS:
                    self._lanes[number] = _Lane(starts=lane.starts + 1)
                    start.append(number)
                continue
            self._count(number, lane, {name: lanes[number].done for name, lanes in said.items()})
            if any(lanes[number].state == State.FAILED for lanes in said.values()):
                self._take_back(lane)
                stop.append(number)
        if self._left and all(lane.stopped and lane.starts >= _MOST_STARTS for lane in self._lanes.values()):
            why = f"each was started {_MOST_STARTS} times"
            raise ProtocolError(explain("every lane has failed", why=why, fix="look at what they said, at every party"))
        return Orders(tuple(stop), tuple(start), tuple(self._given(said, start)))

    def _count(self, number: int, lane: _Lane, done: Mapping[str, int]) -> None:
        for name, chunks in done.items():
            if not lane.done <= chunks <= lane.done + len(lane.queue):
                what = f"party {name!r} says that lane {number} has finished {chunks} chunks"
                raise BadFrame(name, explain(what, why=f"it had {lane.done}, and {len(lane.queue)} to run",
                                             fix="run the same version at every party"))  # fmt: skip
        for _ in range(min(done.values()) - lane.done):
            self._left.discard(lane.queue.popleft())
        lane.done = min(done.values())

    def _take_back(self, lane: _Lane) -> None:
        """A lane that has failed gives its chunks back; of the one that it was at, a try is counted."""
        lane.stopped = True
        for chunk in list(lane.queue)[:1]:
            self._tries[chunk] += 1
            if self._tries[chunk] >= _MOST_TRIES:
                what = f"part {chunk + 1} of {len(self._tries)} of this job has failed {_MOST_TRIES} times"
                raise ProtocolError(
                    explain(what, fix="look at what the lanes said, at every party; start again after that")
                )
        self._waiting = deque(sorted([*self._waiting, *lane.queue]))
        lane.queue.clear()

    def _given(self, said: Mapping[str, Mapping[int, Said]], started: Sequence[int]) -> list[tuple[int, int]]:
        ready = [
            number
            for number, lane in self._lanes.items()
            if not lane.stopped
            and number not in started
            and all(lanes[number].state == State.READY for lanes in said.values())
        ]
        given: list[tuple[int, int]] = []
        for depth in range(_AHEAD):
            for number in ready:
                if self._waiting and len(self._lanes[number].queue) == depth:
                    self._lanes[number].queue.append(self._waiting.popleft())
                    given.append((number, self._lanes[number].queue[-1]))
        return given


def pack(lanes: Mapping[int, Said]) -> bytes:
    """What a party says of all its lanes, in their order."""
    return b"".join(_SAID.pack(lane.done, lane.state) for lane in lanes.values())


def unpack(peer: str, data: bytes, lanes: Sequence[int]) -> dict[int, Said]:
    """What `pack` packed, from a peer. Raises BadFrame."""
    try:
        found = [Said(done, State(state)) for done, state in _SAID.iter_unpack(data)]
        return dict(zip(lanes, found, strict=True))
    except (struct.error, ValueError):
        what, fix = f"party {peer!r} says of its lanes what cannot be", "run the same version at every party"
        raise BadFrame(peer, explain(what, fix=fix)) from None


def packed_bytes(lanes: int) -> int:
    """Bytes of what `pack` packs."""
    return _SAID.size * lanes
