"""A party's desk: requests from its front, messages of the other fronts, runs on its lanes, its journal.

The state machine decides (`leader`, `follower`); this does what it says. All of it runs in one event loop; runs are
awaited, the journal is written in a thread of its own.

    links = ControlLinks(…)                               # or securemodel.service.testing.MemoryLinks
    desk = make_desk("bank", ("bank", "hospital"), lanes, Journal(path), links, Limits(), models)
    await desk.start()                                    # listens to the other fronts, dials the leader
    ...                                                   # desk.lanes_changed() when a lane comes up or goes down
    await desk.drain()                                    # SIGTERM: finishes what waits
    await desk.close()

To publish a version: `add(model, lanes)` at every party, then `switch(name, version)` at the leader, then `idle(name,
old)` at every party, and `remove(name, old)`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from protocols.errors import BadFrame, ProtocolError, public_reason
from securemodel.service.agreement import (
    COMPUTED,
    LOST,
    RELEASED,
    RUNNING,
    Action,
    Check,
    Limits,
    Mark,
    Record,
    Refusal,
    Send,
    Shape,
    Start,
    refused,
)
from securemodel.service.agreement import Answer as Release
from securemodel.service.budgets import Budgets, renewed_in_s
from securemodel.service.desk import Answer, Job, Lane, LaneDown, Refused, Submission
from securemodel.service.follower import Follower
from securemodel.service.journal import Entry, Journal
from securemodel.service.leader import Leader
from securemodel.service.messages import AnyMessage, Claim, Connected, Disconnected, Drain, Publish, Received, Run
from securemodel.service.queueing import wait_s
from securemodel.service.records import Known, Records, is_final

_TICK_S = 0.05
_MEET_S = 0.01
_FLUSH_S = 1.0
_PROBE_S = 1.0
_RETRY_S = 1.0
_DRY_S = 1.0
"""How long a run waits for its preprocessing before that is looked at."""
_PATIENCE_S = 10.0
"""How long it may wait before this party is not ready: as long as clients wait who do not say how long."""
_GRACE_S = 1.0
"""How long after its deadline the agreement may still say what becomes of a request."""
_log = logging.getLogger("securemodel.service")


@dataclass(frozen=True)
class Model:
    """One version of a model, as all parties have it. `digest`: of its family; `rows_per_day`: of a key, None: no limit."""

    name: str
    version: int
    card: Mapping[str, Any] = field(repr=False)
    sizes: tuple[int, ...]
    digest: bytes
    alone: bool = False
    rows_per_day: int | None = None


class Links(Protocol):
    """Links to the other fronts: in order, without loss, or the other end is said to have restarted."""

    async def start(self, received: Received, connected: Connected, disconnected: Disconnected) -> None:
        """Begins; calls back with (party, message), (party, whether it restarted or is new), (party)."""
        ...

    def send(self, party: str, message: AnyMessage) -> None:
        """Sends now, or when the link is up again. What was sent to a party that restarts is forgotten."""
        ...

    def renew(self, party: str, error: Exception | None = None) -> None:
        """Ends a link and all that was said on it: both ends see a restart of the other. error: what that party did."""
        ...

    async def close(self) -> None:
        """Ends all links."""
        ...


def make_desk(
    me: str,
    parties: Sequence[str],
    lanes: Iterable[Lane],
    journal: Journal,
    links: Links,
    limits: Limits | None = None,
    models: Iterable[Model] = (),
) -> PartyDesk:
    """The desk of a party; the first of the parties is the leader. Reads what the journal knows of before."""
    desk = PartyDesk(me, tuple(parties), journal, links, limits or Limits())
    for model in models:
        desk.add(model)
    for lane in lanes:
        desk.add_lane(lane)
    return desk


class PartyDesk:
    """Implements `Desk` for a front, with what a party needs to start, publish and end. Made by `make_desk`."""

    def __init__(self, me: str, parties: tuple[str, ...], journal: Journal, links: Links, limits: Limits) -> None:
        self.me, self.leader, self.parties, self.limits = me, parties[0], parties, limits
        self._others = tuple(party for party in parties if party != me)
        self._journal, self._links = journal, links
        self._models: dict[str, dict[int, Model]] = {}
        self._lanes: dict[tuple[str, int, int], Lane] = {}
        self._turns: dict[tuple[str, int, int], asyncio.Lock] = {}
        self._sessions: defaultdict[tuple[str, int, int], set[str]] = defaultdict(set)
        self._records = Records(journal.recent(limits.keep_s), limits.keep_s)
        self._budgets = Budgets(journal.spent())
        self._machine: Leader | Follower
        known = self._records.states()
        if me == self.leader:
            self._machine = Leader(me, self._others, limits, int(time.time() * 1000) << 20, time.monotonic(), known)
        else:
            self._machine = Follower(me, self.leader, limits, time.monotonic(), known)
        self._outputs: dict[int, tuple[Sequence[np.ndarray], float, float]] = {}
        """Of runs that are not released: this party's shares, and when the run began and ended."""
        self._stopped: dict[str, str] = {}
        self._failed_at = self._flushed_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self.observers: list[Callable[[str, Mapping[str, Any]], None]] = []
        """Called with ("batch", …) after each run and ("ended", …) after each request: names, numbers, no values."""

        self.on_publish: Callable[[str, Publish], None] | None = None
        """Called with (party, what it said) about versions that are to be published."""
        self.on_link: Callable[[str, bool], None] | None = None
        """Called with (party, whether it is up) when a link comes up or goes down."""
        self.allowance: Callable[[str, str], int | None] | None = None
        """Rows a day of a key (its id) and a model, where the key has a number of its own."""

    # Start and end

    async def start(self) -> None:
        """Begins to listen to the other fronts."""
        self._loop = asyncio.get_running_loop()
        self.lanes_changed()
        await self._links.start(self._received, self._connected, self._disconnected)
        self._ticker = self._loop.create_task(self._tick())

    async def drain(self) -> None:
        """Takes nothing new, finishes what waits, and refuses what is left after `Limits.drain_s`."""
        self._stopped[self.me] = "draining"
        self._step(self._machine.drain, "draining")
        await self._until(lambda: not self._machine.requests, self.limits.drain_s)
        self._step(self._machine.abandon, "draining", (self.me,))
        await self._until(lambda: not self._machine.requests, self.limits.share_wait_s + _RETRY_S)

    async def close(self) -> None:
        """Ends at once: what still waits is refused as `draining`. Closes links and journal."""
        for task in [*self._tasks, *([self._ticker] if self._ticker else [])]:
            task.cancel()
        for id, record in self._records.waiting():
            self._end(id, record, refusal=refused("draining", (self.me,)))
        await self._links.close()
        self._flush()
        await asyncio.to_thread(self._journal.close)

    async def _until(self, done: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not done() and time.monotonic() < until:
            await asyncio.sleep(_TICK_S / 2)

    def tell(self, party: str, message: Publish) -> None:
        """Says something about a version to the leader, or as the leader to anybody."""
        self._links.send(party, message)

    # Models and lanes

    def add(self, model: Model, lanes: Iterable[Lane] = ()) -> None:
        """A version that can be asked for from now on. The first of a name is the current one."""
        self._models.setdefault(model.name, {})[model.version] = model
        self._machine.shapes[model.name, model.version] = Shape(model.sizes, model.alone, model.digest)
        self._machine.current.setdefault(model.name, model.version)
        for lane in lanes:
            self.add_lane(lane)

    def add_lane(self, lane: Lane) -> None:
        """A lane of one version."""
        key = (lane.model, lane.version, lane.number)
        self._lanes[key] = lane
        self._step_lane(key)

    def lanes_changed(self) -> None:
        """To be called when a lane comes up or goes down; it is looked at every 50 ms, too."""
        for key in self._lanes:
            self._step_lane(key)

    def _step_lane(self, key: tuple[str, int, int]) -> None:
        self._sessions[key].add(self._lanes[key].session)
        if isinstance(self._machine, Leader):
            lane = self._lanes[key]
            self._step(self._machine.lane, key, lane.up, lane.seconds, lane.session)

    def switch(self, name: str, version: int) -> None:
        """Makes a version the current one everywhere. At the leader alone; the others must have it."""
        if not isinstance(self._machine, Leader):
            raise ProtocolError(f"the leader {self.leader!r} switches versions, and this is {self.me!r}")
        self._step(self._machine.switch, name, version)

    async def idle(self, name: str, version: int) -> None:
        """Returns once a version that is not the current one can be unloaded: the leader will not run it again."""
        machine, key = self._machine, (name, version)
        if isinstance(machine, Follower):
            while version in machine.serves.get(name, (version,)):
                await asyncio.sleep(_TICK_S)
            return
        while any(r.claim and (r.claim.model, r.version) == key for r in machine.requests.values()):
            await asyncio.sleep(_TICK_S)
        self._step(machine.retire, name, version)

    def remove(self, name: str, version: int) -> None:
        """A version that cannot be asked for any more."""
        self._models.get(name, {}).pop(version, None)
        self._machine.shapes.pop((name, version), None)
        self._machine.dry.pop((name, version), None)
        for key in [key for key in self._lanes if key[:2] == (name, version)]:
            del self._lanes[key]
            self._turns.pop(key, None)
            if isinstance(self._machine, Leader):
                self._machine.lanes.pop(key, None)

    # What the front asks (Desk)

    @property
    def models(self) -> Mapping[str, Mapping[int, Mapping[str, Any]]]:
        """The card of each version of each model, the current version last."""
        current = self._machine.current
        return {
            name: {v: versions[v].card for v in sorted(versions, key=lambda v: (v == current.get(name), v))}
            for name, versions in self._models.items()
            if versions
        }

    @property
    def waiting(self) -> Mapping[str, int]:
        """How many requests, rows and bytes wait here."""
        return {"requests": len(self._machine.requests), "rows": self._records.rows, "bytes": self._records.bytes}

    @property
    def connected(self) -> Mapping[str, bool]:
        """Whether the link to each party is up; a follower has one to the leader alone."""
        return {party: party in self._machine.up for party in self._linked()}

    async def submit(self, request: Submission) -> Answer:
        """Answers a request, or the same again where its id was answered before. Raises Refused."""
        record = self._records.get(request.id)
        if record and (record.key_id, record.body) != (request.key_id, request.body_digest):
            raise refused("id_reused")
        if record is None or (record.refusal and not is_final(record.refusal.code)):
            record = self._take(request)
        if done := record.done:
            await asyncio.wait({done}, timeout=max(request.deadline - time.monotonic(), 0.0) + _GRACE_S)
            if not done.done():
                raise self._unanswered(request)
        return self._outcome(record)

    def find(self, id: str, key_id: str) -> Answer | str:
        """The answer to a request that was asked before, or its state while it waits. Raises Refused."""
        record = self._known(id, key_id)
        return self._outcome(record) if record.ended else self._machine.requests[id].state

    async def withdraw(self, id: str, key_id: str) -> None:
        """Takes a request back that no batch has begun with. Raises Refused."""
        record = self._known(id, key_id)
        if not record.ended:
            self._step(self._machine.withdraw, id)
            begun = (RUNNING, COMPUTED)
            await self._until(
                lambda: bool(record.ended) or self._machine.requests[id].state in begun, self.limits.restart_wait_s
            )
        if record.refusal is None:
            raise Refused("gone", "the request cannot be taken back", why="a run has begun with it, or has ended")

    def _unanswered(self, request: Submission) -> Refused:
        """The refusal of a request whose run does not end in time."""
        if dry := self._machine.dry.get((request.model, self._machine.requests[request.id].version)):
            return refused("no_preprocessing", dry[:1], _RETRY_S)
        return Refused(
            "deadline", "the request is not answered in time",
            why="a run has begun with it, and does not end", fix="ask for it once more by its id, later",
        )  # fmt: skip

    def check_ready(
        self, model: str | None = None, version: int | None = None, patience_s: float = _PATIENCE_S
    ) -> None:
        """Raises Refused with what is missing, where requests that wait so long cannot be answered now."""
        for party, code in self._stopped.items():
            raise refused(code, (party,), _RETRY_S)
        down = tuple(party for party in self._linked() if party not in self._machine.up)
        if down:
            raise refused("peer_down", down, _RETRY_S)
        if self._failed_at:
            raise Refused(
                "peer_down", f"party {self.me!r} cannot write its journal",
                why="its disk is full, or its journal is damaged", fix="try again later",
                retry_after=_RETRY_S, parties=(self.me,),
            )  # fmt: skip
        for name in [model] if model is not None else self._models:
            found = self._model(name, version)
            lanes = [lane for key, lane in self._lanes.items() if key[:2] == (found.name, found.version)]
            if not any(lane.up for lane in lanes):
                raise Refused(
                    "peer_down", f"no lane of {found.name!r} is up",
                    why="its engines connect with those of the other parties", fix="try again later",
                    retry_after=_RETRY_S,
                )  # fmt: skip
            dry = self._machine.dry.get((found.name, found.version))
            if dry and time.monotonic() - dry[1] > patience_s:
                raise refused("no_preprocessing", dry[:1], _RETRY_S)

    def _linked(self) -> tuple[str, ...]:
        return self._others if self.me == self.leader else (self.leader,)

    def _model(self, name: str, version: int | None) -> Model:
        versions = self._models.get(name, {})
        number = version if version is not None else self._machine.current.get(name)
        if number not in versions:
            what = f"there is no model {name!r}" if version is None else f"there is no version {version} of {name!r}"
            raise Refused("not_found", what, why=f"this service has {', '.join(sorted(self._models)) or 'none'}")
        return versions[number]

    def _known(self, id: str, key_id: str) -> Known:
        record = self._records.get(id)
        if record is None or record.key_id != key_id:
            raise Refused("not_found", "no such request", why="ids are known for a while, to the key that asked")
        return record

    def _outcome(self, record: Known) -> Answer:
        if record.answer is not None:
            return record.answer
        raise record.refusal or refused("gone")

    def _take(self, request: Submission) -> Known:
        """Holds a request's share, and says so; or refuses it, and says that."""
        try:
            day = self._admit(request)
        except Refused as refusal:
            if refusal.code != "peer_down":
                self._step(self._machine.refuse, request.id, refusal.code)
            raise
        record = self._records.take(request, day, self._loop.create_future())
        left_ms = max(int((request.deadline - time.monotonic()) * 1000), 0)
        claim = Claim(request.id, request.commit, request.model, request.version or 0, request.rows, left_ms)
        self._step(self._machine.submit, claim)
        return record

    def _admit(self, request: Submission) -> int:
        """The day on which a request's rows are charged. Raises Refused."""
        self.check_ready(request.model, request.version, request.deadline - time.monotonic())
        model = self._model(request.model, request.version)
        if not 1 <= request.rows <= model.sizes[-1]:
            raise Refused("shape", f"a request has 1 to {model.sizes[-1]} rows", why=f"this one has {request.rows}")
        size = sum(share.nbytes for share in request.shares)
        waiting, limits = self._records, self.limits
        if waiting.rows + request.rows > limits.queue_rows or waiting.bytes + size > limits.queue_bytes:
            lanes = [lane for key, lane in self._lanes.items() if key[:2] == (model.name, model.version)]
            wait = wait_s(waiting.rows, model.sizes, lanes[0].seconds, len(lanes)) if lanes else 0.0
            raise refused("queue_full", retry_after=max(wait, _RETRY_S))
        own = self.allowance(request.key_id, model.name) if self.allowance else None
        day = self._budgets.take(request.key_id, model.name, request.rows, own or model.rows_per_day)
        if day is None:
            raise refused("budget", retry_after=renewed_in_s())
        return day

    # What the machine is told

    def _step(self, event: Callable[..., list[Action]], *arguments: Any) -> None:
        """Tells the machine what happened, and does what follows."""
        try:
            actions = event(time.monotonic(), *arguments)
        except BadFrame as error:
            _log.warning("party %s broke the agreement: %s", error.party, public_reason(error))
            self._links.renew(error.party, error)
            return
        for action in actions:
            self._act(action)

    def _received(self, party: str, message: AnyMessage) -> None:
        if isinstance(message, Publish):
            if self.on_publish:
                self.on_publish(party, message)
            return
        if isinstance(message, Drain):
            self._stopped.pop(party, None)
            if message.code:
                self._stopped[party] = message.code
        self._step(self._machine.receive, party, message)

    def _connected(self, party: str, restarted: bool) -> None:
        if restarted:
            self._stopped.pop(party, None)
        self._step(self._machine.connected, party, restarted)
        if restarted and self.me in self._stopped:
            self._links.send(party, Drain(self._stopped[self.me]))
        if self.on_link:
            self.on_link(party, True)

    def _disconnected(self, party: str) -> None:
        self._step(self._machine.disconnected, party)
        if self.on_link:
            self.on_link(party, False)

    async def _tick(self) -> None:
        """Looks at the time, every 50 ms."""
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            self.lanes_changed()
            self._look_at_pools(now)
            self._step(self._machine.tick)
            if isinstance(self._machine, Follower) and self._machine.alone_too_long(now):
                self._step(self._machine.cut)
                self._links.renew(self.leader)
            if now >= self._flushed_at + _FLUSH_S:
                self._flushed_at = now
                self._flush()
                self._records.forget(now)
                self._outputs = {run: kept for run, kept in self._outputs.items() if run in self._machine.batches}
            if self._failed_at and now >= self._failed_at + _PROBE_S:
                self._failed_at = now
                self._journal.write([]).add_done_callback(self._later(self._probed))

    def _look_at_pools(self, now: float) -> None:
        """Versions whose lanes all wait for preprocessing, or do not any more."""
        for name, versions in self._models.items():
            for version in versions:
                lanes = [lane for key, lane in self._lanes.items() if key[:2] == (name, version) and lane.up]
                waits = [lane.dry_since for lane in lanes if lane.dry_since is not None]
                since = max(waits) if waits and len(waits) == len(lanes) else None
                if since is not None and now < since + _DRY_S:
                    since = None
                known = self._machine.dry.get((name, version), ("", None))
                if (since is not None or known[0] == self.me) and known != (self.me, since):
                    self._step(self._machine.starved, (name, version), since)

    # What the machine says

    def _act(self, action: Action) -> None:
        if isinstance(action, Send):
            self._links.send(action.party, action.message)
        elif isinstance(action, Start):
            task = self._loop.create_task(self._run(action.order))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(action, Record):
            self._write(action)
        elif isinstance(action, Release):
            self._answer(action)
        elif isinstance(action, Refusal):
            self._refuse(action)
        elif isinstance(action, Mark):
            for id in action.ids:
                self._records.mark(id, RELEASED)
        elif isinstance(action, Check) and isinstance(self._machine, Follower):
            self._step(self._machine.unreleased, self._records.unreleased(action.ids))

    async def _run(self, order: Run) -> None:
        """Has a lane compute a batch, after what it computes already, in the session that it was proposed for: where
        that is over, the run fails instead of meeting others in the next one.
        """
        key = (order.model, order.version, order.lane)
        rows = sum(place.rows for place in order.places)
        began = time.monotonic()
        try:
            async with self._turns.setdefault(key, asyncio.Lock()):
                await self._until_met(key, order)
                job = Job(order.run, order.size, rows, order.manifest, self._gathered(order))
                where, outputs = await self._lanes[key].run(job)
        except Exception as error:
            _log.error("a run failed: %s", error if isinstance(error, LaneDown) else public_reason(error))
            self.lanes_changed()
            self._step(self._machine.failed, order.run, getattr(error, "party", ""))
            return
        self._outputs[order.run] = outputs, began, time.monotonic()
        self._step(self._machine.computed, order.run, where)
        self._tell("batch", model=order.model, version=order.version, size=order.size, rows=rows, lane=order.lane,
                   seconds=time.monotonic() - began)  # fmt: skip

    async def _until_met(self, key: tuple[str, int, int], order: Run) -> None:
        """Returns once this party's lane is in the session of a run: the leader's may have been ready a little earlier.

        Raises LaneDown where that session is over, or does not come: then the leader has proposed the lane's next run.
        """
        until = time.monotonic() + self.limits.restart_wait_s
        while self._newest(key) == order.run and key in self._lanes and time.monotonic() < until:
            self._step_lane(key)
            lane = self._lanes[key]
            if lane.session == order.session and lane.up:
                return
            if order.session in self._sessions[key]:
                break
            await asyncio.sleep(_MEET_S)
        raise LaneDown("the session that a run was proposed for is over, or did not come")

    def _newest(self, key: tuple[str, int, int]) -> int:
        """The last run that was proposed on a lane and counts; 0 where there is none."""
        orders = [batch.order for batch in self._machine.batches.values()]
        return max((order.run for order in orders if (order.model, order.version, order.lane) == key), default=0)

    def _gathered(self, order: Run) -> list[np.ndarray]:
        """This party's shares of each input, for all rows of a run. Raises LaneDown if some are there no more."""
        key = (order.model, order.version, order.lane)
        shares = [request.shares for request in self._records.asked_for(place.id for place in order.places)]
        if len(shares) < len(order.places) or key not in self._lanes:
            raise LaneDown("a request or the lane of a run is there no more", self.me)
        return [np.concatenate(parts) for parts in zip(*shares)]

    def _write(self, action: Record) -> None:
        marks, entries = self._records.marks(), self._records.computed(action.ids, action.where)
        written = self._journal.write([*marks, *entries])
        written.add_done_callback(self._later(self._written, action.run, marks))

    def _later(self, what: Callable[..., None], *arguments: Any) -> Callable[[Future[None]], None]:
        """What the end of a write in the journal's thread does in the loop's."""

        def told(written: Future[None]) -> None:
            self._loop.call_soon_threadsafe(what, written.exception(), *arguments)

        return told

    def _written(self, error: BaseException | None, run: int, marks: list[Entry]) -> None:
        self._flushed(error, marks)
        self._probed(error)
        self._step(self._machine.unrecorded if error else self._machine.recorded, run)

    def _probed(self, error: BaseException | None) -> None:
        """Whether the journal can be written; the others are told when that changes."""
        if error and not self._failed_at:
            _log.error("the journal cannot be written: %s", type(error).__name__)
            self._step(self._machine.drain, "peer_down")
        if not error and self._failed_at and self.me not in self._stopped:
            self._step(self._machine.drain, "")
        self._failed_at = time.monotonic() if error else 0.0

    def _answer(self, action: Release) -> None:
        order = action.order
        outputs, began, ended = self._outputs.pop(order.run)
        stages = {"run": ended - began, "agree": time.monotonic() - ended}
        for place in action.places:
            record = self._records.known(place.id)
            shares = [output[place.row : place.row + place.rows] for output in outputs]
            waited = {"queue": began - record.since, **stages}
            answer = Answer(order.version, action.where, place.row, order.size, shares, order.model, waited)
            self._end(place.id, record, answer=answer)

    def _refuse(self, action: Refusal) -> None:
        refusal = refused(action.code, action.parties, None if is_final(action.code) else _RETRY_S)
        for id in action.ids:
            record = self._records.get(id)
            if record is None or (record.answer and action.code != LOST):
                continue
            if record.charged:
                self._budgets.give_back(record.key_id, record.model, record.rows, record.day)
                record.charged = False
            if record.where:
                self._records.mark(id, LOST)
            self._end(id, record, refusal=refusal)

    def _end(self, id: str, record: Known, answer: Answer | None = None, refusal: Refused | None = None) -> None:
        """A request's answer or refusal, for all who wait for it."""
        self._records.end(id, record, answer, refusal)
        self._tell("ended", id=id, key_id=record.key_id, model=record.model, rows=record.rows, state=record.state,
                   run=record.where, stages=answer.stages if answer else {})  # fmt: skip

    def _tell(self, what: str, **facts: Any) -> None:
        for observer in self.observers:
            observer(what, facts)

    def _flush(self) -> None:
        """Writes new states of ids that the journal has."""
        if not self._failed_at and (marks := self._records.marks()):
            self._journal.write(marks).add_done_callback(self._later(self._flushed, marks))

    def _flushed(self, error: BaseException | None, marks: list[Entry]) -> None:
        if error:
            self._records.put_back(marks)
