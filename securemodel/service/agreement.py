"""How parties agree on what a batch is: words that the leader's and a follower's state machine share.

Both machines are without input and output. What happens (a request, a message, the end of a run, time) is a method;
what follows is a list of actions, in the order in which they are to be done. `party.py` does them, and a test tries
all orders of what can happen (`tests/service/test_model_check.py`).

A request is, at each party, `held` once its share is there, `running` in a batch, `computed` when the outputs are
shares, and then `released` or refused. Three rules make the rest:

1. A share that a follower told the leader of stays until the leader says what becomes of it. So what the leader
   proposes can always be run.
2. A follower writes its journal before it says HELD, the leader before it says RELEASE, and nobody answers a client
   before RELEASE. Who has an id in its journal never holds it again. So no id has two results.
3. Links between fronts are in order and without loss, or the other end has restarted. Then what was computed and not
   released is `result_lost` everywhere; what was running may run again, in a new epoch, once all shares are there.
   Each machine begins with what its journal says of ids (`known`), and the two find out what was not released.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from protocols.errors import ProtocolError
from securemodel.service.desk import Refused
from securemodel.service.messages import AnyMessage, Claim, Place, Run

HELD, RUNNING, COMPUTED, RELEASED, LOST = "held", "running", "computed", "released", "result_lost"


@dataclass(frozen=True)
class Limits:
    """Waits in seconds, and how much waits at most."""

    share_wait_s: float = 0.5
    """For the shares of a request to be at all parties."""
    restart_wait_s: float = 30.0
    """For a party that restarted, and for the shares that it lost to come again."""
    drain_s: float = 30.0
    """For what waits when a party is told to end."""
    keep_s: float = 600.0
    """How long an id is known and its answer kept; later, its time is too old for the front to take it."""
    tries: int = 3
    """How often a request is run, if runs fail before the outputs are shares."""
    queue_rows: int = 2048
    queue_bytes: int = 256 << 20


@dataclass(frozen=True)
class Shape:
    """What the agreement knows of one version of a model."""

    sizes: tuple[int, ...]
    alone: bool
    """Rows of a run depend on each other, so a run takes one request."""
    digest: bytes


Key = tuple[str, int]
"""A model and its version."""


@dataclass
class Request:
    """A request before its end. `rows`, `commit`: as this party has it; at the leader, `claims` are the followers'."""

    id: str
    since: float
    wait_s: float
    claim: Claim | None = None
    version: int = 0
    deadline: float = 0.0
    state: str = HELD
    run: int = 0
    tries: int = 0
    claims: dict[str, Claim] = field(default_factory=dict)

    @property
    def own(self) -> Claim:
        """What this party says of a request whose share it has. Raises ProtocolError."""
        if self.claim is None:
            raise ProtocolError(f"request {self.id} was looked at before this party had its share")
        return self.claim


@dataclass
class Batch:
    """A run, as a party has it. `held`: who has its outputs in the journal."""

    order: Run
    since: float = 0.0
    where: str = ""
    recorded: bool = False
    held: dict[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        return [place.id for place in self.order.places]


@dataclass(frozen=True)
class Send:
    """Tell a party."""

    party: str
    message: AnyMessage


@dataclass(frozen=True)
class Start:
    """Run a batch on its lane; then `computed` or `failed`."""

    order: Run


@dataclass(frozen=True)
class Record:
    """Write these ids of a run to the journal, as computed, on the disk; then `recorded`, or `unrecorded`."""

    run: int
    where: str
    ids: list[str]


@dataclass(frozen=True)
class Answer:
    """All parties hold the outputs: the clients get them."""

    order: Run
    where: str
    places: list[Place]


@dataclass(frozen=True)
class Refusal:
    """These are refused. With `result_lost` also ids that were released, or are in the journal alone."""

    ids: list[str]
    code: str
    parties: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mark:
    """These ids, which the journal has as computed, were released; their answers are no more."""

    ids: list[str]


@dataclass(frozen=True)
class Check:
    """The leader asks whether these were released here; then `unreleased` with those that were not."""

    ids: list[str]


Action = Send | Start | Record | Answer | Refusal | Mark | Check


def manifest(run: int, lane: int, digest: bytes, version: int, size: int, places: Sequence[Place]) -> bytes:
    """32 bytes that are equal at two parties if and only if they mean the same run of the same requests."""
    lines = [f"securemodel manifest 1\n{run} {lane} {version} {size} {digest.hex()}\n"]
    lines += [f"{place.id} {place.row} {place.rows}\n" for place in places]
    return hashlib.sha256("".join(lines).encode()).digest()


_SENTENCES: Mapping[str, tuple[str, str, str]] = {
    "share_missing": ("no share of this request came to {who}", "its upload failed or was late", "send it again to all"),
    "commit_mismatch": (
        "what {who} got and what the leader got are not of one request",
        "id, commit, model, version and rows must be the same everywhere",
        "make a new request with a new id",
    ),
    "deadline": (
        "the request cannot be answered in time",
        "what waits before it takes too long",
        "send it again, with a longer deadline",
    ),
    "result_lost": (
        "the result was computed, and {who} lost its share of it",
        "a party restarted; an id is never computed twice",
        "ask again with a new id; this one is not charged",
    ),
    "gone": ("the request is no more", "it was withdrawn, or answered before a restart", "ask again with a new id"),
    "peer_down": ("{who} cannot take part now", "it is not connected, or its runs fail", "try again later"),
    "no_preprocessing": (
        "{who} waits for correlated randomness",
        "what was prepared is used up, and the dealer is too slow or stands still",
        "try again later",
    ),
    "queue_full": ("too much waits", "the queue has a bound", "try again later"),
    "draining": ("{who} takes no new requests", "it is about to end", "try again later"),
    "budget": ("the rows of this key are used up for today", "each key has so many rows a day", "wait for tomorrow (UTC)"),
    "id_reused": ("this id was used for another request", "an id is for one body", "make a new id"),
}  # fmt: skip


def refused(code: str, parties: Sequence[str] = (), retry_after: float | None = None) -> Refused:
    """A refusal in words, with the parties that it is about."""
    what, why, fix = _SENTENCES.get(code, (f"the request is refused: {code}", "", ""))
    what = what.format(who=" and ".join(parties) or "a party")
    return Refused(code, what, why=why, fix=fix, retry_after=retry_after, parties=parties)
