"""The body of a request, read piece by piece and never further than allowed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from starlette.types import Receive

from securemodel.service.desk import Refused


class ClientGone(Exception):
    """The connection ended before the body did."""


class Room:
    """How many bytes of bodies may be in memory before their requests are whole: `left` of them are free."""

    def __init__(self, size: int) -> None:
        self.left = size


class Body:
    """A body of at most `limit` bytes. Raises Refused("too_large") at once where its announced length is larger."""

    def __init__(self, receive: Receive, head: Mapping[bytes, bytes], limit: int, room: Room) -> None:
        self._receive, self._limit, self._room = receive, limit, room
        self._read, self._start, self._more = bytearray(), 0, True
        announced = head.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced[:19]) > limit:
            raise _too_large(limit)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While the body is being read, what is read of it takes room. Raises Refused("queue_full") where there is none."""
        try:
            yield
        finally:
            self._room.left += len(self._read)

    async def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes. Raises Refused where the body ends before, ClientGone where the connection does."""
        while self._more and len(self._read) - self._start < count:
            await self._next()
        piece = bytes(self._read[self._start : self._start + count])
        if len(piece) < count:
            raise Refused("bad_header", f"the body ends within {what}", why=f"{count} bytes were announced for it")
        self._start += count
        return piece

    async def end(self) -> None:
        """Raises Refused where there is more."""
        while self._more and len(self._read) == self._start:
            await self._next()
        if len(self._read) > self._start:
            why = "the sizes in the header say that it ends before"
            raise Refused("bad_header", "the body is longer than its header says", why=why)

    async def _next(self) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        self._read += piece
        self._room.left -= len(piece)
        self._more = message.get("more_body", False)
        if self._room.left < 0:
            raise Refused("queue_full", "too many bodies are being read", fix="ask again later", retry_after=1.0)
        if len(self._read) > self._limit:
            raise _too_large(self._limit)


def _too_large(limit: int) -> Refused:
    return Refused(
        "too_large", f"the body has more than {limit} bytes, the most that this model takes", fix="ask in parts"
    )
