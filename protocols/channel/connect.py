"""How links come to be: dialing, accepting, TLS, and the first message of a link.

Every party listens on its address; of each pair the one whose name sorts first dials. The dealer listens, its parties
dial. The first message (HELLO) carries the protocol version, the sender's name, which must be the name its certificate
is pinned for, a digest of the party list and a nonce. A stranger who connects is turned away and ends nothing;
a known party that is wrong in any way ends the session at once.
"""
from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
import queue
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from protocols.channel.frame import PROTOCOL_VERSION, Label, Purpose
from protocols.channel.link import Link
from protocols.channel.stream import PlainStream, TlsStream
from protocols.channel.tcp import TcpChannel
from protocols.channel.tls import client_context, peer_name, server_context
from protocols.errors import (
    BadFrame,
    ConfigError,
    IdentityError,
    InputError,
    Mismatch,
    PeerAbsent,
    PeerDied,
    PeerError,
    SecureModelError,
    explain,
    public_reason,
    summary,
)
from protocols.identity import DEALER, Entry, Identity, PartiesConfig

_HELLO = Label(0, 0, Purpose.HELLO)
_HELLO_LAYOUT = struct.Struct("<I32s32s")  # version, roster digest, nonce; the name follows
_MAX_HELLO_BYTES = _HELLO_LAYOUT.size + 64
_HANDSHAKE_S = 10.0
_MAX_STRANGERS = 64  # connections that may be shaking hands at the same time
_RETRY_S = (0.02, 0.5)  # first and longest pause between two attempts to dial


def connect(
    me: str, config: PartiesConfig, identity: Identity | None = None, *, insecure_plain: bool = False
) -> TcpChannel:
    """Connect an online party to all others of the party file, over mutual TLS 1.3.

    `insecure_plain` leaves TLS out, for benchmarks inside one host; it refuses any other address. Returns when all
    are connected. Raises PeerAbsent after `connect_s` seconds, IdentityError, Mismatch, ConfigError.
    """
    config.entry(me)
    if me == DEALER:
        raise InputError(explain("the dealer has no online channel", fix="use listen_for(DEALER, parties, ...)"))
    peers = [name for name in config.parties if name != me]
    meeting = _Meeting(me, config, identity, insecure_plain)
    links = meeting.run(accept=[name for name in peers if name < me], dial=[name for name in peers if name > me])
    nonces = {me: meeting.nonce, **meeting.nonces}
    session = hashlib.sha256(b"".join(name.encode() + b"\0" + nonces[name] for name in sorted(nonces))).digest()
    return TcpChannel(me, {name: links[name] for name in peers}, session)


def dial(
    me: str, name: str, config: PartiesConfig, identity: Identity | None = None, *, insecure_plain: bool = False
) -> Link:
    """A link to one role that listens, such as the dealer. Raises what `connect` raises."""
    return _Meeting(me, config, identity, insecure_plain).run(accept=[], dial=[name])[name]


def listen_for(
    me: str,
    names: Sequence[str],
    config: PartiesConfig,
    identity: Identity | None = None,
    *,
    idle_s: float = 0.0,
    insecure_plain: bool = False,
) -> dict[str, Link]:
    """Accept one link from each of these parties, which `dial` us. Raises what `connect` raises.

    Waits up to `idle_s` for the first of them, and `connect_s` from then on for the others.
    """
    return _Meeting(me, config, identity, insecure_plain, idle_s).run(accept=list(names), dial=[])


@dataclass
class _Meeting:
    """One party's attempt to get links to a set of others before a deadline."""

    me: str
    config: PartiesConfig
    identity: Identity | None
    plain: bool
    idle_s: float = 0.0
    nonce: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    nonces: dict[str, bytes] = field(default_factory=dict, repr=False)
    refused: list[str] = field(default_factory=list)
    _links: dict[str, Link] = field(default_factory=dict)
    _results: queue.SimpleQueue[tuple[str, Link] | SecureModelError | OSError] = field(
        default_factory=queue.SimpleQueue, repr=False
    )
    _done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.entry = self.config.entry(self.me)
        self.deadline = time.monotonic() + max(self.config.timeouts.connect_s, self.idle_s)
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

    def run(self, accept: Sequence[str], dial: Sequence[str]) -> dict[str, Link]:
        """All links by name, or the first error that waiting cannot cure."""
        awaited = {*accept, *dial}
        listener, accepting = self._listen(accept) if accept else None, None
        try:
            for name in dial:
                self._start(self._dial, self.config.entry(name))
            if listener:
                accepting = self._start(self._accept, listener, [self.config.entry(name) for name in accept])
            while awaited - self._links.keys():
                try:
                    result = self._results.get(timeout=max(self.deadline - time.monotonic(), 0.001))
                except queue.Empty:
                    raise self._absent(sorted(awaited - self._links.keys())) from None
                if isinstance(result, Exception):
                    raise result
                self._links[result[0]] = result[1]
                self.deadline = min(self.deadline, time.monotonic() + self.config.timeouts.connect_s)
            return dict(self._links)
        except BaseException as error:
            for link in self._links.values():
                link.abort(public_reason(error))
            raise
        finally:
            with self._lock:
                self._done.set()
            if listener:
                _stop_listening(listener, accepting)

    def _start(self, function: Callable[..., None], *arguments: object) -> threading.Thread:
        def guarded() -> None:
            try:
                function(*arguments)
            except (SecureModelError, OSError) as error:
                self._results.put(error)

        thread = threading.Thread(target=guarded, daemon=True, name=f"connect-{self.me}")
        thread.start()
        return thread

    def _absent(self, names: Sequence[str]) -> PeerError:
        who = ", ".join(f"{name!r} ({self.config.entry(name).address})" for name in names)
        waited = f"waited {max(self.config.timeouts.connect_s, 0 if self._links else self.idle_s):g} s"
        refused = list(dict.fromkeys(self.refused))
        if any("certificate" in reason or "TLS" in reason for reason in refused):
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

    def _deliver(self, name: str, link: Link) -> None:
        with self._lock:
            if not self._done.is_set():
                self._results.put((name, link))
                return
        link.abort(f"party {self.me!r} stopped connecting")

    # Dialing

    def _dial(self, peer: Entry) -> None:
        pause_s = _RETRY_S[0]
        context = None if self.plain else client_context(self.identity, peer)
        while not self._done.is_set() and time.monotonic() < self.deadline:
            try:
                link = self._dial_once(peer, context)
            except (OSError, PeerDied) as error:
                why = getattr(error, "strerror", None) or summary(error)
                self.refused = [*self.refused[-3:], f"dialing {peer.name!r}: {why}"]
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _RETRY_S[1])
            else:
                self._deliver(peer.name, link)
                return

    def _dial_once(self, peer: Entry, context: ssl.SSLContext | None) -> Link:
        self._check_local(peer)
        sock = socket.create_connection((peer.host, peer.port), timeout=self._handshake_s())
        try:
            if sock.getsockname() == sock.getpeername():  # loopback may connect a socket with itself
                raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens there yet")
            _tune(sock)
            stream = self._authenticate(sock, context, peer) if context else PlainStream(sock)
            link = Link(self.me, peer.name, stream, self.config.timeouts.receive_s)
            self._greet(link, {peer.name})
            return link
        except BaseException:
            sock.close()
            raise

    def _authenticate(self, sock: socket.socket, context: ssl.SSLContext, peer: Entry) -> TlsStream:
        stream = TlsStream(sock, context, server_side=False)
        try:
            peer_name(stream.handshake(self._handshake_s()), [peer])
            return stream
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

    # Accepting

    def _listen(self, accept: Sequence[str]) -> socket.socket:
        self._check_local(self.entry)
        host, port = self.config.listen or (self.entry.host, self.entry.port)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            return socket.create_server((host, port), family=family, backlog=_MAX_STRANGERS)
        except OSError as error:
            raise ConfigError(
                explain(
                    f"party {self.me!r} cannot listen on {host}:{port}",
                    where=f"waiting for {', '.join(accept)}",
                    why=error.strerror or str(error),
                    fix="stop the other program on that port, or set listen = \"...\" under [me]",
                )
            ) from None

    def _accept(self, listener: socket.socket, peers: Sequence[Entry]) -> None:
        context = None if self.plain else server_context(self.identity, peers)
        slots = threading.Semaphore(_MAX_STRANGERS)
        listener.settimeout(0.1)
        while not self._done.is_set():
            try:
                sock, address = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return  # the listener was closed because the meeting is over
            if not slots.acquire(blocking=False):
                sock.close()
                continue
            self._start(self._welcome, sock, f"{address[0]}:{address[1]}", context, peers, slots)

    def _welcome(
        self,
        sock: socket.socket,
        origin: str,
        context: ssl.SSLContext | None,
        peers: Sequence[Entry],
        slots: threading.Semaphore,
    ) -> None:
        """Authenticate one connection. An unknown one is only noted; a known party's error is raised."""
        known = ""
        try:
            _tune(sock)
            stream = TlsStream(sock, context, server_side=True) if context else PlainStream(sock)
            if isinstance(stream, TlsStream):
                known = peer_name(stream.handshake(self._handshake_s()), peers)
            link = Link(self.me, known or "unknown", stream, self.config.timeouts.receive_s)
            link.peer = self._greet(link, {known} if known else {entry.name for entry in peers})
            self._deliver(link.peer, link)
        except (OSError, PeerError) as error:
            _turn_away(sock)
            if known and not isinstance(error, (OSError, PeerDied)):
                raise
            why = f"TLS: {_tls_reason(error)}" if isinstance(error, ssl.SSLError) else summary(error)
            self.refused = [*self.refused[-3:], f"connection from {origin} refused: {why}"]
        finally:
            slots.release()

    # The first message

    def _greet(self, link: Link, allowed: set[str]) -> str:
        """Exchange HELLO. Returns the peer's name, which is one of `allowed`. Raises PeerError."""
        digest = self.config.roster_digest()
        ours = _HELLO_LAYOUT.pack(PROTOCOL_VERSION, digest, self.nonce) + self.me.encode()
        try:
            link.send(_HELLO, [ours], timeout_s=self._handshake_s())
            hello = link.receive(_HELLO, max_bytes=_MAX_HELLO_BYTES, timeout_s=self._handshake_s())
        except PeerDied as error:
            if isinstance(error.__cause__, ssl.SSLError):
                raise self._rejected(link.peer, error.__cause__) from error
            raise
        try:
            return self._check_hello(link.peer, hello.numpy().tobytes(), digest, allowed)
        except PeerError as error:
            link.abort(public_reason(error))
            raise

    def _check_hello(self, peer: str, hello: bytes, digest: bytes, allowed: set[str]) -> str:
        if len(hello) < _HELLO_LAYOUT.size:
            raise BadFrame(peer, explain(f"the first message of {peer!r} is cut short", fix="use the same version"))
        version, their_digest, nonce = _HELLO_LAYOUT.unpack_from(hello)
        if version != PROTOCOL_VERSION:
            why = f"it speaks protocol version {version}, we speak {PROTOCOL_VERSION}"
            raise Mismatch(peer, explain(f"party {peer!r} runs another version", why=why, fix="install the same version"))
        name = hello[_HELLO_LAYOUT.size :].decode("ascii", errors="replace")
        if name not in allowed:
            raise IdentityError(
                peer,
                explain(
                    f"party {peer!r} says that it is {name[:64]!r}",
                    where="first message of the link",
                    why=f"expected {' or '.join(sorted(allowed))}: the name its certificate is pinned for",
                    fix="start each party with its own identity and name",
                ),
            )
        if their_digest != digest:
            raise Mismatch(
                name,
                explain(
                    f"party {name!r} has another list of parties",
                    where="first message of the link",
                    why="the names or certificates in its party file are not those in ours",
                    fix="give all parties the same [parties] and [dealer] entries",
                ),
            )
        with self._lock:
            if self.nonces.setdefault(name, nonce) != nonce:
                raise IdentityError(name, explain(f"party {name!r} connected twice", fix="start each party once"))
        return name

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
        return max(min(_HANDSHAKE_S, self.deadline - time.monotonic()), 0.01)

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


def _stop_listening(listener: socket.socket, accepting: threading.Thread | None) -> None:
    """Free the address: it stays taken for as long as another thread waits on the socket."""
    try:
        listener.shutdown(socket.SHUT_RDWR)  # wakes that thread at once, where the system allows it
    except OSError:
        pass
    if accepting:
        accepting.join(1.0)
    listener.close()


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _tls_reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not the pinned one ({error.verify_message})"
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else type(error).__name__


def _turn_away(sock: socket.socket) -> None:
    """Close a refused connection, leaving the other end time to read why (a TLS alert or our ABORT)."""
    try:
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(0.2)
        for _ in range(16):
            if not sock.recv(4096):
                break
    except (OSError, ValueError):
        pass
    finally:
        sock.close()
