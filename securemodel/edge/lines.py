"""Connections to one party: kept alive, checked before anything is sent, and never waited for beyond a time limit."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from urllib.parse import urlsplit

from securemodel.edge.errors import PartyDown, ServiceError
from securemodel.edge.service_file import Party

_MAX_ANSWER_BYTES = 64 << 20
_PAUSES = (0.05, 0.3, 1.0)
"""Seconds before each further try on a connection that broke."""


class Line:
    """Connections to one party. Several threads may use it at a time, each then has a connection of its own."""

    def __init__(self, party: Party, *, insecure_plain: bool = False) -> None:
        parts = urlsplit(party.url)
        self.party, self._host, self._port = party, parts.hostname or "", parts.port
        self._prefix, self._tls = parts.path.rstrip("/"), parts.scheme == "https"
        self._context = _context(party) if self._tls else None
        if not self._tls and not insecure_plain and not _is_loopback(self._host):
            what = f"the address of {party.name} is without TLS, so anybody on the way could read shares"
            fix = "use an https address; for a test, insecure_plain=True allows this"
            raise ServiceError(what, where=party.url, fix=fix)
        self._idle: list[http.client.HTTPConnection] = []
        self._all: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def ask(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], end: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """(status, headers in lower case, body) of an answer, before `end` on the monotonic clock.

        A connection that breaks is tried again with the same bytes: the request's id says that it is the same request.
        PartyDown where that does not help.
        """
        pauses = iter(_PAUSES)
        while True:
            kept = self._take()
            connection = kept or self._new()
            try:
                answer = self._exchange(connection, method, self._prefix + path, body, headers, end)
            except ssl.SSLCertVerificationError as error:
                self._drop(connection)
                raise self._stranger(error.verify_message) from error
            except (OSError, http.client.HTTPException) as error:
                self._drop(connection)
                pause = 0.0 if kept else next(pauses, None)  # one that was kept may have been closed long ago
                if pause is None or time.monotonic() + pause >= end:
                    raise self._down(error, end) from error
                time.sleep(pause)
            except BaseException:
                self._drop(connection)
                raise
            else:
                self._keep(connection)
                return answer

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        end: float,
    ) -> tuple[int, Mapping[str, str], bytes]:
        stop = threading.Timer(_left(end), _cut, (connection,))  # also where single bytes come, each in time
        stop.daemon = True
        stop.start()
        try:
            if connection.sock is None:
                self._connect(connection, end)
            connection.sock.settimeout(_left(end))
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            cut_short = response.length is None and not response.chunked  # its end cannot be told from a break
            data = response.read(_MAX_ANSWER_BYTES + 1)
            if len(data) > _MAX_ANSWER_BYTES:
                raise http.client.HTTPException("the answer is too long")
            if cut_short or response.length not in (None, 0):
                raise TimeoutError if time.monotonic() >= end else http.client.IncompleteRead(b"")
            if response.will_close:
                connection.close()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, data
        finally:
            stop.cancel()

    def _connect(self, connection: http.client.HTTPConnection, end: float) -> None:
        """Opens a connection and looks who is there, before the first byte of a request."""
        sock = socket.create_connection((self._host, connection.port), _left(end))
        connection.sock = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context is None:
            return
        over = self._context.wrap_socket(sock, server_hostname=self._host, do_handshake_on_connect=False)
        connection.sock = over
        over.do_handshake()
        expected, shown = self.party.certificate, over.getpeercert(binary_form=True) or b""
        if expected is not None and sha256(shown).hexdigest() != expected:
            raise self._stranger("its certificate has another fingerprint than the service's file says")

    def _stranger(self, why: str) -> ServiceError:
        what = f"whoever answers at the address of {self.party.name} is not {self.party.name}"
        if self.party.certificate is None and self.party.ca is None:
            fix = "nothing was sent; where no authority vouches for it, name the SHA-256 of its certificate"
        else:
            fix = "nothing was sent; if its certificate was renewed, take a new service.json from somebody you trust"
        return ServiceError(what, where=self.party.url, why=why, fix=fix)

    def _down(self, error: Exception, end: float) -> PartyDown:
        late = isinstance(error, TimeoutError) or time.monotonic() + 0.01 >= end
        what = f"{self.party.name} did not answer in time" if late else f"{self.party.name} cannot be reached"
        why = "the time that the request was given is over" if late else str(error) or type(error).__name__
        fix = "allow more time with timeout=" if late else "ask whether its service is up, and try again"
        return PartyDown(self.party.name, what, where=self.party.url, why=why, fix=fix)

    def _new(self) -> http.client.HTTPConnection:
        connection = (
            http.client.HTTPSConnection(self._host, self._port, context=self._context)
            if self._tls
            else http.client.HTTPConnection(self._host, self._port)
        )
        with self._lock:
            self._all.add(connection)
        return connection

    def _take(self) -> http.client.HTTPConnection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        if connection.sock is None:
            self._drop(connection)
            return
        with self._lock:
            self._idle.append(connection)

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        connection.close()
        with self._lock:
            self._all.discard(connection)

    def close(self) -> None:
        """Ends all connections; a request that waits on one fails."""
        with self._lock:
            connections, self._idle = list(self._all), []
        for connection in connections:
            _cut(connection)


def _left(end: float) -> float:
    return max(end - time.monotonic(), 0.001)


def _cut(connection: http.client.HTTPConnection) -> None:
    """Ends a connection that another thread may wait on."""
    sock = connection.sock
    if sock is not None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _context(party: Party) -> ssl.SSLContext:
    """TLS as the service's file says a party is recognized; with its fingerprint alone, that is compared instead."""
    try:
        context = ssl.create_default_context(cadata=party.ca)
    except (ssl.SSLError, ValueError) as error:
        raise ServiceError(f"the authority of {party.name} is no certificate in PEM", why=str(error)) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if party.certificate is not None and party.ca is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
