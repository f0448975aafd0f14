"""Peers that misbehave on the wire: each attack ends in the right error, naming the peer, within the time limit.

The victim is an ordinary channel or link. The attacker is a party with a valid identity that writes raw bytes after
a proper HELLO, or somebody without one who tries to be let in.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from protocols import identity as identity_module
from protocols.channel import Channel, Label, Link, Purpose, Reception, connect, dial
from protocols.channel import link as link_module
from protocols.channel.frame import PROTOCOL_VERSION, pack_header
from protocols.channel.hello import EVERY_LANE, HELLO, HELLO_LAYOUT
from protocols.channel.records import SECRET_BYTES, RecordStream
from protocols.channel.stream import TlsHandshake
from protocols.channel.testing import free_addresses, loopback_parties, run_together
from protocols.channel.tls import SPOKEN, client_context, server_context
from protocols.errors import (
    BadFrame,
    ConfigError,
    IdentityError,
    InputError,
    Mismatch,
    PeerAborted,
    PeerAbsent,
    PeerDied,
    PeerError,
    PeerStalled,
    ProtocolError,
)
from protocols.identity import Entry, Identity, PartiesConfig, Timeouts, create, fingerprint, plain_config

OPEN = Label(3, 7, Purpose.OPEN)
TIMEOUTS = Timeouts(connect_s=10, receive_s=0.5)
LIMIT_S = 60.0


@pytest.fixture(autouse=True)
def short_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_GOODBYE_S", 0.2)


@pytest.fixture(params=["plain", "tls"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Channel, Link]]:
    """Victim 'b', which accepted attacker 'a'."""
    if request.param == "plain":
        first, second = free_addresses(2)
        config, ids, plain = plain_config({"a": first, "b": second}, timeouts=TIMEOUTS), {}, True
    else:
        (config, ids), plain = loopback_parties(("a", "b"), tmp_path, timeouts=TIMEOUTS), False
    made = run_together(
        {
            "victim": lambda: connect("b", config, ids.get("b"), insecure_plain=plain),
            "attacker": lambda: dial("a", "b", config, ids.get("a"), insecure_plain=plain),
        }
    )
    yield made["victim"], made["attacker"]
    for end in made.values():
        end.abort("test over")


def write(attacker: Link, data: bytes) -> None:
    view, stream = memoryview(data), attacker._stream
    while view or stream.unsent:
        try:
            view = view[stream.send(view) :] if view else view[:0]
            stream.flush()
        except BlockingIOError:
            time.sleep(0.001)


def frame(payload: bytes, *, sequence: int = 1, label: Label = OPEN, length: int | None = None) -> bytes:
    """A frame as the attacker makes it; its HELLO was number 0."""
    return pack_header(sequence, label, len(payload) if length is None else length) + payload


def expect_error(kind: type[PeerError], party: str, action: Callable[[], object], *parts: str) -> PeerError:
    start = time.monotonic()
    with pytest.raises(kind) as caught:
        action()
    assert time.monotonic() - start < LIMIT_S
    assert type(caught.value) is kind and caught.value.party == party
    for part in (party, *parts):
        assert part in str(caught.value)
    return caught.value


def test_the_attacker_could_also_behave(pair: tuple[Channel, Link]) -> None:
    victim, attacker = pair
    write(attacker, frame(b"12345678") + frame(b"abc", sequence=2))
    assert victim.receive("a", OPEN, 8).numpy().tobytes() == b"12345678"
    assert victim.receive("a", OPEN, 3).numpy().tobytes() == b"abc"


BAD_FRAMES = {
    "too small": (frame(b"1234567"), ("too small", "8 bytes", "7")),
    "too large": (frame(b"123456789"), ("too large", "8 bytes", "9")),
    "absurdly large": (frame(b"12345678", length=2**63), ("too large", str(2**63))),
    "out of order": (frame(b"12345678", sequence=2), ("number 2, expected number 1", "reordered")),
    "replayed": (frame(b"12345678", sequence=0), ("number 0, expected number 1", "replayed")),
    "other node": (frame(b"12345678", label=Label(3, 8, Purpose.OPEN)), ("node 8", "node 7")),
    "other epoch": (frame(b"12345678", label=Label(4, 7, Purpose.OPEN)), ("epoch 4", "epoch 3")),
    "other purpose": (frame(b"12345678", label=Label(3, 7, Purpose.REVEAL)), ("REVEAL", "OPEN")),
    "unknown purpose": (frame(b"12345678", label=Label(3, 7, 77)), ("not a message of this protocol",)),
    "second hello": (frame(b"12345678", label=Label(0, 0, Purpose.HELLO)), ("HELLO", "OPEN")),
    "not a frame": (b"GET / HTTP/1.1\r\nHost: victim.example\r\n\r\n", ("not a message of this protocol",)),
}


@pytest.mark.parametrize("attack", BAD_FRAMES)
def test_bad_frames(pair: tuple[Channel, Link], attack: str) -> None:
    victim, attacker = pair
    data, parts = BAD_FRAMES[attack]
    write(attacker, data)
    expect_error(BadFrame, "a", lambda: victim.receive("a", OPEN, 8), *parts)
    with pytest.raises(PeerAborted) as told:  # and the attacker is told why
        attacker.receive(OPEN, 1)
    assert str(victim._closed).removeprefix("it was aborted: ") == told.value.reason


def test_a_frame_recorded_and_sent_again(pair: tuple[Channel, Link]) -> None:
    victim, attacker = pair
    write(attacker, 2 * frame(b"12345678"))
    victim.receive("a", OPEN, 8)
    expect_error(BadFrame, "a", lambda: victim.receive("a", OPEN, 8), "replayed")


def test_a_frame_cut_short_swallows_no_later_frame(pair: tuple[Channel, Link]) -> None:
    victim, attacker = pair
    write(attacker, frame(b"1234", length=8) + frame(b"12345678", sequence=2))
    victim.receive("a", OPEN, 8)  # takes 4 bytes of the next header, which is then noticed
    expect_error(BadFrame, "a", lambda: victim.receive("a", OPEN, 8), "cut short")


def test_no_memory_is_reserved_for_what_the_peer_claims(
    pair: tuple[Channel, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, attacker = pair
    reserved = []
    monkeypatch.setattr(link_module, "fresh", reserved.append)
    write(attacker, frame(b"", length=1 << 40))
    expect_error(BadFrame, "a", lambda: victim.receive("a", OPEN, max_bytes=1024), "too large")
    assert reserved == []


@pytest.mark.parametrize("sent", [0, 10, 32, 1000])
def test_dies_in_the_middle_of_a_message(pair: tuple[Channel, Link], sent: int) -> None:
    victim, attacker = pair
    write(attacker, frame(bytes(5000))[:sent])
    attacker._stream.socket.close()
    expect_error(PeerDied, "a", lambda: victim.receive("a", OPEN, 5000), "OPEN of node 7")


def test_resets_while_much_is_sent_to_it(pair: tuple[Channel, Link]) -> None:
    victim, attacker = pair

    def reset() -> None:
        time.sleep(0.1)
        attacker._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        attacker._stream.socket.close()

    threading.Thread(target=reset).start()
    expect_error(PeerDied, "a", lambda: victim.exchange(OPEN, {"a": [bytes(64 << 20)]}, {}))


def test_says_why_while_much_is_sent_to_it(pair: tuple[Channel, Link]) -> None:
    victim, attacker = pair
    threading.Timer(0.1, lambda: attacker.abort("changed my mind")).start()
    error = expect_error(PeerAborted, "a", lambda: victim.exchange(OPEN, {"a": [bytes(64 << 20)]}, {"a": 5}))
    assert error.reason == "changed my mind"


@pytest.mark.parametrize("sent", [0, 10, 32, 1000])
def test_stalls_in_the_middle_of_a_message(pair: tuple[Channel, Link], sent: int) -> None:
    victim, attacker = pair
    write(attacker, frame(bytes(5000))[:sent])
    expect_error(PeerStalled, "a", lambda: victim.receive("a", OPEN, 5000), "OPEN of node 7", "for 0.5 s")


def test_never_reads(pair: tuple[Channel, Link]) -> None:
    victim, _ = pair
    expect_error(PeerStalled, "a", lambda: victim.exchange(OPEN, {"a": [bytes(64 << 20)]}, {}), "sending", "bytes left")


def test_trickles(pair: tuple[Channel, Link]) -> None:
    victim, attacker = pair
    stop = threading.Event()

    def trickle() -> None:
        data = iter(frame(bytes(5000)))
        while not stop.wait(0.1):
            try:
                write(attacker, bytes([next(data)]))
            except OSError:
                return

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        expect_error(PeerStalled, "a", lambda: victim.receive("a", OPEN, 5000))
    finally:
        stop.set()
        thread.join()


def test_signs_of_life_without_end_are_an_end(pair: tuple[Channel, Link], monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading them would go on past every limit of time, for as long as they come fast enough."""
    victim, attacker = pair
    monkeypatch.setattr(link_module, "_MOST_BEATS", 100)
    alive = Label(0, 0, Purpose.ALIVE)
    write(attacker, b"".join(frame(b"", sequence=number, label=alive) for number in range(1, 100)))
    write(attacker, frame(b"12345678", sequence=100))
    assert victim.receive("a", OPEN, 8).numpy().tobytes() == b"12345678"
    write(attacker, b"".join(frame(b"", sequence=number, label=alive) for number in range(101, 300)))
    expect_error(BadFrame, "a", lambda: victim.receive("a", OPEN, 8), "signs of life alone")


def test_reasons_are_short_and_printable(pair: tuple[Channel, Link]) -> None:
    victim, attacker = pair
    reason = "\x1b[2Jgot you\n" + "x" * 5000
    write(attacker, frame(reason.encode(), label=Label(0, 0, Purpose.ABORT)))
    error = expect_error(PeerAborted, "a", lambda: victim.receive("a", OPEN, 5), "got you")
    assert error.reason.isprintable() and len(error.reason) <= 1024


def test_a_third_party_is_told(tmp_path: Path) -> None:
    """'a' attacks 'b' while 'c' waits for 'b' only: 'c' learns from 'b' what happened."""
    config, ids = loopback_parties(("a", "b", "c"), tmp_path, timeouts=Timeouts(3, 4))

    def attack() -> None:
        made = connect("a", config, ids["a"])
        write(made._links["b"], frame(b"x", label=Label(9, 9, Purpose.OPEN)))
        time.sleep(1)

    def exchange(me: str, peer: str) -> None:
        connect(me, config, ids[me]).exchange(OPEN, {}, {peer: 8})

    results = run_together({"a": attack, "b": lambda: exchange("b", "a"), "c": lambda: exchange("c", "b")})
    assert type(results["b"]) is BadFrame and results["b"].party == "a"
    assert type(results["c"]) is PeerAborted and results["c"].party == "b"
    assert "'a' sent the wrong message" in results["c"].reason


def test_an_abort_that_came_together_with_a_message_is_seen(tmp_path: Path) -> None:
    """'c' reads 'b's message and its ABORT at once, and then waits for 'a', which stays silent."""
    config, ids = loopback_parties(("a", "b", "c"), tmp_path, timeouts=TIMEOUTS)
    made = run_together(
        {
            "a": lambda: dial("a", "c", config, ids["a"]),
            "b": lambda: dial("b", "c", config, ids["b"]),
            "c": lambda: connect("c", config, ids["c"]),
        }
    )
    write(made["b"], frame(b"12345678") + frame(b"enough", sequence=2, label=Label(0, 0, Purpose.ABORT)))
    error = expect_error(PeerAborted, "b", lambda: made["c"].exchange(OPEN, {}, {"a": 8, "b": 8}))
    assert error.reason == "enough"


# Who is let in.


class Scene:
    """Two parties' configuration, and identities for whoever wants to be one of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config, self.ids = loopback_parties(("a", "b"), directory, timeouts=Timeouts(1.5, 0.5))
        self.stranger = create("a", directory / "stranger")

    def raw(self, address: Entry) -> socket.socket:
        for _ in range(100):
            try:
                return socket.create_connection((address.host, address.port), timeout=3)
            except ConnectionRefusedError:
                time.sleep(0.02)
        raise TimeoutError("the victim does not listen")

    def hello(self, name: str, digest: bytes | None = None, version: int = PROTOCOL_VERSION, lane: int = 0) -> bytes:
        digest = self.config.roster_digest() if digest is None else digest
        packed = HELLO_LAYOUT.pack(version, digest, os.urandom(32), lane, bytes(32))
        return frame(packed + name.encode(), sequence=0, label=HELLO)

    def tls(self, identity: Identity | None, **options: ssl.TLSVersion) -> ssl.SSLSocket:
        """Dial victim 'b' with an identity of choice (or none), trusting anybody."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols([SPOKEN])
        for option, value in options.items():
            setattr(context, option, value)
        if identity:
            context.load_cert_chain(identity.certificate_path, identity.key_path)
        return context.wrap_socket(self.raw(self.config.entry("b")))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def attack_listener(scene: Scene, attack: Callable[[], object]) -> tuple[BaseException, object]:
    """What victim 'b', which listens for 'a', says about an attack, and how the attack ended."""
    start = time.monotonic()
    results = run_together({"b": lambda: connect("b", scene.config, scene.ids["b"]), "attack": attack})
    assert time.monotonic() - start < LIMIT_S
    assert isinstance(results["b"], PeerError), results["b"]
    assert results["b"].party == "a"
    return results["b"], results["attack"]


def talk(sock: socket.socket, data: bytes) -> bytes:
    """Send, then read until the other end closes; an alert is an exception."""
    with sock:
        if isinstance(sock, ssl.SSLSocket):
            return talk_inside(sock, data)
        sock.sendall(data)
        received = b""
        while part := sock.recv(4096):
            received += part
        return received


def talk_inside(sock: ssl.SSLSocket, data: bytes) -> bytes:
    """The same in records, whose keys are swapped over a TLS connection."""
    ours, theirs = os.urandom(SECRET_BYTES), b""
    sock.sendall(ours)
    while len(theirs) < SECRET_BYTES:
        if not (part := sock.recv(SECRET_BYTES - len(theirs))):
            return b""
        theirs += part
    server_side, timeout_s = sock.server_side, sock.gettimeout()
    with socket.socket(fileno=sock.detach()) as plain:
        stream, received, room = RecordStream(plain, ours, theirs, server_side=server_side), b"", bytearray(4096)
        plain.settimeout(timeout_s)
        assert stream.send(memoryview(data)) == len(data) and not stream.unsent
        while got := stream.recv_into(memoryview(room)):
            received += room[:got]
        return received


def test_unpinned_client_certificate(scene: Scene) -> None:
    error, attack = attack_listener(scene, lambda: talk(scene.tls(scene.stranger), scene.hello("a")))
    assert type(error) is IdentityError and "certificate" in str(error) and "refused" in str(error)
    assert isinstance(attack, ssl.SSLError) and "unknown ca" in str(attack).lower().replace("_", " ")


def test_no_client_certificate(scene: Scene) -> None:
    error, attack = attack_listener(scene, lambda: talk(scene.tls(None), scene.hello("a")))
    assert type(error) is IdentityError and "certificate" in str(error)
    assert isinstance(attack, ssl.SSLError)


def test_a_certificate_that_a_pinned_one_has_signed_is_not_pinned(tmp_path: Path) -> None:
    """'a' is a certificate authority besides, and somebody shows what it signed for the name 'a'."""
    scene = Scene(tmp_path)
    key, known = Ed25519PrivateKey.generate(), datetime.now(timezone.utc)
    common = x509.NameAttribute(NameOID.COMMON_NAME, "a")
    names = [x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "other"), common]), x509.Name([common])]

    def signed(subject: Ed25519PrivateKey, serial: int, authority: bool) -> x509.Certificate:
        made = x509.CertificateBuilder(names[1], names[authority], subject.public_key(), serial, known, known)
        return made.add_extension(x509.BasicConstraints(authority, None), True).sign(key, None)

    authority, other = signed(key, 1, True), Ed25519PrivateKey.generate()
    pem = authority.public_bytes(Encoding.PEM).decode()
    entry = Entry("a", scene.config.entry("a").host, scene.config.entry("a").port, pem, fingerprint(authority))
    scene.config = PartiesConfig({**scene.config.parties, "a": entry}, timeouts=scene.config.timeouts)
    paths = tmp_path / "other.crt", tmp_path / "other.key"
    paths[0].write_bytes(signed(other, 2, False).public_bytes(Encoding.PEM))
    paths[1].write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    error, _ = attack_listener(scene, lambda: talk(scene.tls(Identity("a", *paths, "")), scene.hello("a")))
    assert "none of the expected parties" in str(error) and isinstance(error, (IdentityError, PeerAbsent))


def test_no_session_of_tls_is_resumed(scene: Scene) -> None:
    """A ticket would let its holder in without the private key."""

    def attack() -> tuple[bool | None, bool]:
        context = client_context(scene.ids["a"], scene.config.entry("b"))
        first = context.wrap_socket(scene.raw(scene.config.entry("b")))
        first.sendall(os.urandom(SECRET_BYTES))
        first.recv(SECRET_BYTES)
        old = first.session
        second = context.wrap_socket(scene.raw(scene.config.entry("b")), session=old)
        second.sendall(os.urandom(SECRET_BYTES))
        second.recv(SECRET_BYTES)
        return second.session_reused, bool(old and old.has_ticket)

    _, reused = attack_listener(scene, attack)
    assert reused == (False, False)


def test_no_keys_of_tls_are_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's environment has what is said recorded for others to read."""
    log = tmp_path / "keys.txt"
    monkeypatch.setenv("SSLKEYLOGFILE", str(log))
    config, ids = loopback_parties(("a", "b"), tmp_path, timeouts=TIMEOUTS)
    for context in (client_context(ids["a"], config.entry("b")), server_context(ids["b"], [config.entry("a")])):
        assert context.keylog_filename is None
    made = run_together({name: lambda name=name: connect(name, config, ids[name]) for name in ("a", "b")})
    for channel in made.values():
        assert isinstance(channel, Channel), channel
        channel.close()
    assert not log.exists()


@pytest.mark.parametrize("begins", ["16 01", "16 0b", "17 00", "00 00"], ids=["hello", "certificate", "data", "none"])
def test_little_is_held_of_what_a_stranger_says(scene: Scene, monkeypatch: pytest.MonkeyPatch, begins: str) -> None:
    """One announces a message of 16 MiB and sends it: most of it is not even looked at."""
    kind, message = bytes.fromhex(begins)
    body = bytes([message]) + b"\xff\xff\xff" + bytes((1 << 14) - 4)
    record, held = struct.pack(">BHH", kind, 0x0301, len(body)) + body, []
    read = TlsHandshake._read

    def noted(self: TlsHandshake, nbytes: int, deadline: float) -> bytes:
        held.append(nbytes)
        return read(self, nbytes, deadline)

    def attack() -> None:
        with scene.raw(scene.config.entry("b")) as sock, suppress(OSError):
            for _ in range(1024):
                sock.sendall(record)

    monkeypatch.setattr(TlsHandshake, "_read", noted)
    error, _ = attack_listener(scene, attack)
    assert type(error) is IdentityError and "TLS" in str(error)
    assert 0 < sum(held) < 256 << 10


# What is said between the TLS handshake and the first record.


def swap(sock: ssl.SSLSocket, ours: bytes = b"") -> bytes:
    """Hands a part of the keys over, as a party does; the other end's part."""
    sock.sendall(ours or os.urandom(SECRET_BYTES))
    theirs = b""
    while len(theirs) < SECRET_BYTES and (part := sock.recv(SECRET_BYTES - len(theirs))):
        theirs += part
    return theirs


def test_more_than_a_part_of_the_keys_is_refused(scene: Scene) -> None:
    """Nothing that came before the records is taken for what came in them."""
    sent = os.urandom(SECRET_BYTES) + scene.hello("a")
    error, _ = attack_listener(scene, lambda: swap(scene.tls(scene.ids["a"]), sent))
    assert type(error) is PeerAbsent and "more than its part of the keys" in str(error)


def test_another_service_of_the_right_party_is_refused(scene: Scene) -> None:
    """What 'a' dials is led to another port of 'b', where the same certificate is shown and something else spoken."""
    address, heard = scene.config.entry("b"), []

    def serve() -> None:
        context = server_context(scene.ids["b"], scene.config.parties.values())
        with socket.create_server((address.host, address.port)) as listener:
            sock, _ = listener.accept()
            with context.wrap_socket(sock, server_side=True) as inside, suppress(OSError):
                inside.sendall(struct.pack("<I", 200) + bytes(200))
                while part := inside.recv(4096):
                    heard.append(part)
            time.sleep(2)  # the next attempt is not refused, and nobody speaks with it

    results = run_together({"a": lambda: connect("a", scene.config, scene.ids["a"]), "attack": serve})
    assert type(results["a"]) is PeerAbsent and "more than its part of the keys" in str(results["a"])
    assert len(b"".join(heard)) == SECRET_BYTES  # nothing but a part of keys that nobody will use


def test_who_ends_tls_before_its_part_of_the_keys_is_refused(scene: Scene) -> None:
    def attack() -> None:
        sock = scene.tls(scene.ids["a"])
        sock.sendall(bytes(SECRET_BYTES - 1))
        with suppress(OSError):
            sock.unwrap()

    error, _ = attack_listener(scene, attack)
    assert type(error) is PeerAbsent and "ended before its keys" in str(error)


def test_a_part_of_the_keys_that_drips_ends_in_time(scene: Scene) -> None:
    def attack() -> int:
        said = 0
        with scene.tls(scene.ids["a"]) as sock, suppress(OSError):
            for said in range(SECRET_BYTES - 1):
                sock.sendall(b"x")
                time.sleep(0.2)
        return said

    error, said = attack_listener(scene, attack)
    assert type(error) is PeerAbsent and isinstance(said, int) and said < SECRET_BYTES - 2  # nobody listens any more


def test_who_goes_on_inside_tls_is_refused(scene: Scene) -> None:
    """There is no way back to what earlier versions spoke, and none past the records."""

    def attack() -> None:
        with scene.tls(scene.ids["a"]) as sock, suppress(OSError):
            swap(sock)
            sock.sendall(scene.hello("a"))
            while sock.recv(4096):
                pass

    error, _ = attack_listener(scene, attack)
    assert type(error) is PeerAbsent and "no record of the other end" in str(error)


def test_who_goes_on_in_the_clear_is_refused(scene: Scene) -> None:
    def attack() -> bytes:
        sock = scene.tls(scene.ids["a"])
        swap(sock)
        with socket.socket(fileno=sock.detach()) as plain:
            plain.settimeout(3)
            plain.sendall(scene.hello("a"))
            received = b""
            with suppress(OSError):
                while part := plain.recv(4096):
                    received += part
            return received

    error, heard = attack_listener(scene, attack)
    assert type(error) is PeerAbsent and "no record of the other end" in str(error)
    assert isinstance(heard, bytes) and b"SMF1" not in heard  # and our own HELLO did not go out in the clear


def test_records_of_one_connection_are_nothing_in_another(scene: Scene) -> None:
    """The first record of 'a', recorded and sent over another connection of 'a' with the same part of its own."""
    ours, said = os.urandom(SECRET_BYTES), []

    def once(data: bytes | None) -> None:
        sock = scene.tls(scene.ids["a"])
        theirs = swap(sock, ours)
        near, far = socket.socketpair()
        RecordStream(near, ours, theirs, server_side=False).send(memoryview(scene.hello("a")))
        said.append(far.recv(4096))
        with socket.socket(fileno=sock.detach()) as plain, suppress(OSError):
            plain.settimeout(3)
            plain.sendall(data or said[0][:-1])  # the first is cut short, so that nothing is heard of it
            if data:
                while plain.recv(4096):
                    pass

    def attack() -> None:
        once(None)
        once(said[0])

    error, _ = attack_listener(scene, attack)
    assert type(error) is PeerAbsent and "no record of the other end" in str(error)


def test_who_does_not_say_what_it_speaks_is_of_another_version(scene: Scene) -> None:
    """As before there was a word for it: without one there is no older way to fall back to."""

    def attack() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(scene.ids["a"].certificate_path, scene.ids["a"].key_path)
        talk(context.wrap_socket(scene.raw(scene.config.entry("b"))), scene.hello("a"))

    error, _ = attack_listener(scene, attack)
    assert type(error) is Mismatch and "another version" in str(error)


def test_a_stranger_does_not_keep_the_right_party_out(scene: Scene) -> None:
    def attack_then_behave() -> Channel:
        with pytest.raises(ssl.SSLError):
            talk(scene.tls(scene.stranger), scene.hello("a"))
        return connect("a", scene.config, scene.ids["a"])

    made = run_together({"b": lambda: connect("b", scene.config, scene.ids["b"]), "a": attack_then_behave})
    made["a"].send("b", OPEN, [b"hi"])
    assert made["b"].receive("a", OPEN, 2).numpy().tobytes() == b"hi"
    for channel in made.values():
        channel.close()


def test_noise_on_a_plain_port_does_not_keep_the_right_party_out(scene: Scene) -> None:
    def noise_then_behave() -> Channel:
        talk(scene.raw(scene.config.entry("b")), b"GET / HTTP/1.1\r\nHost: victim.example\r\n\r\n")
        return connect("a", scene.config, insecure_plain=True)

    made = run_together({"b": lambda: connect("b", scene.config, insecure_plain=True), "a": noise_then_behave})
    assert isinstance(made["b"], Channel) and isinstance(made["a"], Channel), made
    for channel in made.values():
        channel.close()


def test_connections_that_say_nothing_do_not_keep_the_right_party_out(scene: Scene) -> None:
    def idle_then_behave() -> Channel:
        idle = [scene.raw(scene.config.entry("b")) for _ in range(5)]
        made = connect("a", scene.config, scene.ids["a"])
        for sock in idle:
            sock.close()
        return made

    made = run_together({"b": lambda: connect("b", scene.config, scene.ids["b"]), "a": idle_then_behave})
    assert isinstance(made["b"], Channel) and isinstance(made["a"], Channel)
    for channel in made.values():
        channel.close()


def test_right_certificate_but_another_partys_name(tmp_path: Path) -> None:
    """Of three parties, 'b' dials 'c' with its own, pinned certificate and says that it is 'a'."""
    config, ids = loopback_parties(("a", "b", "c"), tmp_path, timeouts=TIMEOUTS)
    scene = Scene(tmp_path / "unused")
    scene.config = config

    def attack() -> None:
        sock = client_context(ids["b"], config.entry("c")).wrap_socket(scene.raw(config.entry("c")))
        talk(sock, scene.hello("a"))

    start = time.monotonic()
    results = run_together({"c": lambda: connect("c", config, ids["c"]), "attack": attack})
    assert time.monotonic() - start < LIMIT_S
    assert type(results["c"]) is IdentityError and results["c"].party == "b"
    assert "says that it is 'a'" in str(results["c"])


@pytest.mark.parametrize("days", [-40 * 365, 40 * 365], ids=["expired", "not yet valid"])
def test_a_pinned_certificate_is_right_whatever_the_clocks_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    class Clock(identity_module.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + timedelta(days=days)

    monkeypatch.setattr(identity_module, "datetime", Clock)
    config, ids = loopback_parties(("a", "b"), tmp_path, timeouts=Timeouts(5, 2))
    made = run_together({name: lambda name=name: connect(name, config, ids[name]) for name in ("a", "b")})
    for channel in made.values():
        assert isinstance(channel, Channel), channel
        channel.close()


def test_own_certificate_reflected(scene: Scene) -> None:
    """The victim's own pinned identity is not accepted as that of its peer."""
    error, _ = attack_listener(scene, lambda: talk(scene.tls(scene.ids["b"]), scene.hello("a")))
    assert type(error) is IdentityError and "certificate" in str(error)


def test_tls_1_2_is_refused(scene: Scene) -> None:
    old = {"minimum_version": ssl.TLSVersion.TLSv1_2, "maximum_version": ssl.TLSVersion.TLSv1_2}
    error, attack = attack_listener(scene, lambda: talk(scene.tls(scene.ids["a"], **old), scene.hello("a")))
    assert type(error) is IdentityError and "TLS" in str(error) and "unsupported protocol" in str(error)
    assert isinstance(attack, ssl.SSLError)


def test_plain_client_on_a_tls_port(scene: Scene) -> None:
    error, attack = attack_listener(scene, lambda: talk(scene.raw(scene.config.entry("b")), scene.hello("a")))
    assert type(error) is IdentityError and "TLS" in str(error)
    assert isinstance(attack, (bytes, OSError)) and b"SMF1" not in (attack if isinstance(attack, bytes) else b"")


def test_plain_party_and_tls_party(scene: Scene) -> None:
    results = run_together(
        {
            "a": lambda: connect("a", scene.config, insecure_plain=True),
            "b": lambda: connect("b", scene.config, scene.ids["b"]),
        }
    )
    assert isinstance(results["a"], (BadFrame, PeerAbsent)) and results["a"].party == "b"
    assert isinstance(results["b"], IdentityError) and results["b"].party == "a"


@pytest.mark.parametrize(
    ("change", "kind", "part"),
    [
        ({"version": PROTOCOL_VERSION + 1}, Mismatch, "another version"),
        ({"digest": bytes(32)}, Mismatch, "another list of parties"),
        ({"lane": 1}, Mismatch, "'a' is lane 1, and this is lane 0"),
        ({"lane": EVERY_LANE}, Mismatch, "and this is lane 0"),
        ({"name": "c"}, IdentityError, "says that it is 'c'"),
        ({"name": "a" * 40}, IdentityError, "says that it is"),
    ],
)
def test_authenticated_party_with_a_wrong_hello(
    scene: Scene, change: dict[str, object], kind: type[PeerError], part: str
) -> None:
    hello = scene.hello(**{"name": "a", **change})
    error, answer = attack_listener(scene, lambda: talk(scene.tls(scene.ids["a"]), hello))
    assert type(error) is kind and part in str(error)
    assert part.encode() in answer  # the attacker, too, is told why


def test_authenticated_party_of_another_version(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is spoken inside TLS is compared before anything of it is read."""
    monkeypatch.setitem(globals(), "SPOKEN", "securemodel/3")
    error, _ = attack_listener(scene, lambda: talk(scene.tls(scene.ids["a"]), scene.hello("a")))
    assert type(error) is Mismatch and "another version" in str(error)


def test_authenticated_party_with_a_cut_hello(scene: Scene) -> None:
    error, _ = attack_listener(scene, lambda: talk(scene.tls(scene.ids["a"]), frame(b"x", sequence=0, label=HELLO)))
    assert type(error) is BadFrame and "cut short" in str(error)


def serve_raw(scene: Scene, context: ssl.SSLContext | None, data: bytes) -> None:
    """Attacker 'b' listens where 'a' dials, and answers the first connection."""
    address = scene.config.entry("b")
    with socket.create_server((address.host, address.port)) as listener:
        listener.settimeout(3)
        sock, _ = listener.accept()
        sock.settimeout(3)
        with sock:
            talk(context.wrap_socket(sock, server_side=True) if context else sock, data)


def attack_dialer(scene: Scene, context: ssl.SSLContext | None, data: bytes) -> BaseException:
    start = time.monotonic()
    results = run_together(
        {"a": lambda: connect("a", scene.config, scene.ids["a"]), "attack": lambda: serve_raw(scene, context, data)}
    )
    assert time.monotonic() - start < LIMIT_S
    return results["a"]


def test_unpinned_server_certificate(scene: Scene) -> None:
    error = attack_dialer(scene, server_context(scene.stranger, scene.config.parties.values()), scene.hello("b"))
    assert type(error) is IdentityError and error.party == "b" and "not the pinned one" in str(error)


def test_server_with_another_partys_certificate(scene: Scene) -> None:
    error = attack_dialer(scene, server_context(scene.ids["a"], scene.config.parties.values()), scene.hello("b"))
    assert type(error) is IdentityError and error.party == "b" and "not the pinned one" in str(error)


def test_right_server_with_a_wrong_name(scene: Scene) -> None:
    error = attack_dialer(scene, server_context(scene.ids["b"], scene.config.parties.values()), scene.hello("dealer"))
    assert type(error) is IdentityError and error.party == "b" and "'dealer'" in str(error)


def test_plain_server(scene: Scene) -> None:
    error = attack_dialer(scene, None, scene.hello("b"))
    assert type(error) is IdentityError and error.party == "b" and "could not be authenticated" in str(error)


def test_server_that_does_not_pin_us(scene: Scene) -> None:
    """'b' holds an older certificate of 'a': both sides learn that certificates are the problem."""
    old = create("a", scene.directory / "old")
    entries = dict(scene.config.parties)
    entries["a"] = Entry("a", entries["a"].host, entries["a"].port, old.certificate_path.read_text(), old.fingerprint)
    theirs = PartiesConfig(entries, timeouts=scene.config.timeouts)
    results = run_together(
        {"a": lambda: connect("a", scene.config, scene.ids["a"]), "b": lambda: connect("b", theirs, scene.ids["b"])}
    )
    assert type(results["a"]) is IdentityError and "does not accept our certificate" in str(results["a"])
    assert type(results["b"]) is IdentityError and "refused" in str(results["b"])


@pytest.mark.parametrize(("me", "peer"), [("a", "b"), ("b", "a")])
def test_absent_peer(scene: Scene, me: str, peer: str) -> None:
    error = expect_error(PeerAbsent, peer, lambda: connect(me, scene.config, scene.ids[me]), "1.5 s")
    assert scene.config.entry(peer).address in str(error)


def test_absent_dealer(tmp_path: Path) -> None:
    config, ids = loopback_parties(("a", "b"), tmp_path, dealer=True, timeouts=Timeouts(1, 1))
    expect_error(PeerAbsent, "dealer", lambda: dial("a", "dealer", config, ids["a"]))
    with closing(Reception("dealer", ("a", "b"), config, ids["dealer"], most=1)) as reception:
        expect_error(PeerAbsent, "a", lambda: reception.next(lambda gathering: "", 1.0), "'b'")


def test_connects_and_then_says_nothing(scene: Scene) -> None:
    def attack() -> None:
        sock = scene.tls(scene.ids["a"])
        time.sleep(2)
        sock.close()

    error, _ = attack_listener(scene, attack)
    assert isinstance(error, (PeerAbsent, PeerStalled))


def test_port_in_use(scene: Scene) -> None:
    address = scene.config.entry("b")
    with socket.create_server((address.host, address.port)), pytest.raises(ConfigError, match="cannot listen"):
        connect("b", scene.config, scene.ids["b"])


def test_a_changed_byte_on_the_way_is_noticed(scene: Scene) -> None:
    """Somebody between the parties flips one bit of an encrypted record."""
    target = scene.config.entry("b")
    (proxy_address,) = free_addresses(1)
    host, port = proxy_address.split(":")
    entries = dict(scene.config.parties)
    entries["b"] = Entry("b", host, int(port), target.certificate_pem, target.fingerprint)
    flip = threading.Event()

    def forward(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                if flip.is_set():
                    data = data[:-1] + bytes([data[-1] ^ 1])
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def proxy() -> None:
        with socket.create_server((host, int(port))) as listener:
            near, _ = listener.accept()
        far = scene.raw(target)
        for pair in ((near, far), (far, near)):
            threading.Thread(target=forward, args=pair, daemon=True).start()

    theirs = PartiesConfig(entries, timeouts=scene.config.timeouts)
    made = run_together(
        {
            "proxy": proxy,
            "a": lambda: connect("a", theirs, scene.ids["a"]),
            "b": lambda: connect("b", scene.config, scene.ids["b"]),
        }
    )
    flip.set()
    made["a"].send("b", OPEN, [b"12345678"])
    expect_error(PeerDied, "a", lambda: made["b"].receive("a", OPEN, 8), "broke")
    with pytest.raises(PeerError):
        made["a"].receive("b", OPEN, 8)


def test_misuse_of_a_link_is_refused(pair: tuple[Channel, Link]) -> None:
    _, attacker = pair
    with pytest.raises(InputError, match="cannot expect"):
        attacker.receive(OPEN, -1)
    with pytest.raises(ProtocolError, match="no message"):
        attacker.take()
    attacker.close()
    with pytest.raises(ProtocolError, match="closed"):
        attacker.send(OPEN, [b""])
    with pytest.raises(ProtocolError, match="closed"):
        attacker.receive(OPEN, 1)
