"""Bytes to and from a connected socket that never blocks, in the clear or over TLS.

Both streams have the same methods. `send` and `recv_into` raise BlockingIOError if nothing can be done now;
`recv_into` returns 0 at the end of the connection. Use a stream from one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import time

_BATCH_BYTES = 1 << 18  # one system call moves up to this many bytes of TLS records

_HANDSHAKE_BYTES = 1 << 14  # the same for connections that may be anybody's


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
        return _ended(self.socket)


class TlsStream:
    """A TLS connection that encrypts and decrypts many records for each system call."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.socket = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._scratch = memoryview(bytearray(_HANDSHAKE_BYTES))
        self._unsent = memoryview(b"")

    def handshake(self, timeout_s: float) -> bytes:
        """Authenticate both ends; from then on the socket does not block. Returns the peer's certificate (DER).

        Raises ssl.SSLError if the peer is not trusted or speaks something else, OSError if the connection ends.
        """
        deadline = time.monotonic() + timeout_s
        done = False
        while not done:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "the TLS handshake took too long")
            self.socket.settimeout(left)
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                with contextlib.suppress(OSError):  # the alert that tells the peer why
                    self.socket.sendall(self._outgoing.read())
                raise
            if self._outgoing.pending:
                self.socket.sendall(self._outgoing.read())
            if not done:
                got = self.socket.recv_into(self._scratch)
                if not got:
                    raise ConnectionError("the connection ended during the TLS handshake")
                self._incoming.write(self._scratch[:got])
        self.socket.setblocking(False)
        self._scratch = memoryview(bytearray(_BATCH_BYTES))
        return self._tls.getpeercert(binary_form=True) or b""

    @property
    def unsent(self) -> int:
        """How many encrypted bytes still wait for `flush`."""
        return len(self._unsent)

    @property
    def pending(self) -> bool:
        """Whether bytes were read that the operating system no longer knows of."""
        return bool(self._incoming.pending or self._tls.pending())

    def send(self, view: memoryview) -> int:
        """Encrypt what fits into one batch and send what can be sent; the rest stays `unsent`. Returns bytes taken."""
        self.flush()
        taken = 0
        while taken < len(view) and self._outgoing.pending < _BATCH_BYTES:
            taken += self._tls.write(view[taken:])
        self._unsent = memoryview(self._outgoing.read())
        try:
            self.flush()
        except BlockingIOError:
            pass
        return taken

    def ended(self) -> bool:
        """Whether the other end has closed the connection and nothing of it is left to read."""
        return not self.pending and _ended(self.socket)

    def flush(self) -> None:
        """Send encrypted bytes that wait. Raises BlockingIOError if some still do."""
        while self._unsent:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]

    def recv_into(self, view: memoryview) -> int:
        """Decrypt into a buffer. Returns the number of bytes, 0 at the end of the connection."""
        if not self.pending and not self._fill():
            return 0
        while True:
            try:
                return self._tls.read(len(view), view)  # type: ignore[return-value]  # with a buffer: how many bytes
            except ssl.SSLWantReadError:  # part of a record has come
                if not self._fill():
                    return 0

    def _fill(self) -> int:
        got = self.socket.recv_into(self._scratch)
        self._incoming.write(self._scratch[:got])
        return got


def _ended(sock: socket.socket) -> bool:
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
