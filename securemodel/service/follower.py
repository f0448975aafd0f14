"""A follower's state machine: it says what it holds, and does what the leader decides (see `agreement`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from securemodel.service.agreement import (
    COMPUTED,
    HELD,
    LOST,
    RUNNING,
    Action,
    Answer,
    Batch,
    Check,
    Key,
    Limits,
    Mark,
    Record,
    Refusal,
    Request,
    Send,
    Shape,
    Start,
    manifest,
)
from securemodel.service.desk import STATUS
from securemodel.service.messages import (
    AnyMessage,
    Claim,
    Doubt,
    Drain,
    Drop,
    Dry,
    Failed,
    Gone,
    Have,
    Held,
    Message,
    Refuse,
    Release,
    Run,
    Switch,
    misbehaved,
    parts,
)


class Follower:
    """`known`: states of ids in the journal, from before a restart. The leader says what became of those computed."""

    def __init__(
        self, me: str, leader: str, limits: Limits, now: float, known: Mapping[str, str] | None = None
    ) -> None:
        self.me, self.leader, self.limits = me, leader, limits
        self.shapes: dict[Key, Shape] = {}
        self.current: dict[str, int] = {}
        self.serves: dict[str, list[int]] = {}
        self.up: set[str] = set()
        self.requests: dict[str, Request] = {}
        self.batches: dict[int, Batch] = {}
        self._doubtful = {id: None for id, state in (known or {}).items() if state == COMPUTED}
        self._lost = {id: now + limits.keep_s for id, state in (known or {}).items() if state == LOST}
        """What is lost, and until when it is known. A leader that restarts may have known it, and forgotten."""
        self.dry: dict[Key, tuple[str, float]] = {}
        """Versions whose runs wait for preprocessing: at whom, and since when."""
        self._early: dict[str, tuple[str, tuple[str, ...], float]] = {}
        self._out: list[Action] = []

    # What this party does

    def submit(self, now: float, claim: Claim) -> list[Action]:
        """A client's share came to this party."""
        if claim.id in self._early:
            code, parties, _ = self._early.pop(claim.id)
            self._out.append(Refusal([claim.id], code, parties))
        else:
            deadline = now + claim.left_ms / 1000
            self.requests[claim.id] = Request(claim.id, now, 0.0, claim, claim.version, deadline)
            self._tell(Have([claim]))
        return self._done()

    def refuse(self, now: float, id: str, code: str) -> list[Action]:
        """This party does not take a request; the others learn why."""
        if id not in self.requests:
            self._tell(Refuse([id], code))
        return self._done()

    def withdraw(self, now: float, id: str) -> list[Action]:
        """The client takes a request back; the leader says whether a run has begun with it."""
        if id in self.requests:
            self._tell(Refuse([id], "gone"))
        return self._done()

    def computed(self, now: float, run: int, where: str) -> list[Action]:
        """The run's outputs are shares at this party."""
        batch = self.batches.get(run)
        if batch:
            batch.where = where
            ids = [request.id for request in self._of(batch)]
            for id in ids:
                self.requests[id].state = COMPUTED
            self._out.append(Record(run, where, ids))
        return self._done()

    def recorded(self, now: float, run: int) -> list[Action]:
        """... and in its journal."""
        batch = self.batches.get(run)
        if batch:
            batch.recorded = True
            self._tell(Held(run, batch.where))
        return self._done()

    def unrecorded(self, now: float, run: int) -> list[Action]:
        """... and cannot be written to its journal: the leader is told that they are lost."""
        batch = self.batches.pop(run, None)
        if batch:
            ids = [request.id for request in self._of(batch)]
            self._lose(now, ids)
            self._tell_lost(ids)
        return self._done()

    def failed(self, now: float, run: int, party: str) -> list[Action]:
        """The lane failed before the outputs were shares. Its requests wait for what the leader decides."""
        batch = self.batches.pop(run, None)
        if batch:
            self._wait_again(self._of(batch))
            self._tell(Failed(run, party, ""))
        return self._done()

    def drain(self, now: float, code: str) -> list[Action]:
        """This party takes nothing new; without a code, it does again."""
        self._tell(Drain(code))
        return self._done()

    def starved(self, now: float, key: Key, since: float | None) -> list[Action]:
        """Runs of a version wait for preprocessing here, since then; None: they do not any more."""
        self.dry.pop(key, None)
        if since is not None:
            self.dry[key] = (self.me, since)
        self._tell_dry(now, key)
        return self._done()

    def abandon(self, now: float, code: str, parties: Sequence[str] = ()) -> list[Action]:
        """The leader is asked to refuse whatever no run has begun with."""
        for some in parts([request.id for request in self.requests.values() if request.state == HELD]):
            self._tell(Refuse(some, code))
        return self._done()

    def unreleased(self, now: float, ids: Sequence[str]) -> list[Action]:
        """Of what the leader asked about, this party did not release these: nobody will."""
        self._tell_lost(ids)
        return self._done()

    def alone_too_long(self, now: float) -> bool:
        """Whether a deadline passed while the leader, which should have said something, cannot."""
        return self.leader not in self.up and any(request.deadline < now for request in self.requests.values())

    def cut(self, now: float) -> list[Action]:
        """Without the leader for too long: everything is refused here. The link must begin anew, as after a restart."""
        for state, code in ((HELD, "peer_down"), (RUNNING, "peer_down"), (COMPUTED, LOST)):
            ids = [id for id, request in self.requests.items() if request.state == state]
            if ids:
                self._out.append(Refusal(ids, code, (self.leader,)))
            if code == LOST:
                self._doubtful.update(dict.fromkeys(ids))
        self.requests, self.batches = {}, {}
        return self._done()

    # What the leader does

    def connected(self, now: float, party: str, restarted: bool) -> list[Action]:
        """The leader's link is up. If it restarted, it knows nothing: it is told what is held, and what is lost."""
        self.up.add(party)
        if restarted:
            self._lose(now, [id for id, request in self.requests.items() if request.state == COMPUTED])
            self._wait_again(list(self.requests.values()))
            self.batches = {}
            self._tell_lost(list(self._lost))
            for some in parts(list(self._doubtful)):
                self._tell(Doubt(some))
            for key in self.dry:
                self._tell_dry(now, key)
            for some in parts([self._claim(now, request) for request in self.requests.values()]):
                self._tell(Have(some))
        return self._done()

    def disconnected(self, now: float, party: str) -> list[Action]:
        """Its link is down. What was said to it arrives when the link is up again."""
        self.up.discard(party)
        return self._done()

    def receive(self, now: float, party: str, message: AnyMessage) -> list[Action]:
        """The leader's message. Raises BadFrame, which names it, if it may not say that."""
        if isinstance(message, Run):
            self._run(party, message)
        elif isinstance(message, Release):
            self._release(party, message)
        elif isinstance(message, Drop):
            self._drop(now, party, message)
        elif isinstance(message, Switch):
            self.current[message.model], self.serves[message.model] = message.version, message.serves
        elif isinstance(message, Doubt):
            self._out.append(Check([id for id in message.ids if id not in self._doubtful]))
        elif not isinstance(message, Drain):
            raise misbehaved(party, f"it sent {type(message).__name__.upper()}, which only a follower may say")
        return self._done()

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        self._early = {id: early for id, early in self._early.items() if now < early[2]}
        self._lost = {id: until for id, until in self._lost.items() if now < until}
        return self._done()

    # Inside

    def _run(self, party: str, order: Run) -> None:
        """Begins what the leader proposes: only what this party said it holds, and as it said it."""
        shape = self.shapes.get((order.model, order.version))
        if shape is None or order.size not in shape.sizes:
            self._tell(Failed(order.run, self.me, "it has no such version or size"))
            return
        row = 0
        for place in order.places:
            request = self.requests.get(place.id)
            if request is None or request.claim is None:
                raise misbehaved(party, "it proposed a run of a request that this party does not hold")
            claim = request.claim
            if (place.row, place.rows, order.model) != (row, claim.rows, claim.model) or claim.version not in (
                0,
                order.version,
            ):
                raise misbehaved(party, "it proposed a run of a request with other rows, or for another model")
            row += place.rows
        expected = manifest(order.run, order.lane, shape.digest, order.version, order.size, order.places)
        if row > order.size or order.manifest != expected or order.run in self.batches:
            raise misbehaved(party, "it proposed a run whose size, number or digest is not right")
        for place in order.places:
            request = self.requests[place.id]
            self.batches.pop(request.run, None)  # a run of it that failed at another party
            request.state, request.run, request.version = RUNNING, order.run, order.version
        self.batches[order.run] = Batch(order)
        self._out.append(Start(order))

    def _release(self, party: str, message: Release) -> None:
        for id in message.ids:
            if id in self._doubtful:
                del self._doubtful[id]
                self._out.append(Mark([id]))
        if message.ids:
            return
        batch = self.batches.pop(message.run, None)
        if batch is None or not batch.recorded:
            raise misbehaved(party, "it released a run whose outputs this party did not say it holds")
        kept = {request.id for request in self._of(batch)}
        places = [place for place in batch.order.places if place.id in kept]
        self._out.append(Answer(batch.order, batch.where, places))
        for id in kept:
            del self.requests[id]

    def _drop(self, now: float, party: str, message: Drop) -> None:
        if message.code not in STATUS:
            raise misbehaved(party, "it refuses a request with an unknown code")
        parties = tuple(message.parties)
        for id in message.ids:
            request = self.requests.pop(id, None)
            if request and request.run in self.batches and not self._of(self.batches[request.run]):
                del self.batches[request.run]
            elif request is None and message.code != LOST:
                self._early[id] = (message.code, parties, now + self.limits.share_wait_s)
            self._doubtful.pop(id, None)
            if message.code == LOST:
                self._lost[id] = now + self.limits.keep_s
        self._out.append(Refusal(list(message.ids), message.code, parties))
        self._tell(Gone(list(message.ids)))

    def _lose(self, now: float, ids: list[str]) -> None:
        """Computed shares that nobody will release: refused here; the leader is to be told so."""
        for id in ids:
            del self.requests[id]
        if ids:
            self._lost.update(dict.fromkeys(ids, now + self.limits.keep_s))
            self._out.append(Refusal(ids, LOST, (self.leader,)))

    def _tell_lost(self, ids: Sequence[str]) -> None:
        for some in parts(ids):
            self._tell(Refuse(some, LOST))

    def _of(self, batch: Batch) -> list[Request]:
        """The requests of a batch that have not been dropped or run again since."""
        found = [self.requests.get(id) for id in batch.ids]
        return [request for request in found if request and request.run == batch.order.run]

    def _wait_again(self, requests: list[Request]) -> None:
        for request in requests:
            request.state, request.run = HELD, 0

    def _claim(self, now: float, request: Request) -> Claim:
        claim, left = request.own, max(int((request.deadline - now) * 1000), 0)
        return Claim(claim.id, claim.commit, claim.model, claim.version, claim.rows, left)

    def _tell_dry(self, now: float, key: Key) -> None:
        for_ms = int((now - self.dry[key][1]) * 1000) if key in self.dry else 0
        self._tell(Dry(*key, for_ms))

    def _tell(self, message: Message) -> None:
        self._out.append(Send(self.leader, message))  # type: ignore[arg-type]  # all messages are of the union

    def _done(self) -> list[Action]:
        out, self._out = self._out, []
        return out
