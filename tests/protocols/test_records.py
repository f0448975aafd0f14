"""Records of links: what comes out is what went in, and nothing that was changed, moved, left out or said again."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from protocols.channel import records
from protocols.channel.records import RECORD_BYTES, RecordStream


@pytest.fixture
def ends() -> tuple[RecordStream, RecordStream]:
    """A client and a server."""
    near, far = socket.socketpair()
    ours, theirs = os.urandom(32), os.urandom(32)
    return RecordStream(near, ours, theirs, server_side=False), RecordStream(far, theirs, ours, server_side=True)


def swap(ends: tuple[RecordStream, RecordStream], said: bytes, pieces: list[int]) -> bytes:
    """What the second reads, in pieces of these sizes, of what the first sends."""
    (one, other), left, heard, turn = ends, memoryview(said), b"", 0
    while len(heard) < len(said):
        try:
            if left:
                left = left[one.send(left) :]
            else:
                one.flush()
        except BlockingIOError:
            pass
        room = bytearray(pieces[turn % len(pieces)])
        try:
            got = other.recv_into(memoryview(room))
        except BlockingIOError:
            continue
        assert 0 < got <= len(room)
        heard, turn = heard + room[:got], turn + 1
    assert not one.unsent and not other.pending
    return heard


@pytest.mark.parametrize("size", [1, RECORD_BYTES, RECORD_BYTES + 1, 9 * RECORD_BYTES - 5])
@pytest.mark.parametrize("pieces", [[1 << 20], [32, 5, RECORD_BYTES]], ids=["whole", "odd"])
def test_bytes_come_back_both_ways_and_over_changes_of_keys(
    ends: tuple[RecordStream, RecordStream], size: int, pieces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "RECORDS_OF_KEY", 2)
    said = os.urandom(size)
    assert swap(ends, said, pieces) == said
    assert swap(ends[::-1], said[::-1], pieces) == said[::-1]


def test_a_record_is_what_its_documentation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RECORDS_OF_KEY", 1)
    near, far = socket.socketpair()
    stream = RecordStream(near, b"c" * 32, b"s" * 32, server_side=False)
    expand = lambda secret, info: HKDFExpand(SHA256(), 32, info).derive(secret)
    secret = HKDF(SHA256(), 32, None, b"securemodel records, from the client").derive(b"c" * 32 + b"s" * 32)
    for said in (b"first", b"under the next key"):
        stream.send(memoryview(said))
        data = far.recv(1000)
        (length,) = struct.unpack("<I", data[:4])
        assert length == len(data) - 4 == len(said) + 16
        assert AESGCM(expand(secret, b"securemodel records, key")).decrypt(bytes(12), data[4:], data[:4]) == said
        secret = expand(secret, b"securemodel records, next")


def moved(parts: list[bytes]) -> list[bytes]:
    return [parts[1], parts[0], parts[2]]


def flipped(at: int):
    def change(parts: list[bytes]) -> list[bytes]:
        return [parts[0][:at] + bytes([parts[0][at] ^ 1]) + parts[0][at + 1 :], *parts[1:]]

    return change


@pytest.mark.parametrize(
    "attack",
    [
        moved,
        lambda p: p[1:],
        lambda p: [p[0], p[0]],
        flipped(0),
        flipped(3),
        flipped(4),
        flipped(-1),
        lambda p: [bytes(40)],
    ],
    ids=["moved", "left out", "said again", "length", "much too long", "text", "tag", "empty"],
)
def test_what_is_not_the_next_record_is_refused(attack) -> None:
    ours, theirs = os.urandom(32), os.urandom(32)
    (near, on_the_way), (source, far) = socket.socketpair(), socket.socketpair()
    one = RecordStream(near, ours, theirs, server_side=False)
    other = RecordStream(far, theirs, ours, server_side=True)
    parts = []
    for said in (b"one", b"two", b"six"):
        one.send(memoryview(said))
        parts.append(on_the_way.recv(1000))
    source.sendall(b"".join(attack(parts)))
    room = memoryview(bytearray(100))
    with pytest.raises(OSError, match="no record of the other end"):
        for _ in parts:
            other.recv_into(room)
    for _ in parts:  # nothing that follows is delivered
        with pytest.raises(OSError, match="no record of the other end"):
            other.recv_into(room)


def test_what_one_end_said_is_nothing_it_hears(ends: tuple[RecordStream, RecordStream]) -> None:
    """Directions have keys of their own: a record that comes back is refused."""
    one, other = ends
    one.send(memoryview(b"hello"))
    other.socket.send(other.socket.recv(1000))
    with pytest.raises(OSError, match="no record of the other end"):
        one.recv_into(memoryview(bytearray(10)))
