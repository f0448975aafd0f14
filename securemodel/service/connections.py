"""One client's connection: how long it may take, and how much it may say before its request is whole.

uvicorn's protocol has no limit on the lines of a header, on the time a request takes to arrive, or on connections that
say nothing. They are here, in front of its parser.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from securemodel.service import cors, problems
from securemodel.service.desk import Refused


@dataclass(frozen=True)
class Limits:
    """What a client may take of a server. Times are in seconds."""

    head: int = 16 << 10
    """Bytes of the request line and the lines after it."""
    arrival_s: float = 10.0
    """From the beginning of a connection, or of a later request, to the end of its body; and for reading an answer."""
    idle_s: float = 60.0
    """Between an answer and the next request."""
    closing_s: float = 2.0
    """For a client to read the last answer and close, too."""
    waiting: int = 256
    """Connections on which nothing is being answered; another one takes the place of the one that is silent longest."""


class Watch(Protocol):
    """Who counts connections. Those that wait for their client can be given up for others, in the order of `heard`."""

    def heard(self, connection: Connection) -> None:
        """It waits for its client, who said something just now."""
        ...

    def busy(self, connection: Connection) -> None:
        """Its client waits for an answer, or it has ended."""
        ...


class _Pipelined(Exception):
    """A second request came before the first one was answered."""


class Connection(HttpToolsProtocol):
    """uvicorn's, with limits. One request at a time: a connection that sends a second one before it has the answer to
    the first gets that answer and is closed."""

    def __init__(self, config: Config, state: ServerState, limits: Limits, watch: Watch, began: float) -> None:
        """`began` is when the client connected, on the loop's clock."""
        super().__init__(config=config, server_state=state, app_state={})
        self._limits, self._watch, self._began = limits, watch, began
        self._timer: asyncio.TimerHandle | None = None
        self._head = 0
        """Bytes of this request so far; -1 when its head is whole."""
        self._whole = self._resting = self._refused = False
        """Whether a request is being answered; nothing has come since the last answer; the client is only let go."""
        self.answered = False
        """Whether it ever had an answer."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch.heard(self)
        self._arm(self._began + self._limits.arrival_s - self.loop.time())

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._watch.busy(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        if self._whole:
            self.cycle.keep_alive = False
            return
        self._watch.heard(self)
        if self._resting:
            self._resting = False
            self._arm(self._limits.arrival_s)
        if self._head < 0:
            self._feed(data)
        else:
            self._feed_head(data)

    def _feed_head(self, data: bytes) -> None:
        """Lets the parser see no more of a head than is allowed."""
        room = self._limits.head - self._head
        self._head += len(data)
        self._feed(data[:room])
        if self._head > self._limits.head:
            self.refuse(Refused("bad_header", f"the header lines have more than {self._limits.head} bytes"))
        elif len(data) > room:
            self._feed(data[room:])

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # it is answered in HTTP/1.1; what comes then is not for this parser
            self.cycle.keep_alive = False
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _Pipelined):
                self.cycle.keep_alive = False
            else:
                self.refuse(Refused("bad_header", "this is no request of HTTP/1.1"))

    def refuse(self, refused: Refused) -> None:
        """Answers what no request could be made of. What still comes is thrown away for a while, then it is closed: if
        it were closed at once, the client might not see the answer."""
        self._refused = True
        if self.cycle is None or self.cycle.response_complete:
            self.transport.write(problems.closed(refused, cors.HEADERS))
        self._arm(self._limits.closing_s)

    def on_message_begin(self) -> None:
        if self._whole:
            raise _Pipelined
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head = -1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._disarm()
        self._head, self._whole = 0, True
        self._watch.busy(self)
        if self.cycle.response_complete:
            self._rest()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()
        self.answered = True
        if self.transport.is_closing():
            self.drop()
        elif self._whole:
            self._rest()

    def shutdown(self) -> None:
        if self._whole:
            self.cycle.keep_alive = False
        else:
            self.drop()

    def _rest(self) -> None:
        """Waits for the next request."""
        self._whole, self._resting = False, True
        self._watch.heard(self)
        self._arm(self._limits.idle_s)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._arm(self._limits.arrival_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._whole:
            self._disarm()

    def drop(self) -> None:
        """Ends the connection, also where the client reads nothing any more."""
        self._disarm()
        if not self.transport.is_closing():  # asyncio's TLS forgets what it closes when it is told twice
            self.transport.close()
        self.loop.call_later(self._limits.closing_s, self.transport.abort)

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self.drop)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
