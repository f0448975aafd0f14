"""How links come to be: dialing, accepting, TLS, and the first message of a link.

Every party listens on its address; of each pair the one whose name sorts first dials. The dealer listens, its parties
dial. The first message (HELLO) carries the protocol version, the sender's name, which must be the name its certificate
is pinned for, a digest of the party list, a nonce, its lane, and the session that a link to the dealer is of. A stranger who connects is turned away and ends nothing;
a known party that is wrong in any way ends the session at once.

A party that is there but not ready, because it still compiles its model, is connected and authenticated already, and
keeps its HELLO back. Meanwhile it says every other second that it is alive, and who waits for it goes on waiting.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import cast

from protocols.channel.hello import (
    EVERY_LANE,
    HELLO,
    MAX_HELLO_BYTES,
    SESSION_BYTES,
    Hello,
    pack_hello,
    read_hello,
)
from protocols.channel.link import Link
from protocols.channel.listen import HANDSHAKE_S, Guest, Listener, address_text, dial_any
from protocols.channel.notices import NOT_READY, Notices, Say, silent
from protocols.channel.records import RecordStream
from protocols.channel.stream import PlainStream, TlsHandshake
from protocols.channel.tls import SPOKEN, client_context, peer_name, server_context
from protocols.errors import (
    ConfigError,
    IdentityError,
    Mismatch,
    PeerAbsent,
    PeerDied,
    PeerError,
    PeerStalled,
    SecureModelError,
    explain,
    public_reason,
    reason_of,
    summary,
)
from protocols.identity import DEALER, Entry, Identity, PartiesConfig

_RETRY_S = (0.02, 0.5)  # first and longest pause between two attempts to dial
_BEAT_S, _POLL_S, _GOODBYE_S = 2.0, 0.5, 0.3
_PREPARING_S = 6 * 3600.0  # longest wait for a party that is there and not ready


@dataclass
class Meeting:
    """One party's attempt to get links to a set of others: `open`, and `finish` when it is ready for them."""

    me: str
    config: PartiesConfig
    identity: Identity | None
    plain: bool
    idle_s: float = 0.0
    session: bytes = bytes(SESSION_BYTES)
    nonce: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    nonces: dict[str, bytes] = field(default_factory=dict, repr=False)
    refused: list[str] = field(default_factory=list)
    awaited: set[str] = field(default_factory=set)
    _links: dict[str, Link] = field(default_factory=dict)
    _greeting: list[Link] = field(default_factory=list)  # authenticated, and one of both is not ready
    _listener: Listener | None = None
    _deadline: float = math.inf
    _results: queue.SimpleQueue[tuple[Hello, Link] | SecureModelError | OSError | None] = field(
        default_factory=queue.SimpleQueue, repr=False
    )
    _ready: threading.Event = field(default_factory=threading.Event)
    _done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.entry = self.config.entry(self.me)
        self.lane = EVERY_LANE if self.me == DEALER else self.config.lane
        if self.plain:
            return
        if self.identity is None:
            raise ConfigError(
                explain(
                    f"party {self.me!r} has no identity to authenticate with",
                    fix="make one (protocols.identity.create), or set insecure_plain for links inside this host",
                )
            )
        if self.identity.fingerprint != self.entry.fingerprint:
            raise ConfigError(
                explain(
                    f"the identity of {self.me!r} is not the one the party file pins",
                    where=str(self.config.path or self.identity.certificate_path),
                    why=f"ours is {self.identity.fingerprint}, the file's {self.entry.fingerprint or 'is missing'}",
                    fix="use the identity the others know, or give all of them the new certificate",
                )
            )

    @property
    def _own(self) -> Identity:
        return cast(Identity, self.identity)  # without one, links are plain, or there is no meeting

    def open(self, accept: Sequence[str], dial: Sequence[str], *, ready: bool = True) -> None:
        """Begins to listen and to dial; unless `ready`, who comes is told to wait. Raises ConfigError."""
        if ready:
            self._begin()
        self.awaited = {*accept, *dial}
        entries = {name: self.config.entry(name) for name in self.awaited}
        contexts = {name: None if self.plain else client_context(self._own, entries[name]) for name in dial}
        for name in dial:
            self._check_local(entries[name])
        if accept:
            peers = [entries[name] for name in accept]
            context = None if self.plain else server_context(self._own, peers)
            self._listener = self._listen(accept)
            self._listener.start(lambda guest: self._guarded(self._welcome, guest, context, peers))
        for name in dial:
            arguments = (self._dial, entries[name], contexts[name])
            threading.Thread(target=self._guarded, args=arguments, daemon=True, name=f"connect-{self.me}").start()

    def finish(self, say: Say = silent) -> dict[str, Link]:
        """All links by name, or the first error that waiting cannot cure; `say` is told who is waited for, and why."""
        self._begin()
        notices = Notices(self.me, say)
        try:
            while missing := self.awaited - self._links.keys():
                try:
                    result = self._results.get(timeout=min(max(self._left_s(), 0.001), _POLL_S))
                except queue.Empty:
                    notices.waiting(self.reasons(missing))
                    if self._left_s() <= 0:
                        waited_s = max(self.config.timeouts.connect_s, 0 if self._links else self.idle_s)
                        raise self._absent(sorted(missing), waited_s) from None
                    continue
                if isinstance(result, Exception):
                    raise result
                hello, link = cast("tuple[Hello, Link]", result)
                self._links[hello.name] = link
                self._deadline = min(self._deadline, time.monotonic() + self.config.timeouts.connect_s)
            return dict(self._links)
        except BaseException as error:
            for link in self._links.values():
                link.abort(public_reason(error))
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Lets go of whom `finish` has not returned, and of the address. Closing twice does nothing."""
        with self._lock:
            self._done.set()
            self._ready.set()
            waiting = list(self._greeting)
        for link in waiting:
            link.interrupt()
        if self._listener:
            self._listener.close()

    def _begin(self) -> None:
        if not self._ready.is_set():
            self._deadline = time.monotonic() + max(self.config.timeouts.connect_s, self.idle_s)
            self._ready.set()

    def _left_s(self) -> float:
        """Seconds until this meeting gives up; counted anew from each sign of life of a party that is not ready."""
        return max(self._deadline, self.patience(self.awaited)) - time.monotonic()

    def patience(self, names: Collection[str]) -> float:
        """Until when those are waited for, on the monotonic clock, who said that they are there and not ready; or 0."""
        with self._lock:
            alive = max((link.beat_at for link in self._greeting if link.peer in names), default=0.0)
        return alive + self.config.timeouts.connect_s if alive else 0.0

    def reasons(self, names: Collection[str]) -> dict[str, str]:
        """Why each of these is waited for."""
        with self._lock:
            there = {link.peer for link in self._greeting if link.beat_at}
        last = f" ({self.refused[-1]})" if self.refused else ""
        return {name: NOT_READY if name in there else f"it has not come{last}" for name in sorted(names)}

    def _guarded(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            function(*arguments)
        except (SecureModelError, OSError) as error:
            self._results.put(error)

    def _absent(self, names: Sequence[str], waited_s: float) -> PeerError:
        who = ", ".join(map(repr, names))
        places = [f"{name!r} is at {self.config.entry(name).address}" for name in names]
        if self._listener:
            places.append(f"{self.me!r} listens on {self._listener.addresses}")
        waited = f"waited {waited_s:g} s; {', '.join(places)}"
        refused = list(dict.fromkeys(self.refused))
        if any("certificate" in reason or "TLS: " in reason for reason in refused):
            return IdentityError(
                names[0],
                explain(
                    f"no authenticated connection with {who}",
                    where=f"party {self.me!r}, {waited}",
                    why="; ".join(refused),
                    fix="compare the fingerprints in the parties' files; all must use TLS and pin the same certificates",
                ),
            )
        return PeerAbsent(
            names[0],
            explain(
                f"no connection with {who}",
                where=f"party {self.me!r}, {waited}",
                why="; ".join(refused) or "nobody came",
                fix="start that party, check its address and firewall, or raise connect_s under [timeouts]",
            ),
        )

    def _deliver(self, hello: Hello, link: Link) -> None:
        with self._lock:
            if not self._done.is_set():
                self._results.put((hello, link))
                return
        link.abort(f"party {self.me!r} stopped connecting")

    # Dialing

    def _dial(self, peer: Entry, context: ssl.SSLContext | None) -> None:
        pause_s = _RETRY_S[0]
        while not self._done.is_set():
            try:
                hello, link = self._dial_once(peer, context)
            except (OSError, PeerDied, PeerStalled) as error:
                self.refused = [*self.refused[-3:], f"dialing {peer.name!r}: {_reason(error)}"]
                self._done.wait(pause_s)
                pause_s = min(2 * pause_s, _RETRY_S[1])
            else:
                self._deliver(hello, link)
                return

    def _dial_once(self, peer: Entry, context: ssl.SSLContext | None) -> tuple[Hello, Link]:
        until = time.monotonic() + self._handshake_s()
        sock = dial_any(peer.host, peer.port, until - time.monotonic())
        try:
            _tune(sock)
            stream = self._authenticate(sock, context, peer, until) if context else PlainStream(sock)
            link = Link(self.me, peer.name, stream, self.config.timeouts.receive_s)
            return self._greet(link, {peer.name}), link
        except BaseException:
            sock.close()
            raise

    def _authenticate(self, sock: socket.socket, context: ssl.SSLContext, peer: Entry, until: float) -> RecordStream:
        handshake = TlsHandshake(sock, context, server_side=False)
        try:
            peer_name(handshake.authenticate(until - time.monotonic()), [peer])
        except ssl.SSLError as error:
            raise IdentityError(
                peer.name,
                explain(
                    f"party {peer.name!r} could not be authenticated",
                    where=f"TLS handshake with {peer.address}",
                    why=_tls_reason(error),
                    fix="compare its fingerprint with the party file; it must use TLS 1.3 and its pinned certificate",
                ),
            ) from error
        try:
            return _records(handshake, peer.name, until)
        except ssl.SSLError as error:  # a client hears only now whether its own certificate is trusted
            raise self._rejected(peer.name, error) from error

    # Accepting

    def _listen(self, accept: Sequence[str]) -> Listener:
        self._check_local(self.entry)
        host, port = self.config.listen or (self.entry.host, self.entry.port)
        try:
            return Listener(host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                fix = "stop the other program on that port, or choose another port in all parties' files"
            else:
                fix = f'set listen = "0.0.0.0:{port}" (or "[::]:{port}", or an address of this machine) under [me]'
            raise ConfigError(
                explain(
                    f"party {self.me!r} cannot listen on {address_text((host, port))}",
                    where=f"waiting for {', '.join(accept)}",
                    why=error.strerror or str(error),
                    fix=fix,
                )
            ) from None

    def _welcome(self, guest: Guest, context: ssl.SSLContext | None, peers: Sequence[Entry]) -> None:
        """Authenticate one connection. An unknown one is only noted; a known party's error is raised."""
        known, sock, room = "", guest.sock, cast(Listener, self._listener).room
        try:
            _tune(sock)
            stream: PlainStream | RecordStream
            if context:
                until = time.monotonic() + self._handshake_s()
                handshake = TlsHandshake(sock, context, server_side=True)
                known = peer_name(handshake.authenticate(until - time.monotonic()), peers)
                room.leave(guest)  # from here on it is a party's
                stream = _records(handshake, known, until)
            else:
                stream = PlainStream(sock)
            link = Link(self.me, known or "unknown", stream, self.config.timeouts.receive_s)
            hello = self._greet(link, {known} if known else {entry.name for entry in peers})
            link.peer = hello.name
            room.leave(guest)
            self._deliver(hello, link)
        except (OSError, PeerError) as error:
            _turn_away(sock)
            if known and not isinstance(error, (OSError, PeerDied, PeerStalled)):
                raise
            self.refused = [*self.refused[-3:], f"connection from {guest.address} refused: {_reason(error)}"]
        finally:
            room.leave(guest)

    # The first message

    def _greet(self, link: Link, allowed: set[str]) -> Hello:
        """Exchange HELLO when this party is ready. The peer's, with a name of `allowed`. Raises PeerError, OSError."""
        digest = self.config.roster_digest()
        with self._lock:
            before = [other for other in self._greeting if other.peer == link.peer]
            self._greeting.append(link)
        if not self._ready.is_set():
            for other in before:  # that party was started anew
                other.interrupt()
        try:
            while not self._ready.is_set():
                link.beat()
                self._ready.wait(min(_BEAT_S, self.config.timeouts.connect_s / 4))
            if self._done.is_set():
                raise ConnectionAbortedError(errno.ECONNABORTED, "this party stopped connecting")
            ours = pack_hello(Hello(self.me, self.nonce, self.lane, self.session), digest)
            silence_s = self._handshake_s()
            link.send(HELLO, [ours], timeout_s=silence_s)
            hello = link.receive(HELLO, max_bytes=MAX_HELLO_BYTES, timeout_s=_PREPARING_S, silence_s=silence_s)
        finally:
            with self._lock:
                self._greeting.remove(link)
        try:
            said = read_hello(link.peer, hello.numpy().tobytes(), digest, allowed, self.lane)
            self._note(said)
            return said
        except PeerError as error:
            link.abort(public_reason(error))
            raise

    def _note(self, hello: Hello) -> None:
        """Remembers who came. Raises IdentityError for another process of a party that is here."""
        with self._lock:
            if self.nonces.setdefault(hello.name, hello.nonce) != hello.nonce:
                raise connected_twice(hello.name)

    def _rejected(self, peer: str, error: ssl.SSLError) -> IdentityError:
        return IdentityError(
            peer,
            explain(
                f"party {peer!r} does not accept our certificate",
                where=f"party {self.me!r}",
                why=_tls_reason(error),
                fix=f"give {peer!r} our certificate and compare its fingerprint in their party file",
            ),
        )

    def _handshake_s(self) -> float:
        return max(min(HANDSHAKE_S, self._left_s()), 0.01)

    def _check_local(self, entry: Entry) -> None:
        """Plain links never leave this host."""
        host = self.config.listen[0] if entry is self.entry and self.config.listen else entry.host
        if not self.plain or host == "localhost":
            return
        try:
            local = ipaddress.ip_address(host).is_loopback
        except ValueError:
            local = False
        if not local:
            raise ConfigError(
                explain(
                    f"a link without TLS to {host} is refused",
                    why="insecure_plain is only for processes of one host (127.0.0.1, ::1 or localhost)",
                    fix="use TLS: make identities and pin their certificates in the party file",
                )
            )


def connected_twice(name: str) -> IdentityError:
    """The error for two processes of one party where one may be."""
    return IdentityError(name, explain(f"party {name!r} connected twice", fix="start each party once"))


def _records(handshake: TlsHandshake, peer: str, until: float) -> RecordStream:
    """The stream of an authenticated party. Raises Mismatch, OSError."""
    if handshake.spoken != SPOKEN:
        why = f"inside TLS it does not speak {SPOKEN}, as we do"
        raise Mismatch(peer, explain(f"party {peer!r} runs another version", why=why, fix="install the same version"))
    return handshake.records(until - time.monotonic())


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _tls_reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not the pinned one ({error.verify_message})"
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else type(error).__name__


def _reason(error: OSError | PeerError) -> str:
    """Why a connection came to nothing, in one line: also what was wrong with what came over it."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {_tls_reason(error)}"
    if isinstance(error, OSError):
        return error.strerror or summary(error)
    return f"{summary(error)}: {reason_of(error)}" if isinstance(error, PeerDied) else summary(error)


def _turn_away(sock: socket.socket) -> None:
    """Close a refused connection, leaving the other end a moment to read why (a TLS alert or our ABORT)."""
    deadline = time.monotonic() + _GOODBYE_S
    try:
        sock.shutdown(socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            if not sock.recv(4096):
                break
    except (OSError, ValueError):
        pass
    finally:
        sock.close()
