"""Links between the fronts of the parties: pinned mutual TLS 1.3, msgpack frames, in order and without loss.

Followers dial the leader. A link that breaks is dialed again, and goes on where it was: each end keeps what the other
has not confirmed. An end that restarts draws a new number for itself, and then both begin anew and are told so. A frame
is its length (4 bytes, big-endian, at most 64 kB) and a msgpack array. A party that sends anything else is named, and
its link begins anew; whoever shows no certificate of a party is turned away in the handshake.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import msgspec

from protocols.channel import tls
from protocols.channel.listen import HANDSHAKE_S, address_text, listen_on_all
from protocols.errors import BadFrame, ConfigError, IdentityError, Mismatch, PeerAbsent, PeerError, PeerStalled, explain
from protocols.identity import Entry, Identity
from securemodel.service.messages import (
    MAX_BYTES,
    AnyMessage,
    Connected,
    Disconnected,
    Message,
    Received,
    misbehaved,
    pack,
    unpack,
)

if TYPE_CHECKING:
    from securemodel.service.config import ServiceConfig

VERSION = 1
BEAT_S = 1.0
SILENCE_S = 10.0
_REDIAL_S = (0.05, 2.0)
_GUESTS = 64
_MOST_KEPT = 100_000
_log = logging.getLogger("securemodel.service")

_Number = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class _Hello(Message, frozen=True, tag=0):
    """The first frame of each end: who it is in this life, whom it knows, and how much it has received of that one."""

    version: int
    service: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    mine: _Number
    yours: Annotated[bytes, msgspec.Meta(max_length=16)]
    received: _Count


class _Says(Message, frozen=True, tag=1):
    """Messages in order; `first` is the number of the first one. Without messages a sign of life."""

    first: _Count
    received: _Count
    messages: list[msgspec.Raw]


_DECODER = msgspec.msgpack.Decoder(_Hello | _Says)
_ENCODER = msgspec.msgpack.Encoder()


@dataclass
class _Peer:
    """The other end of a link. `kept`: what it has not confirmed; `said` and `received` count messages."""

    entry: Entry
    mine: bytes = field(default_factory=lambda: os.urandom(16))
    theirs: bytes = b""
    kept: deque[bytes] = field(default_factory=deque)
    said: int = 0
    sent: int = 0
    received: int = 0
    writer: asyncio.StreamWriter | None = None
    flushing: bool = False
    complaint: str = ""

    def complain(self, error: Exception) -> None:
        """Logs what is wrong with it, once until it is linked or something else is wrong."""
        if str(error) != self.complaint:
            self.complaint = str(error)
            _log.error("%s", error)

    def renew(self, theirs: bytes = b"") -> None:
        """Nothing was said or received yet."""
        self.theirs, self.said, self.sent, self.received = theirs, 0, 0, 0
        self.kept.clear()

    def confirm(self, received: int) -> None:
        """It has so many messages. Raises BadFrame if there were not so many."""
        if received > self.sent:
            raise misbehaved(self.entry.name, "it confirmed messages that were not sent")
        while len(self.kept) > self.said - received:
            self.kept.popleft()


class ControlLinks:
    """`Links` of one party. Reads of the configuration the ranks, the fronts' control addresses, and the certificates."""

    def __init__(self, me: str, config: ServiceConfig, own: Identity) -> None:
        self.me, self._own, self._service = me, own, config.digest()
        self._leader = config.ranks[0]
        linked = config.ranks[1:] if me == self._leader else config.ranks[:1]
        self._peers = {name: _Peer(config.parties.entry(name)) for name in linked}
        self._at = _split(config.fronts[self._leader].control)
        if me == self._leader and config.own.control_listen:
            self._at = _split(config.own.control_listen)
        self._tasks: set[asyncio.Task] = set()
        self._guests: dict[asyncio.Task, None] = {}
        self._sockets: list[socket.socket] = []
        self.port = self._at[1]

    async def start(self, received: Received, connected: Connected, disconnected: Disconnected) -> None:
        """Listens, or begins to dial. Raises ConfigError if the address cannot be listened to."""
        self._received, self._connected, self._disconnected = received, connected, disconnected
        if self.me == self._leader:
            context = tls.server_context(self._own, [peer.entry for peer in self._peers.values()])
            try:
                self._sockets = listen_on_all(*self._at)
            except OSError as error:
                what = f"the fronts of the other parties cannot reach this one at {address_text(self._at)}"
                fix = "end what listens there, or set control_listen"
                raise ConfigError(explain(what, why=error.strerror or str(error), fix=fix)) from None
            self.port = self._sockets[0].getsockname()[1]
            for sock in self._sockets:
                self._task(self._accept(sock, context))
        else:
            peer = self._peers[self._leader]
            self._task(self._dial(peer, tls.client_context(self._own, peer.entry)))
        self._task(self._beat())

    def send(self, party: str, message: AnyMessage) -> None:
        """Sends with all else that is said in this turn of the loop, or when the link is up again."""
        peer = self._peers[party]
        peer.kept.append(pack(message))
        peer.said += 1
        if len(peer.kept) > _MOST_KEPT:
            self.renew(party, PeerStalled(party, f"party {party!r} does not confirm what it is told"))
        elif not peer.flushing:
            peer.flushing = True
            asyncio.get_running_loop().call_soon(self._flush, peer)

    def renew(self, party: str, error: Exception | None = None) -> None:
        """Ends a link and all that was said on it: both ends see a restart of the other. error: what that party did."""
        peer = self._peers[party]
        peer.mine = os.urandom(16)
        peer.renew()
        self._hang_up(peer, error)

    async def close(self) -> None:
        """Ends all links, after what was said."""
        for peer in self._peers.values():
            self._flush(peer)
        for sock in self._sockets:
            sock.close()
        while left := [*self._tasks, *self._guests]:
            for (
                task
            ) in left:  # again, as wait_for before Python 3.12 may lose a cancellation when what it awaits is done
                task.cancel()
            await asyncio.wait(left, timeout=BEAT_S)
        for peer in self._peers.values():
            if peer.writer:
                peer.writer.close()

    def _task(self, coroutine) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Being connected

    async def _accept(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        """Takes connections in; the oldest that has not shown who it is makes room where there are many."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(sock)
            except OSError:
                await asyncio.sleep(BEAT_S)  # too few descriptors
                continue
            if len(self._guests) >= _GUESTS:
                next(iter(self._guests)).cancel()
            guest = loop.create_task(self._welcome(connection, context))
            self._guests[guest] = None
            guest.add_done_callback(lambda task: self._guests.pop(task, None))

    async def _welcome(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        """The handshake with somebody who dialed, and then its link."""
        with suppress(OSError, IdentityError, asyncio.TimeoutError, EOFError):
            reader = asyncio.StreamReader(limit=4 * MAX_BYTES)
            protocol = asyncio.StreamReaderProtocol(reader)
            loop = asyncio.get_running_loop()
            try:
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol, connection, ssl=context, ssl_handshake_timeout=HANDSHAKE_S
                )
            except BaseException:
                connection.close()
                raise
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            try:
                certificate = writer.get_extra_info("ssl_object").getpeercert(True)
                name = tls.peer_name(certificate, [peer.entry for peer in self._peers.values()])
                await self._talk(self._peers[name], reader, writer)
            finally:
                writer.close()

    async def _dial(self, peer: _Peer, context: ssl.SSLContext) -> None:
        """Connects with the leader, for as long as this party is there."""
        wait_s = _REDIAL_S[0]
        while True:
            try:
                reader, writer = await asyncio.wait_for(
                    asyncio.open_connection(*self._at, ssl=context, server_hostname="", limit=4 * MAX_BYTES),
                    HANDSHAKE_S,
                )
                try:
                    tls.peer_name(writer.get_extra_info("ssl_object").getpeercert(True), [peer.entry])
                    if await self._talk(peer, reader, writer):
                        wait_s = _REDIAL_S[0]
                finally:
                    writer.close()
            except (OSError, asyncio.TimeoutError, EOFError, IdentityError) as error:
                peer.complain(_no_link(peer.entry, self._at, error))
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _REDIAL_S[1])

    # Talking

    async def _talk(self, peer: _Peer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Everything that a party says on one connection. Returns whether it said who it is, as it should."""
        try:
            hello = _Hello(VERSION, self._service, peer.mine, peer.theirs, peer.received)
            writer.write(_frame(_ENCODER.encode(hello)))
            self._greet(peer, await self._read(peer, reader), writer)
        except PeerError as wrong:
            peer.complain(wrong)
            return False
        guest = asyncio.current_task()
        if guest in self._guests:
            del self._guests[guest]
            self._tasks.add(guest)
            guest.add_done_callback(self._tasks.discard)
        error: PeerError | None = None
        try:
            while peer.writer is writer:
                said = await self._read(peer, reader)
                if peer.writer is writer:
                    self._hear(peer, said)
        except BadFrame as broken:
            self.renew(peer.entry.name, broken)
        except PeerError as silent:
            error = silent
        except (OSError, EOFError):
            pass
        finally:
            if peer.writer is writer:
                self._hang_up(peer, error)
        return True

    async def _read(self, peer: _Peer, reader: asyncio.StreamReader) -> _Hello | _Says:
        """The next frame. Raises PeerStalled, BadFrame, or EOFError where the connection ends."""
        name = peer.entry.name
        try:
            raw = await asyncio.wait_for(_next(reader, name), SILENCE_S)
        except asyncio.TimeoutError:
            raise PeerStalled(
                name, f"party {name!r} said nothing for {SILENCE_S:g} s on its link of the service"
            ) from None
        try:
            return _DECODER.decode(raw)
        except (msgspec.DecodeError, RecursionError) as error:
            raise misbehaved(name, f"it sent a frame that cannot be read: {type(error).__name__}") from None

    def _greet(self, peer: _Peer, hello: _Hello | _Says, writer: asyncio.StreamWriter) -> None:
        """Goes on where the link was, or begins anew. Raises Mismatch if the other end is of another service."""
        name = peer.entry.name
        if not isinstance(hello, _Hello):
            raise misbehaved(name, "it did not begin with who it is")
        if (hello.version, hello.service) != (VERSION, self._service):
            what = f"party {name!r} has another SERVICE.toml, or another version of this program"
            fix = "compare the files: all but [me] must be the same"
            raise Mismatch(name, explain(what, where="the link between the fronts", fix=fix))
        if peer.writer:
            self._hang_up(peer)
        goes_on = (hello.mine, hello.yours) == (peer.theirs, peer.mine)
        if goes_on:
            peer.confirm(hello.received)
            peer.sent = peer.said - len(peer.kept)
        else:
            peer.renew(hello.mine)
        peer.writer, peer.complaint = writer, ""
        self._connected(name, not goes_on)
        self._flush(peer)

    def _hear(self, peer: _Peer, said: _Hello | _Says) -> None:
        name = peer.entry.name
        if not isinstance(said, _Says):
            raise misbehaved(name, "it said twice who it is")
        if said.messages and said.first != peer.received:
            raise misbehaved(name, "it left out messages, or sent some twice")
        peer.confirm(said.received)
        for raw in said.messages:
            peer.received += 1
            self._received(name, unpack(memoryview(raw), name))
            if not peer.writer:
                return  # what it said ended the link

    def _flush(self, peer: _Peer, life: bool = False) -> None:
        """Writes what was not sent on this connection, in frames that are not too large."""
        peer.flushing = False
        if not peer.writer:
            return
        waiting = deque(islice(peer.kept, len(peer.kept) - (peer.said - peer.sent), None))
        while waiting or life:
            some: list[bytes] = []
            size = 0
            while waiting and (not some or size + len(waiting[0]) < MAX_BYTES - 256):
                size += len(waiting[0])
                some.append(waiting.popleft())
            raws = [msgspec.Raw(message) for message in some]
            peer.writer.write(_frame(_ENCODER.encode(_Says(peer.sent, peer.received, raws))))
            peer.sent += len(some)
            life = False

    async def _beat(self) -> None:
        """A sign of life every second, which also confirms what was received."""
        while True:
            await asyncio.sleep(BEAT_S)
            for peer in self._peers.values():
                self._flush(peer, life=True)

    def _hang_up(self, peer: _Peer, error: Exception | None = None) -> None:
        """Ends a connection, and says so."""
        if error:
            peer.complain(error)
        if peer.writer:
            peer.writer.close()
            peer.writer = None
            self._disconnected(peer.entry.name)


async def _next(reader: asyncio.StreamReader, party: str) -> bytes:
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > MAX_BYTES:
        raise misbehaved(party, f"it sent a frame of {size} bytes, at most {MAX_BYTES} are read")
    return await reader.readexactly(size)


def _frame(raw: bytes) -> bytes:
    return len(raw).to_bytes(4, "big") + raw


def _no_link(leader: Entry, at: tuple[str, int], error: Exception) -> PeerAbsent:
    """Why there is no link with the leader, as its log says it to the operator of a follower."""
    why = getattr(error, "verify_message", "") or getattr(error, "strerror", "") or str(error) or type(error).__name__
    fix = "see whether it is served, and whether address and certificates are those of both parties' files"
    what = f"no link with the front of {leader.name!r}"
    return PeerAbsent(leader.name, explain(what, where=address_text(at), why=why, fix=fix))


def _split(address: str) -> tuple[str, int]:
    """Host and port of an address as SERVICE.toml has it."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
