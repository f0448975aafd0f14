"""A service in one process, for tests: links without a network, and lanes that compute a linear map."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from securemodel.service.desk import Job, LaneDown
from securemodel.service.messages import AnyMessage, Connected, Disconnected, Received, pack, unpack


class Network:
    """Links of all parties, first the leader. `cut` and `join` break and restore a link without loss."""

    def __init__(self, parties: tuple[str, ...]) -> None:
        self.parties = parties
        self.ends: dict[str, MemoryLinks] = {}
        self.broken: set[str] = set()
        self.waiting: dict[tuple[str, str], list[bytes]] = {}

    def links(self, party: str) -> MemoryLinks:
        """New links of a party: if it had some, it has crashed and starts again."""
        self.crash(party)
        return MemoryLinks(self, party)

    def crash(self, party: str) -> None:
        """A party is gone, with what was on the way from it and to it."""
        end = self.ends.pop(party, None)
        self.waiting = {link: sent for link, sent in self.waiting.items() if party not in link}
        if end:
            for other in self.reached(party):
                other.disconnected(party)

    def reached(self, party: str) -> list[MemoryLinks]:
        """The ends that a party has a link to."""
        others = self.parties[1:] if party == self.parties[0] else self.parties[:1]
        return [self.ends[other] for other in others if other in self.ends]

    def renew(self, party: str, other: str) -> None:
        """Both ends of a link see a restart of the other."""
        for one, two in ((party, other), (other, party)):
            self.waiting.pop((one, two), None)
            if one in self.ends and two in self.ends:
                self.ends[one].disconnected(two)
                self.ends[one].connected(two, True)

    def cut(self, follower: str) -> None:
        """Breaks a follower's link."""
        self.broken.add(follower)
        for one, two in ((follower, self.parties[0]), (self.parties[0], follower)):
            self.ends[one].disconnected(two)

    def join(self, follower: str) -> None:
        """Restores it; what was sent meanwhile arrives."""
        self.broken.discard(follower)
        for one, two in ((follower, self.parties[0]), (self.parties[0], follower)):
            self.ends[one].connected(two, False)
            self.deliver(one, two)

    def send(self, sender: str, receiver: str, raw: bytes) -> None:
        """Puts bytes on a link; they arrive in order, later."""
        self.waiting.setdefault((sender, receiver), []).append(raw)
        asyncio.get_running_loop().call_soon(self.deliver, sender, receiver)

    def deliver(self, sender: str, receiver: str) -> None:
        """Hands over what waits on a link that is whole."""
        if {sender, receiver} & self.broken or receiver not in self.ends:
            return
        for raw in self.waiting.pop((sender, receiver), []):
            self.ends[receiver].received(sender, unpack(raw, sender))


class MemoryLinks:
    """`Links` of one party in a Network."""

    def __init__(self, network: Network, party: str) -> None:
        self.network, self.party = network, party
        self.errors: list[Exception] = []

    async def start(self, received: Received, connected: Connected, disconnected: Disconnected) -> None:
        self.received, self.connected, self.disconnected = received, connected, disconnected
        self.network.ends[self.party] = self
        for other in self.network.reached(self.party):
            self.connected(other.party, True)
            other.connected(self.party, True)

    def send(self, party: str, message: AnyMessage) -> None:
        if party in self.network.ends:
            self.network.send(self.party, party, pack(message))

    def renew(self, party: str, error: Exception | None = None) -> None:
        if error:
            self.errors.append(error)
        self.network.renew(self.party, party)

    async def close(self) -> None:
        self.network.crash(self.party)


@dataclass
class Room:
    """Where the lanes of all parties with one number meet: a run begins when all are there with the same manifest."""

    parties: tuple[str, ...]
    weight: np.ndarray
    seconds: dict[int, float]
    number: int = 0
    epoch: int = 0
    session: str = "00000000000000aa"
    up: bool = True
    runs: list[tuple[int, str]] = field(default_factory=list)
    late: set[str] = field(default_factory=set)
    """Parties whose lanes have not met the others in this session yet."""
    dry: dict[str, float] = field(default_factory=dict)
    """Parties whose runs wait for preprocessing, and since when."""
    _here: dict[str, tuple[Job, asyncio.Future]] = field(default_factory=dict)

    def lane(self, party: str, model: str = "linear", version: int = 1) -> LinearLane:
        """One party's end."""
        return LinearLane(self, party, self.number, model, version)

    def fail(self, party: str) -> None:
        """The engine of a party dies: whoever waits is told, and a new session begins."""
        here, self._here = self._here, {}
        self.session = f"{int(self.session, 16) + 1:016x}"
        for _, future in here.values():
            if not future.done():
                future.set_exception(LaneDown("the engine died", party))

    async def meet(self, party: str, job: Job) -> tuple[str, list[np.ndarray]]:
        """This party's shares of the outputs, once all parties are there."""
        future: asyncio.Future = asyncio.get_running_loop().create_future()
        self._here[party] = job, future
        if len(self._here) == len(self.parties):
            here, self._here = self._here, {}
            self.epoch += 1
            jobs = [other for other, _ in here.values()]
            same = len({(other.run, other.size, other.rows, other.manifest) for other in jobs}) == 1
            self.runs.append((self.epoch, jobs[0].manifest.hex()))
            futures = [waiting for _, waiting in here.values()]
            asyncio.get_running_loop().call_later(self.seconds.get(job.size, 0.0), self._end, futures, same)
        return await future, [job.shares[0] @ self.weight]

    def _end(self, futures: list[asyncio.Future], same: bool) -> None:
        for future in futures:
            if not future.done() and same and self.up:
                future.set_result(f"{self.session}:{self.epoch}")
            elif not future.done():
                future.set_exception(LaneDown("the parties mean different runs", ""))


@dataclass
class LinearLane:
    """A `Lane` whose model is x @ weight in the ring: a share of the input becomes a share of the output."""

    room: Room
    party: str
    number: int
    model: str
    version: int

    @property
    def dry_since(self) -> float | None:
        return self.room.dry.get(self.party)

    @property
    def up(self) -> bool:
        return self.room.up and self.party not in self.room.late

    @property
    def session(self) -> str:
        return "" if self.party in self.room.late else self.room.session

    @property
    def seconds(self) -> Mapping[int, float]:
        return self.room.seconds

    async def run(self, job: Job) -> tuple[str, list[np.ndarray]]:
        if self.party in self.room.late:
            raise LaneDown("the lane is not ready", self.party)
        return await self.room.meet(self.party, job)
