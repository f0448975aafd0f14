"""Connections of strangers: however many come and whatever they do, the right party gets in within `connect_s`.

The slow test says how often and how fast, for several kinds of load (`pytest -s -m slow` shows the figures).
"""

from __future__ import annotations

import errno
import selectors
import socket
import ssl
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from protocols.channel import arrive, connect, listen, meeting
from protocols.channel import link as link_module
from protocols.channel.listen import Listener, Room
from protocols.channel.testing import loopback_parties, run_together
from protocols.errors import ConfigError, PeerAbsent
from protocols.identity import Entry, Identity, PartiesConfig, Timeouts, create

CONNECT_S = 8.0


@pytest.fixture(autouse=True)
def short_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_GOODBYE_S", 0.2)


Loop = Callable[[Entry, threading.Event, Any], None]


def dialed(target: Entry, stop: threading.Event) -> socket.socket | None:
    while not stop.is_set():
        try:
            return socket.create_connection((target.host, target.port), timeout=1)
        except OSError:
            time.sleep(0.005)
    return None


def say_nothing(target: Entry, stop: threading.Event, _: Any) -> None:
    """Holds one place at all times."""
    while sock := dialed(target, stop):
        with sock:
            sock.settimeout(0.1)
            while not stop.is_set():
                try:
                    if not sock.recv(1):
                        break
                except TimeoutError:
                    pass
                except OSError:
                    break


def drip(target: Entry, stop: threading.Event, _: Any) -> None:
    """A ClientHello, byte by byte, again and again."""
    hello = bytes.fromhex("16030102000100") + bytes(500)
    while sock := dialed(target, stop):
        with sock:
            for byte in hello:
                if stop.wait(0.1):
                    return
                try:
                    sock.sendall(bytes([byte]))
                except OSError:
                    break


def at_a_rate(per_s: int, finish: Callable[[socket.socket, Any], None]) -> Loop:
    """So many connections a second; each is left open until the end."""

    def loop(target: Entry, stop: threading.Event, context: Any) -> None:
        held: list[socket.socket] = []
        while not stop.wait(1 / per_s):
            sock = dialed(target, stop)
            if sock:
                try:
                    finish(sock, context)
                except OSError:
                    sock.close()
                held.append(sock)
        for sock in held:
            sock.close()

    return loop


def noise(sock: socket.socket, _: Any) -> None:
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")


def unpinned(sock: socket.socket, context: ssl.SSLContext) -> None:
    """A whole TLS handshake, with an identity that nobody knows."""
    sock.settimeout(0.2)
    context.wrap_socket(sock).close()


LOADS: dict[str, tuple[int, Loop]] = {
    "nobody": (0, say_nothing),
    "64 that say nothing": (64, say_nothing),
    "64 that drip a ClientHello": (64, drip),
    "23 a second that say nothing": (1, at_a_rate(23, lambda sock, _: None)),
    "23 a second with noise": (1, at_a_rate(23, noise)),
    "200 a second that say nothing": (1, at_a_rate(200, lambda sock, _: None)),
    "200 a second with noise": (1, at_a_rate(200, noise)),
    "50 a second with unknown certificates": (1, at_a_rate(50, unpinned)),
}


@contextmanager
def hammered(load: str, target: Entry, stranger: Identity) -> Iterator[None]:
    """Strangers at work on an address."""
    count, loop = LOADS[load]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(stranger.certificate_path, stranger.key_path)
    stop = threading.Event()
    threads = [threading.Thread(target=loop, args=(target, stop, context), daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(5)


class Scene:
    def __init__(self, folder: Path, connect_s: float = CONNECT_S) -> None:
        self.config, self.ids = loopback_parties(("a", "b"), folder, timeouts=Timeouts(connect_s, 5.0))
        self.stranger = create("stranger", folder / "stranger")

    def meet(self, late_s: float) -> float:
        """'b' listens, 'a' dials somewhat later, when strangers fill the room. Returns a's time to connect."""
        took: list[float] = []

        def dial() -> Any:
            time.sleep(late_s)
            start = time.monotonic()
            made = connect("a", self.config, self.ids["a"])
            took.append(time.monotonic() - start)
            return made

        made = run_together({"b": lambda: connect("b", self.config, self.ids["b"]), "a": dial})
        for name, channel in made.items():
            assert not isinstance(channel, BaseException), f"{name}: {channel}"
        for channel in made.values():
            channel.close()
        return took[0]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize("load", ["64 that say nothing", "64 that drip a ClientHello", "200 a second with noise"])
def test_strangers_do_not_keep_the_right_party_out(scene: Scene, load: str) -> None:
    with hammered(load, scene.config.entry("b"), scene.stranger):
        scene.meet(late_s=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("load", LOADS)
def test_how_many_get_in_while_strangers_hammer(scene: Scene, load: str) -> None:
    with hammered(load, scene.config.entry("b"), scene.stranger):
        times = [scene.meet(late_s=0.7) for _ in range(20)]
    print(f"\n{load}: {len(times)} of 20 in, median {statistics.median(times):.3f} s, longest {max(times):.3f} s")


def test_a_dripped_handshake_ends_in_time(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes well within any limit on silence; the limit is on the whole handshake."""
    monkeypatch.setattr(listen, "HANDSHAKE_S", 0.5)
    listener = Listener("127.0.0.1", 0)
    port = int(listener.addresses.rpartition(":")[2])
    held = Entry("x", "127.0.0.1", port)
    turned_out = threading.Event()

    def welcome(guest: listen.Guest) -> None:
        with guest.sock:
            while guest.sock.recv(1):
                pass
        turned_out.set()

    listener.start(welcome)
    stop = threading.Event()
    thread = threading.Thread(target=drip, args=(held, stop, None), daemon=True)
    thread.start()
    try:
        assert turned_out.wait(20)
    finally:
        stop.set()
        thread.join(5)
        listener.close()


def test_strangers_have_no_more_threads_than_there_are_places(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "_PLACES", 5)
    monkeypatch.setattr(listen, "_PLACES_OF_ORIGIN", 5)
    before = set(threading.enumerate())

    def welcoming() -> int:
        return sum(thread.name == "welcome" for thread in set(threading.enumerate()) - before)

    def come_with_many() -> Any:
        never = threading.Event()
        idle = [dialed(scene.config.entry("b"), never) for _ in range(60)]
        deadline = time.monotonic() + 5
        while welcoming() != 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(idle) == 60 and welcoming() == 5
        made = connect("a", scene.config, scene.ids["a"])
        for sock in idle:
            if sock:
                sock.close()
        return made

    made = run_together({"b": lambda: connect("b", scene.config, scene.ids["b"]), "a": come_with_many})
    for channel in made.values():
        assert not isinstance(channel, BaseException), channel
        channel.close()


class FakeSocket:
    def __init__(self) -> None:
        self.out = False

    def shutdown(self, how: int) -> None:
        self.out = True


def test_the_oldest_of_an_origin_makes_room_for_its_newest() -> None:
    room, many = Room(), [FakeSocket() for _ in range(listen._PLACES_OF_ORIGIN + 3)]
    first = FakeSocket()
    room.enter(first, ("192.0.2.1", 1))
    for sock in many:
        room.enter(sock, ("198.51.100.7", 2))
    assert [sock.out for sock in many] == [True] * 3 + [False] * listen._PLACES_OF_ORIGIN
    assert not first.out


def test_the_oldest_of_all_makes_room_where_many_origins_come() -> None:
    room, made = Room(), [FakeSocket() for _ in range(listen._PLACES + 2)]
    for number, sock in enumerate(made):
        room.enter(sock, (f"10.0.{number // 256}.{number % 256}", 1))
    assert [sock.out for sock in made] == [True] * 2 + [False] * listen._PLACES


def test_one_network_of_ipv6_is_one_origin() -> None:
    same = {listen._origin(f"2001:db8:0:7::{number:x}") for number in range(1, 9)}
    assert len(same) == 1 and listen._origin("2001:db8:0:8::1") not in same
    assert listen._origin("::ffff:192.0.2.1") == listen._origin("192.0.2.1")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ECONNABORTED, errno.ENOBUFS, errno.EPROTO])
def test_a_failed_accept_does_not_end_accepting(scene: Scene, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    accept, failures = socket.socket.accept, [number] * 4

    def failing(self: socket.socket) -> Any:
        if failures:
            raise OSError(failures.pop(), "injected")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", failing)
    scene.meet(late_s=0.1)
    assert not failures


# All addresses of a name.


def resolved(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]]) -> None:
    """These names have these addresses."""
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *rest: Any, **options: Any) -> list:
        return [info for address in names.get(host, [host]) for info in real(address, port, *rest, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def placed(scene: Scene, host: str, listen_at: tuple[str, int] | None = None) -> None:
    """'b' is at a host of choice, with the port it has."""
    entry = scene.config.entry("b")
    moved = Entry("b", host, entry.port, entry.certificate_pem, entry.fingerprint)
    parties = {**scene.config.parties, "b": moved}
    listen_at = listen_at and (listen_at[0], entry.port)
    scene.config = PartiesConfig(parties, timeouts=scene.config.timeouts, listen=listen_at)


needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")


@needs_ipv6
def test_a_name_with_an_ipv6_address_only(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved(monkeypatch, {"clinic.example": ["::1"]})
    placed(scene, "clinic.example")
    scene.meet(late_s=0.1)


@needs_ipv6
@pytest.mark.parametrize("dials", ["127.0.0.1", "::1"])
def test_a_name_with_several_addresses_is_listened_on_at_all(scene: Scene, monkeypatch, dials: str) -> None:
    resolved(monkeypatch, {"here.example": ["127.0.0.1", "::1"]})
    placed(scene, dials, ("here.example", 0))
    scene.meet(late_s=0.1)


@needs_ipv6
@pytest.mark.parametrize("dials", ["127.0.0.1", "::1"])
def test_listening_on_all_addresses_means_both_kinds(scene: Scene, dials: str) -> None:
    placed(scene, dials, ("::", 0))
    scene.meet(late_s=0.1)


def test_an_address_of_a_name_that_does_not_answer_is_passed_over(scene: Scene, monkeypatch) -> None:
    """127.0.0.2 is of this host, and nobody listens there."""
    resolved(monkeypatch, {"clinic.example": ["127.0.0.2", "127.0.0.1"]})
    placed(scene, "clinic.example", ("127.0.0.1", 0))
    scene.meet(late_s=0.1)


def test_errors_say_where_one_listens(tmp_path: Path) -> None:
    scene = Scene(tmp_path, connect_s=0.3)
    placed(scene, "127.0.0.1", ("0.0.0.0", 0))
    with pytest.raises(PeerAbsent) as caught:
        connect("b", scene.config, scene.ids["b"])
    assert f"'b' listens on 0.0.0.0:{scene.config.entry('b').port}" in str(caught.value)


@pytest.mark.parametrize("host", ["unknown.invalid", "192.0.2.1"])
def test_a_place_that_is_not_here_asks_for_listen(scene: Scene, host: str) -> None:
    placed(scene, host)
    with pytest.raises(ConfigError, match=rf"(?s)cannot listen on {host}.*set listen = ") as caught:
        connect("b", scene.config, scene.ids["b"])
    assert "other program" not in str(caught.value)


# Parties that are there and not ready.


@pytest.mark.parametrize("early", ["a", "b"])
def test_a_party_that_compiles_longer_than_connect_s_is_waited_for(tmp_path: Path, early: str) -> None:
    scene = Scene(tmp_path, connect_s=0.6)

    def slow() -> Any:
        arrival = meeting_of(scene, early)
        time.sleep(2.5)
        return connect(early, scene.config, scene.ids[early], arrival=arrival)

    other = "b" if early == "a" else "a"
    made = run_together({early: slow, other: lambda: connect(other, scene.config, scene.ids[other])})
    for channel in made.values():
        assert not isinstance(channel, BaseException), channel
    assert made["a"].session == made["b"].session
    for channel in made.values():
        channel.close()


def meeting_of(scene: Scene, me: str) -> meeting.Meeting:
    made = arrive(me, scene.config, scene.ids[me])
    assert made is not None
    return made


@pytest.mark.parametrize("early", ["a", "b"])
def test_a_party_that_gives_up_before_it_is_ready_is_not_waited_for(tmp_path: Path, early: str) -> None:
    scene = Scene(tmp_path, connect_s=0.6)
    other = "b" if early == "a" else "a"

    def leave() -> None:
        arrival = meeting_of(scene, early)
        time.sleep(1.5)
        arrival.close()

    results = run_together({early: leave, other: lambda: connect(other, scene.config, scene.ids[other])})
    assert isinstance(results[other], PeerAbsent) and results[early] is None


@pytest.mark.parametrize("early", ["a", "b"])
def test_a_party_may_be_started_anew_while_the_other_is_not_ready(scene: Scene, early: str) -> None:
    """The first start waits with its HELLO sent, and is gone when the early party is ready."""
    other = "b" if early == "a" else "a"

    def slow() -> Any:
        arrival = meeting_of(scene, early)
        time.sleep(3.0)
        return connect(early, scene.config, scene.ids[early], arrival=arrival)

    def twice() -> Any:
        time.sleep(0.3)
        first = meeting_of(scene, other)
        gone = threading.Thread(target=lambda: run_together({"x": first.finish}), daemon=True)
        gone.start()
        time.sleep(0.7)
        first.close()
        gone.join(0.1)
        return connect(other, scene.config, scene.ids[other])

    made = run_together({early: slow, other: twice})
    for channel in made.values():
        assert not isinstance(channel, BaseException), channel
    assert made["a"].session == made["b"].session
    for channel in made.values():
        channel.close()


def test_an_idle_listener_sleeps_until_it_is_closed(monkeypatch) -> None:
    waits: list[float | None] = []
    select = selectors.DefaultSelector.select

    def noted(self, timeout=None):
        waits.append(timeout)
        return select(self, timeout)

    monkeypatch.setattr(selectors.DefaultSelector, "select", noted)
    listener = Listener("127.0.0.1", 0)
    listener.start(lambda guest: None)
    while not waits:
        time.sleep(0.01)
    time.sleep(0.3)
    listener.close()
    assert waits == [None] and listener._thread is not None and not listener._thread.is_alive()
