"""The leader's state machine: which requests form the next run, and what becomes of each (see `agreement`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from securemodel.service.agreement import (
    COMPUTED,
    HELD,
    LOST,
    RELEASED,
    RUNNING,
    Action,
    Answer,
    Batch,
    Key,
    Limits,
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
from securemodel.service.waiting import LaneKey, LaneState, Waiting


class Leader:
    """Decides for all parties. `first_run` is larger than the number of any run before a restart; `known`: states of ids in
    the journal, from before it."""

    def __init__(
        self,
        me: str,
        followers: Sequence[str],
        limits: Limits,
        first_run: int,
        now: float,
        known: Mapping[str, str] | None = None,
    ) -> None:
        self.me, self.followers, self.limits = me, tuple(followers), limits
        self.waiting = Waiting()
        self.current: dict[str, int] = {}
        self.up: set[str] = set()
        self.requests: dict[str, Request] = {}
        self.batches: dict[int, Batch] = {}
        self.dry: dict[Key, tuple[str, float]] = {}
        """Versions whose runs wait for preprocessing: at whom, and since when."""
        self._next_run = first_run
        self._started = now
        self._unconfirmed: dict[str, dict[str, int]] = {party: {} for party in self.followers}
        self._early: dict[str, tuple[str, tuple[str, ...], float]] = {}
        self._ended: dict[str, tuple[str, float]] = {}
        for id, state in (known or {}).items():
            if state == LOST:  # of others a follower may have told its client that they are lost
                self._ended[id] = (state, now + limits.keep_s)
        self._doubtful = {id: None for id, state in (known or {}).items() if state == COMPUTED}
        self._out: list[Action] = []

    @property
    def shapes(self) -> dict[Key, Shape]:
        """Versions that can be asked for."""
        return self.waiting.shapes

    @property
    def lanes(self) -> dict[LaneKey, LaneState]:
        """This party's lanes."""
        return self.waiting.lanes

    # What this party does

    def submit(self, now: float, claim: Claim) -> list[Action]:
        """A client's share came to this party."""
        if claim.id in self._early:
            code, parties, _ = self._early.pop(claim.id)
            self._out.append(Refusal([claim.id], code, parties))
            return self._done(now)
        request = self._request(now, claim.id)
        request.claim, request.version = claim, claim.version or self.current.get(claim.model, 0)
        request.deadline = min([now + c.left_ms / 1000 for c in [claim, *request.claims.values()]])
        if self.waiting.hopeless(now, request):
            self._drop(now, [claim.id], "deadline")
        else:
            self._complete(now, request)
        return self._done(now)

    def refuse(self, now: float, id: str, code: str) -> list[Action]:
        """This party does not take a request; the others learn why."""
        if self._open(id):
            self._drop(now, [id], code, (self.me,))
        return self._done(now)

    def withdraw(self, now: float, id: str) -> list[Action]:
        """The client takes a request back; nothing happens where a run has begun with it."""
        if self._open(id):
            self._drop(now, [id], "gone")
        return self._done(now)

    def computed(self, now: float, run: int, where: str) -> list[Action]:
        """The run's outputs are shares at this party."""
        batch = self._idle(run)
        if batch:
            batch.where, batch.since = where, now
            for request in self._of(batch):
                request.state = COMPUTED
            self._out.append(Record(run, where, [request.id for request in self._of(batch)]))
        return self._done(now)

    def recorded(self, now: float, run: int) -> list[Action]:
        """... and in its journal."""
        batch = self.batches.get(run)
        if batch:
            batch.recorded = True
            self._release(now, batch)
        return self._done(now)

    def unrecorded(self, now: float, run: int) -> list[Action]:
        """... and cannot be written to its journal."""
        batch = self.batches.get(run)
        if batch:
            self._drop(now, [request.id for request in self._of(batch)], LOST, (self.me,))
            del self.batches[run]
        return self._done(now)

    def failed(self, now: float, run: int, party: str) -> list[Action]:
        """The lane failed before the outputs were shares."""
        batch = self._idle(run)
        if batch:
            self._fail(now, batch, party)
        return self._done(now)

    def lane(self, now: float, key: LaneKey, up: bool, seconds: Mapping[int, float], session: str = "") -> list[Action]:
        """A lane, (model, version, number), came up or went down, met the others anew, or measured its runs."""
        lane = self.lanes.setdefault(key, LaneState())
        lane.up, lane.seconds, lane.session = up, seconds, session
        return self._done(now)

    def switch(self, now: float, model: str, version: int) -> list[Action]:
        """A version becomes the current one for requests that name none, here and at the followers."""
        self.current[model] = version
        self._tell(self._switch(model))
        return self._done(now)

    def retire(self, now: float, model: str, version: int) -> list[Action]:
        """A version that no request waits for is not run again; the followers may unload it."""
        self.shapes.pop((model, version), None)
        self._tell(self._switch(model))
        return self._done(now)

    def drain(self, now: float, code: str) -> list[Action]:
        """This party takes nothing new; without a code, it does again."""
        self._tell(Drain(code))
        return self._done(now)

    def starved(self, now: float, key: Key, since: float | None) -> list[Action]:
        """Runs of a version wait for preprocessing here, since then; None: they do not any more."""
        self._starved(self.me, key, since)
        return self._done(now)

    def abandon(self, now: float, code: str, parties: Sequence[str] = ()) -> list[Action]:
        """Whatever no run has begun with is refused: a drain took too long."""
        self._drop(now, [request.id for request in self.requests.values() if request.state == HELD], code, parties)
        return self._done(now)

    # What others do

    def connected(self, now: float, party: str, restarted: bool) -> list[Action]:
        """A follower's link is up. If it restarted, it knows nothing of what was said before."""
        self.up.add(party)
        if restarted:
            self.dry = {key: dry for key, dry in self.dry.items() if dry[0] != party}
            self._forget(now, party)
            self._out += [Send(party, self._switch(model)) for model in self.current]
            self._out += [Send(party, Doubt(some)) for some in parts(list(self._doubtful))]
            self._drop_at(party, [id for id, (state, _) in self._ended.items() if state == LOST], LOST, ())
        return self._done(now)

    def disconnected(self, now: float, party: str) -> list[Action]:
        """Its link is down. What was said to it arrives when the link is up again."""
        self.up.discard(party)
        return self._done(now)

    def receive(self, now: float, party: str, message: AnyMessage) -> list[Action]:
        """A follower's message. Raises BadFrame, which names it, if it may not say that."""
        if isinstance(message, Have):
            for claim in message.claims:
                self._have(now, party, claim)
        elif isinstance(message, Held):
            self._held(now, party, message)
        elif isinstance(message, Failed):
            batch = self.batches.get(message.run)
            if batch:
                self._fail(now, batch, message.party or party)
        elif isinstance(message, Refuse):
            self._refuse(now, party, message)
        elif isinstance(message, Gone):
            self._gone(party, message.ids)
        elif isinstance(message, Doubt):
            self._doubt(now, party, message.ids)
        elif isinstance(message, Dry):
            since = now - message.for_ms / 1000 if message.for_ms else None
            self._starved(party, (message.model, message.version), since)
        elif not isinstance(message, Drain):
            raise misbehaved(party, f"it sent {type(message).__name__.upper()}, which only the leader may say")
        return self._done(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed: what waited too long is refused."""
        late: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for request in list(self.requests.values()):
            if request.state != HELD:
                continue
            missing = self._missing(request)
            if missing and now >= self._patience(request):
                self._drop(now, [request.id], "share_missing", missing)
            elif not missing and self.waiting.too_late(now, request):
                late.setdefault(self._why_late(request), []).append(request.id)
        for (code, parties), ids in late.items():
            self._drop(now, ids, code, parties)
        for run, batch in list(self.batches.items()):
            if batch.where and now >= batch.since + self.limits.restart_wait_s:
                silent = tuple(party for party in self.followers if party not in batch.held)
                self._drop(now, [request.id for request in self._of(batch)], LOST, silent)
                del self.batches[run]
        self._early = {id: early for id, early in self._early.items() if now < early[2]}
        if now >= self._started + self.limits.keep_s / 2:
            self._doubtful = {}  # soon the followers do not know any more
        while self._ended and now >= next(iter(self._ended.values()))[1]:
            del self._ended[next(iter(self._ended))]
        return self._done(now)

    def _why_late(self, request: Request) -> tuple[str, tuple[str, ...]]:
        """Why a request that waits for a lane cannot be answered in time, and at whom."""
        down = tuple(party for party in self.followers if party not in self.up)
        dry = self.dry.get((request.own.model, request.version))
        return ("peer_down", down) if down else ("no_preprocessing", dry[:1]) if dry else ("deadline", ())

    def _starved(self, party: str, key: Key, since: float | None) -> None:
        if since is not None:
            self.dry[key] = (party, since)
        elif self.dry.get(key, ("",))[0] == party:
            del self.dry[key]

    def _switch(self, model: str) -> Switch:
        return Switch(model, self.current[model], [version for name, version in self.shapes if name == model])

    # Requests

    def _request(self, now: float, id: str) -> Request:
        """The request of that id. Soon after a start, followers wait for clients that have to send their shares again."""
        if id not in self.requests:
            wait_s = self.limits.share_wait_s
            if now < self._started + self.limits.restart_wait_s:
                wait_s = max(wait_s, self._started + self.limits.restart_wait_s - now)
            self.requests[id] = Request(id, now, wait_s)
        return self.requests[id]

    def _have(self, now: float, party: str, claim: Claim) -> None:
        id = claim.id
        if id in self._unconfirmed[party]:
            return  # said before it heard that the request is dropped
        if id in self._ended or id in self._early:
            code, parties = (self._ended[id][0], ()) if id in self._ended else self._early[id][:2]
            return self._drop_at(party, [id], "gone" if code == RELEASED else code, parties)
        if id not in self.requests and len(self.requests) >= 2 * self.limits.queue_rows:
            return self._drop_at(party, [id], "queue_full", (self.me,))
        request = self._request(now, id)
        if party in request.claims:
            raise misbehaved(party, "it said twice that it holds a request")
        request.claims[party] = claim
        until = now + claim.left_ms / 1000
        request.deadline = min(request.deadline or until, until)
        if request.claim:
            self._complete(now, request)

    def _complete(self, now: float, request: Request) -> None:
        """Looks at what all say of a request, once this party has its share; it waits for a lane if nobody misses."""
        mine = request.own
        said = (mine.commit, mine.model, mine.version, mine.rows)
        others = tuple(p for p, c in request.claims.items() if (c.commit, c.model, c.version, c.rows) != said)
        if others:
            self._drop(now, [request.id], "commit_mismatch", others)
        elif not self._missing(request):
            self.waiting.add(request)

    def _missing(self, request: Request) -> tuple[str, ...]:
        """The parties that have no share of a request."""
        if request.claim and len(request.claims) == len(self.followers):
            return ()
        mine = () if request.claim else (self.me,)
        return (*mine, *(party for party in self.followers if party not in request.claims))

    def _patience(self, request: Request) -> float:
        return min(request.since + request.wait_s, request.deadline)

    def _refuse(self, now: float, party: str, message: Refuse) -> None:
        if message.code not in STATUS:
            raise misbehaved(party, "it refuses a request with an unknown code")
        if message.code == LOST:
            self._drop(now, message.ids, LOST, (party,))
            return
        for id in message.ids:
            if self._open(id) and id not in self._unconfirmed[party]:
                self._drop(now, [id], message.code, () if message.code == "gone" else (party,))

    def _open(self, id: str) -> bool:
        """Whether a request may still be refused: no run has begun with it, and it has not ended."""
        return id not in self._ended and (id not in self.requests or self.requests[id].state == HELD)

    def _gone(self, party: str, ids: Sequence[str]) -> None:
        """A follower has dropped what it was told to."""
        told = self._unconfirmed[party]
        for id in ids:
            if id not in told:
                raise misbehaved(party, "it says that it dropped a request that it was not told to drop")
            told[id] -= 1
            if not told[id]:
                del told[id]

    def _doubt(self, now: float, party: str, ids: Sequence[str]) -> None:
        """A follower restarted, with these computed: they were released, or are lost."""
        released = [id for id in ids if self._ended.get(id, ("", 0))[0] == RELEASED]
        if released:
            self._out.append(Send(party, Release(0, released)))
        self._drop(now, [id for id in ids if id not in released], LOST, (party,))

    def _drop(self, now: float, ids: Iterable[str], code: str, parties: Sequence[str] = ()) -> None:
        """Refuses requests everywhere. Where this party has no share yet, the one that comes is refused, too."""
        ids, parties = list(dict.fromkeys(ids)), tuple(parties)
        if not ids:
            return
        for id in ids:
            request = self.requests.pop(id, None)
            if request and request.state == HELD and request.claim:
                self.waiting.remove(request)
            if code == LOST:
                self._doubtful.pop(id, None)
                self._ended.pop(id, None)
                self._ended[id] = (LOST, now + self.limits.keep_s)
            elif not (request and request.claim):
                self._early[id] = (code, parties, now + self.limits.share_wait_s)
        self._out.append(Refusal(ids, code, parties))
        for party in self.followers:
            self._drop_at(party, ids, code, parties)

    def _drop_at(self, party: str, ids: list[str], code: str, parties: Sequence[str]) -> None:
        for id in ids:
            self._unconfirmed[party][id] = self._unconfirmed[party].get(id, 0) + 1
        for some in parts(ids):
            self._out.append(Send(party, Drop(some, code, list(parties))))

    def _tell(self, message: Message) -> None:
        for party in self.followers:
            self._out.append(Send(party, message))  # type: ignore[arg-type]  # all messages are of the union

    # Runs

    def _propose(self, now: float) -> None:
        """Every idle lane gets what waits for it, if all parties can be told."""
        if len(self.up) < len(self.followers):
            return
        for key, lane in self.waiting.idle():
            self._run(now, key, lane)

    def _run(self, now: float, key: LaneKey, lane: LaneState) -> None:
        model, version, number = key
        size, places = self.waiting.take(key)
        run, self._next_run = self._next_run, self._next_run + 1
        digest = manifest(run, number, self.shapes[model, version].digest, version, size, places)
        order = Run(run, number, model, version, size, places, digest, lane.session)
        self.batches[run], lane.run = Batch(order), run
        for request in [self.requests[place.id] for place in places]:
            request.state, request.run, request.tries = RUNNING, run, request.tries + 1
        self._tell(order)
        self._out.append(Start(order))

    def _of(self, batch: Batch) -> list[Request]:
        """The requests of a batch that have not been dropped since."""
        found = [self.requests.get(id) for id in batch.ids]
        return [request for request in found if request and request.run == batch.order.run]

    def _idle(self, run: int) -> Batch | None:
        """The lane of a run that ended is free; the run, if it still counts."""
        for lane in self.lanes.values():
            if lane.run == run:
                lane.run = 0
        return self.batches.get(run)

    def _held(self, now: float, party: str, message: Held) -> None:
        batch = self.batches.get(message.run)
        if batch:
            if party in batch.held:
                raise misbehaved(party, "it said twice that it holds the outputs of a run")
            batch.held[party] = message.where
            self._release(now, batch)

    def _release(self, now: float, batch: Batch) -> None:
        """Answers the requests of a run, once every party has its outputs in the journal."""
        if not batch.recorded or len(batch.held) < len(self.followers):
            return
        others = [party for party, where in batch.held.items() if where != batch.where]
        if others:
            self._drop(now, [request.id for request in self._of(batch)], LOST, others)
            del self.batches[batch.order.run]
            raise misbehaved(others[0], "it computed a batch in another session or epoch than this party")
        requests = self._of(batch)
        kept = {request.id for request in requests}
        places = [place for place in batch.order.places if place.id in kept]
        self._tell(Release(batch.order.run))
        self._out.append(Answer(batch.order, batch.where, places))
        for request in requests:
            del self.requests[request.id]
            self._ended[request.id] = (RELEASED, now + self.limits.keep_s)
        del self.batches[batch.order.run]

    def _fail(self, now: float, batch: Batch, party: str) -> None:
        """What was in a failed run waits again, or is refused if it has been tried often enough."""
        del self.batches[batch.order.run]
        requests = self._of(batch)
        tired = [request.id for request in requests if request.tries >= self.limits.tries]
        for request in requests:
            request.state, request.run = HELD, 0
            if request.id not in tired:
                self._complete(now, request)
        self._drop(now, tired, "peer_down", (party,) if party else ())

    def _forget(self, now: float, party: str) -> None:
        """A follower lost all shares: what it had computed is lost, what it held may come again."""
        self._unconfirmed[party].clear()
        lost = []
        for run, batch in list(self.batches.items()):
            if party in batch.held:
                lost += [request.id for request in self._of(batch)]
                del self.batches[run]
        self._drop(now, lost, LOST, (party,))
        for request in self.requests.values():
            request.claims.pop(party, None)
            request.since, request.wait_s = now, self.limits.restart_wait_s
        for batch in list(self.batches.values()):
            self._fail(now, batch, party)
        self.waiting.clear()

    def _done(self, now: float) -> list[Action]:
        self._propose(now)
        out, self._out = self._out, []
        return out
