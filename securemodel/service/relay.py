"""One POST to the leader in place of one to each party: sealed parts are passed on, and sealed answers come back.

A part is a whole request, with its API key. The party that it is sealed to opens it and asks its own front, as if the
client had come by itself: so the same checks, limits and logs apply. What the front says is sealed to the client's
one-time key. The leader passes parts on to the parties of its own list alone, after it could open its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import msgspec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from securemodel.edge import sealing, wire
from securemodel.edge.errors import EdgeError, WireError
from securemodel.edge.lines import Line
from securemodel.edge.sealing import RELAY_PATH, Envelope
from securemodel.service import cors, headers, problems
from securemodel.service.bodies import Body, ClientGone, Room
from securemodel.service.desk import Refused
from securemodel.service.logs import Record
from securemodel.service.settings import Settings

_WAIT_S = wire.MAX_DEADLINE_MS / 1000 + 5
_ROOM_BYTES = 64 << 20
"""Of envelopes that are being read, together."""
_MAX_RELAYED = 128
"""Requests under way together; each keeps a thread for every follower."""


class Relay:
    """A party's front, and the relay's address beside it. `followers` are the leader's lines to them, by rank."""

    def __init__(
        self,
        front: ASGIApp,
        settings: Settings,
        private_key: X25519PrivateKey,
        followers: Mapping[int, Line] | None = None,
    ) -> None:
        self._front, self._settings, self._private_key = front, settings, private_key
        self._rank, self._running = settings.rank, 0
        self.followers = dict(followers or {})
        self._room = Room(_ROOM_BYTES)
        self._threads = ThreadPoolExecutor(_MAX_RELAYED * max(1, len(self.followers)), "relay")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != RELAY_PATH or scope["method"] != "POST":
            await self._front(scope, receive, send)
            return
        record = Record(time.perf_counter())
        try:
            status, more, body = 200, *await self._answer(scope, receive, record)
        except ClientGone:
            record.code = "client_gone"
            self._settings.ended(record)
            return
        except Exception as error:
            refused = error if isinstance(error, Refused) else problems.unexpected(error)
            (body, more), status = problems.body_of(refused), refused.status
            record.code, record.status = refused.code, status
            self._settings.ended(record)  # what is answered is told by the front
        lines = [(name.lower().encode(), value.encode()) for name, value in more.items()]
        lines += [(b"content-length", str(len(body)).encode()), *cors.RAW]
        await send({"type": "http.response.start", "status": status, "headers": lines})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive, record: Record) -> tuple[dict[str, str], bytes]:
        """(HTTP headers, body) of the answers of all parties that an envelope has parts for."""
        envelope = await self._read(scope, receive)
        record.id = envelope.id
        plain = headers.told(
            lambda: sealing.unseal(self._private_key, envelope.info("request", self._rank), envelope.parts[self._rank])
        )
        if self._running >= _MAX_RELAYED:
            raise Refused("queue_full", f"{self._running} requests are relayed", fix="ask again later", retry_after=1.0)
        self._running += 1
        try:
            others = [(rank, sealed) for rank, sealed in envelope.parts.items() if rank != self._rank]
            own, *rest = await asyncio.gather(
                self._ask_front(scope, envelope, plain), *(self._pass_on(envelope, *part) for part in others)
            )
        finally:
            self._running -= 1
        return _packed([(self._rank, own), *zip((rank for rank, _ in others), rest, strict=True)])

    async def _read(self, scope: Scope, receive: Receive) -> Envelope:
        """The envelope that a client, or the leader, sent. Raises Refused."""
        head = headers.head_of(scope["headers"])
        body = Body(receive, head, self._settings.max_body, self._room)
        with body.reading():
            return await self._read_parts(body, headers.length_of(head, wire.MAX_HEADER_BYTES))

    async def _read_parts(self, body: Body, length: int) -> Envelope:
        text = await body.take(length, "its JSON header")
        envelope, sizes = headers.told(lambda: sealing.read_envelope(text))
        if self._rank not in sizes or set(sizes) - {self._rank, *self.followers}:
            fix = "send one part for each party to the leader"
            raise Refused("bad_header", "the envelope has parts for others than this party", where="parts", fix=fix)
        parts = {rank: await body.take(size, "its parts") for rank, size in sizes.items()}
        await body.end()
        return replace(envelope, parts=parts)

    async def _ask_front(self, scope: Scope, envelope: Envelope, plain: bytes) -> bytes:
        """What this party's own front says to an opened part, sealed to the client."""
        key, header, data = headers.told(lambda: sealing.read_request_part(plain))
        path = f"/v2/models/{envelope.model}/infer"
        lines = [
            (b"host", dict(scope["headers"]).get(b"host", b"")),
            (b"content-length", str(len(header) + len(data)).encode()),
            (wire.LENGTH_HEADER.lower().encode(), str(len(header)).encode()),
            *([(b"authorization", b"Bearer " + key.encode())] if key else []),
        ]
        inner = {**scope, "path": unquote(path), "raw_path": path.encode(), "query_string": b"", "headers": lines}
        status, length, body = await _called(self._front, inner, header + data)
        answer = sealing.answer_part(status, length, body)
        return sealing.seal(envelope.response_key, envelope.info("answer", self._rank), answer)

    async def _pass_on(self, envelope: Envelope, rank: int, sealed: bytes) -> bytes | Mapping[str, Any]:
        """What a follower answers to its part: sealed, or the problem in its place."""
        line, message = self.followers[rank], replace(envelope, parts={rank: sealed}).message()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, _forwarded, line, message, rank)
        except EdgeError as error:
            name = line.party.name
            record = Record(time.perf_counter(), envelope.id, code="peer_down", status=503)
            self._settings.ended(record)
            down = Refused("peer_down", f"{name} cannot be reached", parties=[name], retry_after=1.0, why=error.what)
            return msgspec.to_builtins(problems.problem(down))


def _forwarded(line: Line, message: wire.Message, rank: int) -> bytes | Mapping[str, Any]:
    more = {"Content-Type": "application/octet-stream", wire.LENGTH_HEADER: str(len(message.header))}
    end = time.monotonic() + _WAIT_S
    status, told, body = line.ask("POST", RELAY_PATH, message.body, more, end)
    if status != 200:
        return wire.load(body, "the problem", 1 << 16)
    length = told.get(wire.LENGTH_HEADER.lower(), "")
    size = int(length) if length.isdecimal() and len(length) < 9 else 0
    parts = sealing.read_parts(wire.load(body[:size], "the answer", 1 << 16), body[size:])
    if set(parts) != {rank}:
        raise WireError("bad_answer", "the answer has not the part that was asked for")
    return parts[rank]


async def _called(front: ASGIApp, scope: Scope, body: bytes) -> tuple[int, int, bytes]:
    """(status, length of the JSON, body) that a front answers to a request made here."""
    given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    status, length, parts = 0, 0, []

    async def receive() -> Message:
        if given:
            return given.pop()
        await asyncio.Event().wait()  # the client stays until it is answered
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal status, length
        if message["type"] == "http.response.start":
            status = message["status"]
            length = int(dict(message["headers"]).get(wire.LENGTH_HEADER.lower().encode(), b"0"))
        else:
            parts.append(message.get("body", b""))

    await front(scope, receive, send)
    return status, length, b"".join(parts)


def _packed(answers: Sequence[tuple[int, bytes | Mapping[str, Any]]]) -> tuple[dict[str, str], bytes]:
    """Sealed answers, or problems in place of them, as they go back."""
    parts = [
        {"rank": rank, "size": len(answer)} if isinstance(answer, bytes) else {"rank": rank, "problem": answer}
        for rank, answer in answers
    ]
    header = wire.dump({"parts": parts})
    more = {
        wire.LENGTH_HEADER: str(len(header)),
        "Content-Type": "application/octet-stream",
        **problems.OWN,
    }
    return more, header + b"".join(answer for _, answer in answers if isinstance(answer, bytes))
