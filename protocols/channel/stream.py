"""Bytes to and from a connected socket that never blocks: in the clear, or encrypted after a TLS handshake.

`PlainStream` and `RecordStream` have the same methods. `send` and `recv_into` raise BlockingIOError if nothing can be done
now; `recv_into` returns 0 at the end of the connection. Use a stream from one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from protocols.channel.records import SECRET_BYTES, RecordStream, has_ended

T = TypeVar("T")
_HEAD = struct.Struct(">BBBH")  # of a TLS record: what it is, version, length
_TLS_KINDS, _TLS_MAJOR, _TLS_RECORD_BYTES = range(20, 24), 3, (1 << 14) + 256


class PlainStream:
    """A TCP connection as it is."""

    unsent = 0  # what was sent is with the operating system
    pending = False

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.send = sock.send
        self.recv_into = sock.recv_into

    def flush(self) -> None:
        """Nothing is kept back."""

    def ended(self) -> bool:
        """Whether the other end has closed the connection and nothing of it is left to read."""
        return has_ended(self.socket)


class TlsHandshake:
    """A TLS 1.3 handshake over a connected socket; then the keys of a `RecordStream` are handed over inside.

    No byte is read from the socket that is behind a TLS record of the handshake or of the keys.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.socket, self._server_side = sock, server_side
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)

    def authenticate(self, timeout_s: float) -> bytes:
        """Authenticate both ends. Returns the peer's certificate (DER).

        A client knows what its peer says of it, but only `records` brings whether the server trusts its own certificate.
        Raises ssl.SSLError if the peer is not trusted or speaks something else, OSError if the connection ends.
        """
        self._until_done(self._tls.do_handshake, time.monotonic() + timeout_s)
        return self._tls.getpeercert(binary_form=True) or b""

    @property
    def spoken(self) -> str | None:
        """What both ends said that they speak inside; None where that is not the same."""
        return self._tls.selected_alpn_protocol()

    def records(self, timeout_s: float) -> RecordStream:
        """Swaps secrets with the peer, inside the TLS connection, and leaves that. Raises as `authenticate` does."""
        deadline = time.monotonic() + timeout_s
        ours, theirs = os.urandom(SECRET_BYTES), b""
        self._tls.write(ours)
        self._say(deadline)
        while len(theirs) < SECRET_BYTES:
            got = self._until_done(partial(self._tls.read, SECRET_BYTES - len(theirs)), deadline)
            if not got:
                raise ConnectionError(errno.ECONNRESET, "the connection ended before its keys were there")
            theirs += got
        if self._tls.pending():
            raise ConnectionError(errno.EPROTO, "more than its part of the keys came inside TLS")
        return RecordStream(self.socket, ours, theirs, server_side=self._server_side)

    def _until_done(self, step: Callable[[], T], deadline: float) -> T:
        while True:
            try:
                done = step()
            except ssl.SSLWantReadError:
                self._say(deadline)
                self._hear(deadline)
                continue
            except ssl.SSLError:
                with contextlib.suppress(OSError):  # the alert that tells the peer why
                    self._say(deadline)
                raise
            self._say(deadline)
            return done

    def _say(self, deadline: float) -> None:
        if self._outgoing.pending:
            self._wait_until(deadline)
            self.socket.sendall(self._outgoing.read())

    def _hear(self, deadline: float) -> None:
        """One TLS record; of what is none, the beginning, which tells OpenSSL what it is."""
        head = self._read(_HEAD.size, deadline)
        kind, major, _, length = _HEAD.unpack(head)
        self._incoming.write(head)
        if kind in _TLS_KINDS and major == _TLS_MAJOR and length <= _TLS_RECORD_BYTES:
            self._incoming.write(self._read(length, deadline))

    def _read(self, nbytes: int, deadline: float) -> bytes:
        data = b""
        while len(data) < nbytes:
            self._wait_until(deadline)
            got = self.socket.recv(nbytes - len(data))
            if not got:
                raise ConnectionError(errno.ECONNRESET, "the connection ended during the TLS handshake")
            data += got
        return data

    def _wait_until(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "the TLS handshake took too long")
        self.socket.settimeout(left)
