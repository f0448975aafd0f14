"""What waits at the leader: requests whose shares all parties have, and the lanes that run them, by version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from securemodel.service.agreement import Key, Request, Shape
from securemodel.service.messages import Place
from securemodel.service.queueing import choose, smallest, wait_s

MAX_PLACES = 128
LaneKey = tuple[str, int, int]
"""A model, its version, and the number of a lane."""


@dataclass
class LaneState:
    """Whether a lane can run, what it runs, and how long its sizes take."""

    up: bool = True
    run: int = 0
    seconds: Mapping[int, float] = field(default_factory=dict)
    session: str = ""


class Waiting:
    """Requests that wait for a lane. `shapes` and `lanes` are those of all versions that can be asked for."""

    def __init__(self) -> None:
        self.shapes: dict[Key, Shape] = {}
        self.lanes: dict[LaneKey, LaneState] = {}
        self._ready: dict[Key, list[Request]] = {}

    def add(self, request: Request) -> None:
        """All parties have its shares."""
        self._ready.setdefault(_key(request), []).append(request)

    def remove(self, request: Request) -> None:
        """It does not wait any more, if it did."""
        queue = self._ready.get(_key(request), [])
        if request in queue:
            queue.remove(request)

    def clear(self) -> None:
        """Nothing waits: a party has lost its shares."""
        self._ready = {}

    def idle(self) -> Iterator[tuple[LaneKey, LaneState]]:
        """Lanes that can run something that waits. Lanes after one that took all that waits are not among them."""
        for key, lane in self.lanes.items():
            if self._ready.get(key[:2]) and key[:2] in self.shapes and lane.up and not lane.run:
                yield key, lane

    def take(self, key: LaneKey) -> tuple[int, list[Place]]:
        """(the size of a lane's next run, the requests that are in it), which do not wait any more."""
        version, shape = key[:2], self.shapes[key[:2]]
        queue = sorted(self._ready[version], key=lambda request: request.deadline)
        rows = [request.own.rows for request in queue]
        size, taken = choose(rows, shape.sizes, self.lanes[key].seconds, shape.alone)
        places, row = [], 0
        for position in taken[:MAX_PLACES]:
            places.append(Place(queue[position].id, row, rows[position]))
            row += rows[position]
        chosen = {place.id for place in places}
        self._ready[version] = [request for request in queue if request.id not in chosen]
        return size, places

    def too_late(self, now: float, request: Request) -> bool:
        """Whether not even a run that begins now would answer in time."""
        shape = self.shapes.get(_key(request))
        size = smallest(shape.sizes, request.own.rows) if shape else 0
        return now + self._seconds(request).get(size, 0.0) > request.deadline

    def hopeless(self, now: float, request: Request) -> bool:
        """Whether what waits before a new request takes too long for it."""
        key = _key(request)
        shape = self.shapes.get(key)
        if shape is None:
            return False
        ahead = sum(other.own.rows for other in self._ready.get(key, ()) if other.deadline <= request.deadline)
        lanes = sum(1 for of, lane in self.lanes.items() if of[:2] == key and lane.up)
        wait = wait_s(ahead, shape.sizes, self._seconds(request), lanes) if ahead > shape.sizes[-1] else 0.0
        return self.too_late(now + wait, request)

    def _seconds(self, request: Request) -> Mapping[int, float]:
        return next((lane.seconds for of, lane in self.lanes.items() if of[:2] == _key(request)), {})


def _key(request: Request) -> Key:
    return request.own.model, request.version
