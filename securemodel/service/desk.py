"""What meets at a party: requests of clients come in at the HTTP front, batches go out to the lanes that compute them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

STATUS: Mapping[str, int] = {
    "bad_header": 400, "clock_skew": 400, "key": 401, "model_not_allowed": 403, "not_found": 404, "method": 405,
    "id_reused": 409, "wrong_program": 409, "commit_mismatch": 409, "result_lost": 410, "gone": 410, "too_large": 413,
    "plaintext_refused": 415, "shape": 422, "rate": 429, "budget": 429, "internal": 500, "draining": 503,
    "peer_down": 503, "no_preprocessing": 503, "queue_full": 503, "share_missing": 504, "deadline": 504,
}  # fmt: skip
"""Every refusal by its code, with the HTTP status that it has."""


@dataclass(frozen=True)
class Submission:
    """A client's request as one party has it. `shares` are int64 arrays of `rows` rows, one for each input."""

    id: str
    key_id: str
    model: str
    version: int | None
    rows: int
    shares: Sequence[np.ndarray] = field(repr=False)
    body_digest: bytes = field(repr=False)
    """SHA-256 of the whole body: the same id with another body is another request."""
    commit: str
    deadline: float
    """On this host's monotonic clock, in seconds."""


@dataclass(frozen=True)
class Answer:
    """This party's shares of a result, and where it was computed: equal at all parties but for the shares."""

    version: int
    run: str
    row: int
    batch: int
    shares: Sequence[np.ndarray] = field(repr=False)
    model: str = ""
    stages: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Seconds that the request spent by stage, for the log."""


class Refused(Exception):
    """A request is not answered, and why; `code` is one of STATUS."""

    def __init__(
        self,
        code: str,
        what: str,
        *,
        where: str = "",
        why: str = "",
        fix: str = "",
        retry_after: float | None = None,
        parties: Sequence[str] = (),
    ) -> None:
        super().__init__(what)
        self.code, self.status = code, STATUS[code]
        self.what, self.where, self.why, self.fix = what, where, why, fix
        self.retry_after, self.parties = retry_after, tuple(parties)


class Desk(Protocol):
    """What the front asks of its party."""

    @property
    def models(self) -> Mapping[str, Mapping[int, Mapping[str, Any]]]:
        """The card of each version of each model that is loaded (docs/service.md), the current version last."""
        ...

    async def submit(self, request: Submission) -> Answer:
        """Answers a request, or the same bytes again where its id was answered before. Raises Refused."""
        ...

    def find(self, id: str, key_id: str) -> Answer | str:
        """The answer to a request that was asked before, or its state while it waits. Raises Refused."""
        ...

    async def withdraw(self, id: str, key_id: str) -> None:
        """Takes a request back that no batch has begun with. Raises Refused."""
        ...

    def check_ready(self, model: str | None = None, version: int | None = None) -> None:
        """Raises Refused with what is missing, where requests cannot be answered now."""
        ...


@dataclass(frozen=True)
class Job:
    """One run of a batch: what a lane needs, in the same words at all parties but for the shares."""

    run: int
    size: int
    rows: int
    manifest: bytes
    """SHA-256 over run, program, ids and rows; compared among the parties before anything is opened."""
    shares: Sequence[np.ndarray] = field(repr=False)


class LaneDown(Exception):
    """A lane failed before the outputs were shares: nothing left the parties, and the same shares may run again."""

    def __init__(self, reason: str, party: str = "") -> None:
        super().__init__(reason)
        self.party = party


class Lane(Protocol):
    """An engine process of this party and its session with the others', for one version of a model."""

    number: int
    model: str
    version: int

    @property
    def dry_since(self) -> float | None:
        """Since when, on the monotonic clock, a run waits for its preprocessing; None where none does."""
        ...

    @property
    def up(self) -> bool:
        """Whether it has its weights and can run."""
        ...

    @property
    def session(self) -> str:
        """The session that it is in, or was in last: the same words at all parties, never twice the same."""
        ...

    @property
    def seconds(self) -> Mapping[int, float]:
        """How long a run of each size takes, as measured."""
        ...

    async def run(self, job: Job) -> tuple[str, list[np.ndarray]]:
        """(session and epoch of the run, this party's shares of each output: `rows` rows). Raises LaneDown."""
        ...
