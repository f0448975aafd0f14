"""What tests of the HTTP front have in common: a desk that computes a linear function, and requests in one process."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from securemodel.edge import sharing, wire
from securemodel.service.app import make_app
from securemodel.service.desk import Answer, Refused, Submission
from securemodel.service.settings import Settings

DIGEST = "ab" * 32
WEIGHTS = np.array([[1, 0, -3], [2, 1, 0], [0, 5, 1], [1, 1, 1]], dtype=np.int64)
"""The model is x @ WEIGHTS in the ring, which each party computes of its share alone."""
CARD: dict[str, Any] = {
    "digest": DIGEST,
    "sizes": [1, 8],
    "inputs": [{"name": "x", "shape": [-1, 4], "frac_bits": 16, "kind": "real", "limit": 1.0}],
    "outputs": [{"name": "y", "shape": [-1, 3], "frac_bits": 16, "kind": "scores"}],
    "recipe": {},
    "labels": None,
    "clamp": None,
    "reveal": "all",
    "plan": {},
}
SERVICE = {
    "securemodel_service": 1,
    "name": "lines",
    "parties": [{"name": "bank", "url": "https://bank.example:8443"}, {"name": "hospital", "url": "https://h.example"}],
    "leader": "bank",
    "models": [{"name": "line", "version": 2, "versions": [1, 2], "rows": 8, "card": CARD}],
}
NOW_MS = 1_764_516_151_000


@dataclass
class Desk:
    """Answers at once, unless `hold` is set; keeps what it was asked, and answers an id as before."""

    models: Mapping[str, Mapping[int, Mapping[str, Any]]] = field(
        default_factory=lambda: {"line": {1: CARD, 2: CARD}, "other": {7: {**CARD, "digest": "cd" * 32}}}
    )
    asked: dict[str, Submission] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    withdrawn: list[str] = field(default_factory=list)
    refuse: Exception | None = None
    hold: asyncio.Event | None = None

    async def submit(self, request: Submission) -> Answer:
        if self.refuse is not None:
            raise self.refuse
        before = self.asked.setdefault(request.id, request)
        if (before.body_digest, before.key_id) != (request.body_digest, request.key_id):
            raise Refused("id_reused", "another request has this id")
        if self.hold is not None:
            await self.hold.wait()
        shares = [np.asarray(request.shares[0]).reshape(request.rows, -1) @ WEIGHTS]
        answer = Answer(2, "0123456789abcdef:1", 0, request.rows, shares, request.model, {"queue": 0.001})
        return self.answers.setdefault(request.id, answer)

    def find(self, id: str, key_id: str) -> Answer | str:
        if id not in self.asked or self.asked[id].key_id != key_id:
            raise Refused("not_found", "there is no such request")
        return self.answers.get(id, "held")

    async def withdraw(self, id: str, key_id: str) -> None:
        self.find(id, key_id)
        self.withdrawn.append(id)

    def check_ready(self, model: str | None = None, version: int | None = None) -> None:
        if self.refuse is not None:
            raise self.refuse


@dataclass(frozen=True)
class Key:
    id: str
    models: tuple[str, ...]

    def allows(self, model: str) -> bool:
        return model in self.models


class Keys:
    """Two keys: one for the model `line`, one for `other`."""

    lines, others = "L" * 43, "O" * 43

    def lookup(self, bearer: str) -> Key | None:
        return {self.lines: Key("lines", ("line",)), self.others: Key("others", ("other",))}.get(bearer)


def settings(**more: Any) -> Settings:
    return Settings(**{"name": "lines", "rank": 0, "document": lambda: SERVICE, "now_ms": lambda: NOW_MS, **more})


def messages(x: Any, *, id: str | None = None, parties: int = 2, time: int = NOW_MS, **more: Any) -> list[wire.Message]:
    """A request with these whole numbers, for each party."""
    e = np.asarray(x, dtype=np.int64)
    id = id or os.urandom(16).hex()
    tensors = [("x", list(e.shape), sharing.split(e, parties, bytes.fromhex(id), 0))]
    return wire.requests(id, DIGEST, tensors, time, **more)


@dataclass
class Reply:
    """An answer of the app."""

    status: int
    headers: dict[str, str]
    body: bytes
    names: Sequence[str] = ()
    """Of the headers, as often as they are there."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of a problem, whose members are looked at."""
        problem = self.json
        assert self.headers["content-type"] == "application/problem+json"
        assert problem["status"] == self.status and problem["error"].startswith(problem["what"]) and problem["title"]
        return problem["code"]

    def parts(self) -> tuple[Any, bytes]:
        length = int(self.headers["inference-header-content-length"])
        return json.loads(self.body[:length]), self.body[length:]


async def call(
    app: Any,
    method: str,
    path: str,
    body: bytes | Sequence[bytes] = b"",
    head: Mapping[str, str | bytes] | Sequence[tuple[bytes, bytes]] = (),
    gone: bool = False,
) -> Reply:
    """Asks an app without a network. A body in pieces comes so; `gone`: the client leaves instead of ending it."""
    pieces = [body] if isinstance(body, bytes) else list(body)
    events = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if gone:
        events.append({"type": "http.disconnect"})
    else:
        events[-1]["more_body"] = False
    sent: list[Any] = []

    async def receive() -> Any:
        return events.pop(0) if events else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    if isinstance(head, Mapping):
        lines = {"host": "bank.example", **head}
        head = [
            (name.lower().encode(), value if isinstance(value, bytes) else value.encode())
            for name, value in lines.items()
        ]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": list(head) if head else [(b"host", b"bank.example")],
    }
    await app(scope, receive, send)
    if not sent:
        return Reply(0, {}, b"")
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    names = [name.decode().lower() for name, _ in sent[0]["headers"]]
    return Reply(sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:]), names)


async def infer(app: Any, message: wire.Message, path: str = "/v2/models/line/infer", **head: str) -> Reply:
    """Sends one request to an app."""
    lengths = {"inference-header-content-length": str(len(message.header)), "content-length": str(len(message.body))}
    return await call(
        app, "POST", path, message.body, {**lengths, **{key.replace("_", "-"): head[key] for key in head}}
    )


def ask(desk: Desk, *requests: tuple[Any, ...], **more: Any) -> list[Reply]:
    """The answers of a new app to calls, each (method, path, body, head), one after the other."""
    app = make_app(desk, settings(**more))

    async def run() -> list[Reply]:
        return [await call(app, *request) for request in requests]

    return asyncio.run(run())


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    """Until a condition holds. Raises AssertionError where it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
