"""Records of links: what comes out is what went in, and nothing that was changed, moved, left out or said again."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import struct
import sys
import threading
from itertools import count
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from protocols.channel import Label, Link, Purpose, records
from protocols.channel.records import RECORD_BYTES, RecordStream
from protocols.errors import PeerDied, ProtocolError

NO_RECORD = "no record of the other end"


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


def test_a_key_encrypts_no_more_blocks_than_it_says() -> None:
    assert records.RECORDS_OF_KEY * -(-RECORD_BYTES // 16) <= 1 << 32


def test_a_record_is_what_its_documentation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RECORDS_OF_KEY", 1)
    near, far = socket.socketpair()
    stream = RecordStream(near, b"c" * 32, b"s" * 32, server_side=False)
    expand = lambda secret, info: HKDFExpand(SHA256(), 32, info).derive(secret)
    secret = HKDF(SHA256(), 32, None, b"securemodel records, from the client").derive(b"c" * 32 + b"s" * 32)
    for number, said in enumerate((b"first", b"under the next key")):
        stream.send(memoryview(said))
        data = far.recv(1000)
        (length,) = struct.unpack("<I", data[:4])
        assert length == len(data) - 4 == len(said) + 16
        nonce = bytes(4) + number.to_bytes(8, "little")
        assert AESGCM(expand(secret, b"securemodel records, key")).decrypt(nonce, data[4:], data[:4]) == said
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
    with pytest.raises(OSError, match=NO_RECORD):
        for _ in parts:
            other.recv_into(room)
    for _ in parts:  # nothing that follows is delivered
        with pytest.raises(OSError, match=NO_RECORD):
            other.recv_into(room)


def test_what_one_end_said_is_nothing_it_hears(ends: tuple[RecordStream, RecordStream]) -> None:
    """Directions have keys of their own: a record that comes back is refused."""
    one, other = ends
    one.send(memoryview(b"hello"))
    other.socket.send(other.socket.recv(1000))
    with pytest.raises(OSError, match=NO_RECORD):
        one.recv_into(memoryview(bytearray(10)))


@pytest.mark.parametrize("renewed", [1, 2], ids=["next key", "same key"])
def test_a_record_said_again_at_the_same_place_of_a_later_key_is_refused(
    monkeypatch: pytest.MonkeyPatch, renewed: int
) -> None:
    monkeypatch.setattr(records, "RECORDS_OF_KEY", renewed)
    (near, on_the_way), (source, far), secrets = socket.socketpair(), socket.socketpair(), (b"c" * 32, b"s" * 32)
    one = RecordStream(near, *secrets, server_side=False)
    other = RecordStream(far, *secrets[::-1], server_side=True)
    parts = []
    for said in (b"one", b"two"):
        one.send(memoryview(said))
        parts.append(on_the_way.recv(1000))
    source.sendall(parts[0] + parts[1] + parts[renewed - 1])
    room = memoryview(bytearray(3))
    assert [bytes(room[: other.recv_into(room)]) for _ in parts] == [b"one", b"two"]
    with pytest.raises(OSError, match=NO_RECORD):
        other.recv_into(room)


@pytest.mark.parametrize(
    ("ours", "theirs", "server_side"),
    [(b"c", b"S", False), (b"C", b"s", False), (b"s", b"c", False), (b"s", b"c", True)],
    ids=["another server", "another client", "roles and secrets changed", "the other way"],
)
def test_records_of_another_connection_or_direction_are_refused(ours: bytes, theirs: bytes, server_side: bool) -> None:
    """One secret drawn twice, as by a generator that began anew, does not make two connections one: each has a part."""
    (near, on_the_way), (source, far) = socket.socketpair(), socket.socketpair()
    RecordStream(near, 32 * ours, 32 * theirs, server_side=server_side).send(memoryview(b"hello"))
    source.sendall(on_the_way.recv(1000))
    with pytest.raises(OSError, match=NO_RECORD):
        RecordStream(far, b"s" * 32, b"c" * 32, server_side=True).recv_into(memoryview(bytearray(10)))


def test_a_stream_cut_off_anywhere_is_no_end(ends: tuple[RecordStream, RecordStream]) -> None:
    """Between records, too: the network cannot say goodbye for a party."""
    label = Label(1, 2, Purpose.OPEN)
    (near, on_the_way), secrets = socket.socketpair(), (b"c" * 32, b"s" * 32)
    sender = Link("a", "b", RecordStream(near, *secrets, server_side=False), 5)
    sender.post(label, [b"12345678"])
    sender.flush()
    sender.post(label, [b"and more"])
    sender.flush()
    data = on_the_way.recv(1000)
    first = 4 + struct.unpack("<I", data[:4])[0]
    for size in range(len(data)):
        source, far = socket.socketpair()
        source.sendall(data[:size])
        source.close()
        link = Link("b", "a", RecordStream(far, *secrets[::-1], server_side=True), 5)
        if size >= first:
            assert link.receive(label, 8).numpy().tobytes() == b"12345678"
        with pytest.raises(PeerDied, match="'a' is gone") as caught:
            link.receive(label, 8)
        assert "without a goodbye" in str(caught.value)


# No key and number twice.


class Noted:
    """AES-GCM that remembers what it encrypts under which key and nonce."""

    def __init__(self, key: bytes) -> None:
        self._key, self._cipher = key, AESGCM(key)

    def encrypt_into(self, nonce: bytes, plain: memoryview, head: memoryview, room: memoryview) -> None:
        noted.append((self._key, nonce))
        self._cipher.encrypt_into(nonce, plain, head, room)


noted: list[tuple[bytes, bytes]] = []


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """Key and nonce of what is encrypted, in order."""
    noted.clear()
    monkeypatch.setattr(records, "AESGCM", Noted)
    monkeypatch.setattr(records, "RECORDS_OF_KEY", 2)
    return noted


def test_an_interrupt_anywhere_gives_no_number_twice(watched: list[tuple[bytes, bytes]]) -> None:
    """Whoever is interrupted still says why, under the same keys. `at`: the step of sending at which it happens."""
    for at in count():
        near, far = socket.socketpair()
        stream, steps = RecordStream(near, b"c" * 32, b"s" * 32, server_side=False), count()
        watched.clear()

        def interrupt(frame: Any, event: str, _: Any, at: int = at, steps: Any = steps) -> Any:
            if frame.f_code.co_filename != records.__file__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode" and next(steps) == at:
                raise KeyboardInterrupt
            return interrupt

        before = sys.gettrace()
        sys.settrace(interrupt)
        try:
            for said in (b"one", b"two", b"and two", b"under another key"):
                stream.send(memoryview(said))
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        for said in (b"interrupted", b"closed"):
            stream.send(memoryview(said))
        assert len(set(watched)) == len(watched) >= 2
        near.close(), far.close()
        if next(steps) <= at:  # it came to an end before
            break
    assert at > 200 and len(watched) == 6


def test_threads_that_use_one_direction_get_no_number_twice() -> None:
    direction, given = records._Direction(b"k" * 32), []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda: given.extend([direction._next()[1] for _ in range(20_000)]))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert len(set(given)) == len(given) == 80_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.parametrize("begun", [False, True], ids=["then sends", "while something waits"])
def test_a_fork_encrypts_nothing_and_ends_nothing(begun: bool) -> None:
    near, far = socket.socketpair()
    one = Link("a", "b", RecordStream(near, b"c" * 32, b"s" * 32, server_side=False), 5)
    other = Link("b", "a", RecordStream(far, b"s" * 32, b"c" * 32, server_side=True), 5)
    label = Label(1, 2, Purpose.OPEN)
    if begun:
        one.post(label, [b"of parent"])
    said, heard = os.pipe()
    if not os.fork():
        found = b"nothing was refused"
        try:
            one.flush()
            one.send(label, [b"of a fork"])
        except ProtocolError as error:
            found = str(error).encode()
            one.close()
        finally:
            os.write(heard, found)
            os._exit(0)
    os.close(heard)
    with os.fdopen(said, "rb") as told:
        assert b"in a fork of the process that made it" in told.read()
    os.wait()
    if not begun:
        one.post(label, [b"of parent"])
    one.flush()
    assert other.receive(label, 9).numpy().tobytes() == b"of parent"


def test_a_stream_in_a_fork_refuses_to_send(ends: tuple[RecordStream, RecordStream], monkeypatch) -> None:
    monkeypatch.setattr(records, "process", object())
    with pytest.raises(OSError, match="a fork of the one"):
        ends[0].send(memoryview(b"hello"))


def test_keys_of_records_stay_where_they_are(ends: tuple[RecordStream, RecordStream]) -> None:
    """Neither copied nor pickled, and in no text."""
    direction = ends[0]._sending
    for thing in (direction, ends[0]):
        for way in (pickle.dumps, copy.deepcopy):
            with pytest.raises(TypeError):
                way(thing)
    with pytest.raises(TypeError, match="must not be copied"):
        copy.copy(direction)
    ends[0].send(memoryview(b"hello"))
    for shown in (repr(direction), repr(ends[0]), str(vars(ends[0]))):
        assert direction._secret.hex() not in shown and repr(direction._secret) not in shown


def test_what_is_kept_of_a_key_that_was_renewed_leads_to_no_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RECORDS_OF_KEY", 1)
    expand = lambda secret, info: HKDFExpand(SHA256(), 32, info).derive(secret)
    chain = [b"k" * 32]
    for _ in range(3):
        chain.append(expand(chain[-1], b"securemodel records, next"))
    direction = records._Direction(chain[0])
    for number in range(3):
        direction._next()
        kept = [value for value in vars(direction).values() if isinstance(value, bytes)]
        assert kept == [chain[number + 1]]
