"""Records of AES-256-GCM in place of those of TLS, under keys that both ends handed each other over a TLS 1.3 connection.

A TLS record has at most 16 KiB, and Python's `ssl` copies each of them twice in each direction; these hold more, and are
decrypted where the message is wanted. A record, little-endian:

    length u32 | ciphertext of `length` - 16 bytes | tag, 16 bytes

The length is authenticated, too. The nonce of a record is its number within its direction (RFC 5116, section 3.2),
under whatever key, so that a record which is changed, replayed, left out or moved does not decrypt, and nothing behind
it is read any more. No number is given twice, whatever interrupts, threads or forks do. A key is used for
RECORDS_OF_KEY records and followed by the next one of a chain that leads to no earlier one (RFC 8446, section 7.2, has
the same): 2^32 blocks, where RFC 8446, section 5.5, allows 2^34.5. That a stream is cut off is seen by its user, whose
last message says that it is the last.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from itertools import count
from typing import cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

SECRET_BYTES = 32
_TAG_BYTES = 16
_HEAD = struct.Struct("<I")
RECORD_BYTES = (1 << 17) - _HEAD.size - _TAG_BYTES  # what is around it makes it 128 KiB
RECORDS_OF_KEY = 1 << 19
_NONCE = struct.Struct("<4xQ")
_ROOM_BYTES = 1 << 19  # one system call moves up to this many bytes of records

process = object()
"""Another one in each fork: connections, their keys and their numbers are those of the process that made them."""


def _forked() -> None:
    global process
    process = object()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class _Direction:
    """One direction: the number of its next record, and the key that goes with it."""

    def __init__(self, secret: bytes) -> None:
        self._numbers, self._until, self._secret = count(), 0, secret
        self._cipher: AESGCM

    def __reduce__(self) -> str:
        raise TypeError("a direction of records must not be copied: two of them would use the same nonces")

    def _renew(self) -> None:
        """The next key. What is kept to derive those that follow tells nothing of it."""
        self._cipher = AESGCM(_expand(self._secret, b"securemodel records, key"))
        self._secret = _expand(self._secret, b"securemodel records, next")
        self._until += RECORDS_OF_KEY

    def _next(self) -> tuple[AESGCM, bytes]:
        """The cipher and the nonce of one record. The nonce is never given again: a step of `count` is one."""
        number = next(self._numbers)
        if number >= self._until:
            self._renew()
        return self._cipher, _NONCE.pack(number)

    def encrypt(self, plain: memoryview, room: memoryview) -> int:
        """Writes one record into the front of `room`; how many bytes it has."""
        length = len(plain) + _TAG_BYTES
        _HEAD.pack_into(room, 0, length)
        end = _HEAD.size + length
        cipher, nonce = self._next()
        cipher.encrypt_into(nonce, plain, room[: _HEAD.size], room[_HEAD.size : end])
        return end

    def decrypt(self, head: memoryview, sealed: memoryview, room: memoryview) -> None:
        """Fills `room` with what a record says. Raises InvalidTag if it is not the next record of the other end."""
        cipher, nonce = self._next()
        cipher.decrypt_into(nonce, sealed, head, room)


class RecordStream:
    """A connection of such records, with the methods of `stream.PlainStream`.

    `ours`, `theirs`: SECRET_BYTES that each end drew, of which the keys of both directions follow, and which the ends gave
    each other where nobody else reads.
    """

    def __init__(self, sock: socket.socket, ours: bytes, theirs: bytes, *, server_side: bool) -> None:
        sock.setblocking(False)
        self.socket, self._process = sock, process
        first, second = (theirs, ours) if server_side else (ours, theirs)
        derive = lambda info: HKDF(SHA256(), SECRET_BYTES, None, info).derive(first + second)
        ways = [_Direction(derive(b"securemodel records, from the " + who)) for who in (b"client", b"server")]
        self._sending, self._receiving = reversed(ways) if server_side else ways
        self._out = memoryview(bytearray(_ROOM_BYTES))
        self._unsent = self._out[:0]
        self._in = memoryview(bytearray(_ROOM_BYTES + RECORD_BYTES))
        self._start = self._end = 0  # what of it waits
        self._plain = memoryview(b"")

    @property
    def unsent(self) -> int:
        """How many encrypted bytes still wait for `flush`."""
        return len(self._unsent)

    @property
    def pending(self) -> bool:
        """Whether bytes were read that the operating system no longer knows of."""
        return bool(self._plain) or self._start != self._end

    def send(self, view: memoryview) -> int:
        """Encrypt what fits into one batch and send what can be sent; the rest stays `unsent`. Returns bytes taken.

        Raises OSError in a fork of the process that made the stream, which has the same keys and numbers.
        """
        if process is not self._process:
            raise OSError(errno.EPERM, "this process is a fork of the one whose connection it is")
        if self._unsent:
            self.flush()
        taken = used = 0
        while taken < len(view) and used + _HEAD.size + RECORD_BYTES + _TAG_BYTES <= _ROOM_BYTES:
            plain = view[taken : taken + RECORD_BYTES]
            used += self._sending.encrypt(plain, self._out[used:])
            taken += len(plain)
        self._unsent = self._out[:used]
        try:
            self.flush()
        except BlockingIOError:
            pass
        return taken

    def flush(self) -> None:
        """Send encrypted bytes that wait. Raises BlockingIOError if some still do."""
        while self._unsent:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]

    def recv_into(self, view: memoryview) -> int:
        """Decrypt into a buffer. Returns the number of bytes, 0 at the end of the connection."""
        if self._plain:
            return self._copied(view)
        while True:
            waits = self._end - self._start
            length = cast(int, _HEAD.unpack_from(self._in, self._start)[0]) if waits >= _HEAD.size else 0
            if waits >= _HEAD.size and not _TAG_BYTES < length <= RECORD_BYTES + _TAG_BYTES:
                raise _damaged()  # and again: it stays the next one
            if length and waits >= _HEAD.size + length:
                break
            if not self._fill():
                return 0
        begin = self._start + _HEAD.size
        head, sealed = self._in[self._start : begin], self._in[begin : begin + length]
        size = length - _TAG_BYTES
        fits = size <= len(view)
        room = view[:size] if fits else memoryview(bytearray(size))
        try:
            self._receiving.decrypt(head, sealed, room)
        except InvalidTag:
            self._in[self._start : begin] = bytes(_HEAD.size)  # a length that no record has: nothing is read behind it
            raise _damaged() from None
        self._start = begin + length
        if fits:
            return size
        self._plain = room
        return self._copied(view)

    def ended(self) -> bool:
        """Whether the other end has closed the connection and nothing of it is left to read."""
        return not self.pending and has_ended(self.socket)

    def _copied(self, view: memoryview) -> int:
        size = min(len(view), len(self._plain))
        view[:size] = self._plain[:size]
        self._plain = self._plain[size:]
        return size

    def _fill(self) -> int:
        waits = self._end - self._start
        if not waits or self._start + _HEAD.size + RECORD_BYTES + _TAG_BYTES > len(self._in):
            self._in[:waits] = self._in[self._start : self._end]
            self._start, self._end = 0, waits
        got = self.socket.recv_into(self._in[self._end :])
        self._end += got
        return got


def has_ended(sock: socket.socket) -> bool:
    """Whether the other end of a socket has closed it, and nothing is left to read."""
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _expand(secret: bytes, info: bytes) -> bytes:
    return HKDFExpand(SHA256(), SECRET_BYTES, info).derive(secret)


def _damaged() -> OSError:
    return OSError(
        errno.EBADMSG, "what came is no record of the other end: it was changed, replayed or left out on the way"
    )
