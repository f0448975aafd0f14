"""Desks of all parties in one process, for tests: links in memory, lanes that compute x @ W, journals in a folder."""

import asyncio
import hashlib
import itertools
import time
from pathlib import Path

import numpy as np

from securemodel.service.agreement import Limits
from securemodel.service.desk import Answer, Refused, Submission
from securemodel.service.journal import Journal
from securemodel.service.party import Links, Model, PartyDesk, make_desk
from securemodel.service.testing import Network, Room

NAMES = ("bank", "hospital", "registry", "office", "shop")
WEIGHT = np.arange(6, dtype=np.int64).reshape(3, 2) - 2
SECONDS = {1: 0.001, 8: 0.002, 32: 0.004}
_ids = itertools.count(1)


def new_id() -> str:
    return hashlib.sha256(b"id %d" % next(_ids)).hexdigest()[:32]


def linear(version: int = 1, **changes) -> Model:
    facts = {"card": {"version": version}, "sizes": (1, 8, 32), "digest": b"\1" * 32}
    return Model("linear", version, **{**facts, **changes})


class Parties:
    """All desks of a service; `run` runs a test with them."""

    def __init__(self, count: int, folder: Path, *, limits: Limits | None = None, lanes: int = 1, **model) -> None:
        self.names = NAMES[:count]
        self.folder, self.limits = folder, limits or Limits()
        self.network = Network(self.names)
        self.rooms = [Room(self.names, WEIGHT, dict(SECONDS), number) for number in range(lanes)]
        self.models = [linear(**model)]
        self.desks: dict[str, PartyDesk] = {}
        self.journals: dict[str, Journal] = {}
        self.stopped: list[PartyDesk] = []

    async def close(self) -> None:
        for name in list(self.desks):
            await self.desks.pop(name).close()

    def links(self, name: str) -> Links:
        return self.network.links(name)

    async def start(self, name: str) -> PartyDesk:
        journal = self.journals[name] = Journal(self.folder / f"{name}.sqlite")
        lanes = [room.lane(name) for room in self.rooms]
        for room in self.rooms:
            room.fail(name)  # whoever began a run before it noticed that this party had crashed
        self.desks[name] = make_desk(name, self.names, lanes, journal, self.links(name), self.limits, self.models)
        await self.desks[name].start()
        return self.desks[name]

    async def kill(self, name: str) -> None:
        """A party is gone without a word, as after kill -9; its journal is what was committed."""
        desk = self.desks.pop(name)
        self.network.crash(name)
        for task in [*desk._tasks, desk._ticker]:
            task.cancel()
        for room in self.rooms:
            room.fail(name)
        self.journals[name].close()
        self.stopped.append(desk)
        await asyncio.sleep(0)

    def split(self, x: np.ndarray) -> list[np.ndarray]:
        drawn = [
            np.frombuffer(np.random.default_rng().bytes(x.nbytes), np.int64).reshape(x.shape) for _ in self.names[1:]
        ]
        return [x - sum(drawn, np.zeros_like(x)), *drawn]

    def request(self, shares: np.ndarray, id: str, key_id: str = "k", **changes) -> Submission:
        facts = {
            "id": id, "key_id": key_id, "model": "linear", "version": None, "rows": len(shares), "shares": [shares],
            "body_digest": hashlib.sha256(shares.tobytes()).digest(), "commit": id * 2, "deadline": time.monotonic() + 20,
        }  # fmt: skip
        return Submission(**{**facts, **changes})

    def bodies(self, x: np.ndarray, id: str, **changes) -> dict[str, Submission]:
        return {name: self.request(part, id, **changes) for name, part in zip(self.names, self.split(x), strict=True)}

    async def send(self, bodies: dict[str, Submission]) -> dict[str, Answer | Refused]:
        """What each party says to its body."""
        said = await asyncio.gather(*(self.desks[n].submit(b) for n, b in bodies.items()), return_exceptions=True)
        for one in said:
            if isinstance(one, BaseException) and not isinstance(one, Refused):
                raise one
        return dict(zip(bodies, said, strict=True))

    async def ask(self, x: np.ndarray, id: str = "", **changes) -> np.ndarray:
        """The client's result: it adds the shares of one run and row."""
        answers = await self.send(self.bodies(x, id or new_id(), **changes))
        return added(answers)

    def run(self, test) -> None:
        """Runs a coroutine function of a test with the desks up; a hang is an error."""

        async def whole() -> None:
            try:
                for name in self.names:
                    await self.start(name)
                await asyncio.wait_for(test(self), 90)
            finally:
                await self.close()

        asyncio.run(whole())


def added(answers: dict[str, Answer | Refused]) -> np.ndarray:
    for answer in answers.values():
        if isinstance(answer, Refused):
            raise answer
    assert len({(a.version, a.run, a.row, a.batch) for a in answers.values()}) == 1
    return sum((a.shares[0] for a in answers.values()), np.int64(0))


def codes(answers: dict[str, Answer | Refused]) -> set[str]:
    return {answer.code if isinstance(answer, Refused) else "answer" for answer in answers.values()}
