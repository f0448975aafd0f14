"""Reaching and being reached: all addresses of a name, and a room for connections that nobody has authenticated yet.

Anybody can connect. Who has not shown yet who it is may stay in the room for HANDSHAKE_S seconds, and less if others
need its place: the oldest connection makes room, and one origin (an IPv4 address, or an IPv6 network of 64 bits) has at
most a part of all places. So a party gets in, however many strangers ask, as long as its handshake ends before that
many newer connections have come; and one that was turned out dials again.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

HANDSHAKE_S = 10.0  # for all of it: the TLS handshake, and turning away
_PLACES, _PLACES_OF_ORIGIN = 256, 128
_BACKLOG = 128
_PAUSE_S = 0.025  # after which a connection that failed is tried again
_TOO_FEW = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def dial_any(host: str, port: int, timeout_s: float) -> socket.socket:
    """Connects to the first address of a name that answers, each in its share of the time. Raises OSError."""
    deadline, failed = time.monotonic() + timeout_s, OSError(f"{host} has no address")
    found = _addresses(host, port)
    for index, (family, address) in enumerate(found):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(max((deadline - time.monotonic()) / (len(found) - index), 0.001))
            sock.connect(address)
            if sock.getsockname() == sock.getpeername():  # loopback may connect a socket with itself
                raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens there yet")
            return sock
        except OSError as error:
            failed = error
            sock.close()
    raise failed


def listen_on_all(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on each address of a name; `::` also means IPv4. Raises OSError.

    Addresses that this machine does not have are left out, as long as there is another one.
    """
    made: list[socket.socket] = []
    failed = OSError(f"{host} has no address")
    both = host == "::" and socket.has_dualstack_ipv6()
    for family, address in _addresses(host, port, socket.AI_PASSIVE):
        try:
            made.append(socket.create_server(address, family=family, backlog=_BACKLOG, dualstack_ipv6=both))
            made[-1].setblocking(False)
        except OSError as error:
            failed = error
            if error.errno not in _NOT_HERE:
                made = _closed(made)
                break
    if not made:
        raise failed
    return made


def address_text(address: Sequence) -> str:
    """An address of a socket as one writes it."""
    return f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"


@dataclass(eq=False)
class Guest:
    """A connection in the room, and from where it is."""

    sock: socket.socket
    address: str
    origin: str
    until: float


class Room:
    """Connections whose other end has not been authenticated, in the order in which they came."""

    def __init__(self) -> None:
        self._guests: list[Guest] = []
        self._lock = threading.Lock()

    def enter(self, sock: socket.socket, address: Sequence) -> Guest:
        """Takes a connection in; another one has to go where places or those of its origin are used up."""
        guest = Guest(sock, address_text(address), _origin(address[0]), time.monotonic() + HANDSHAKE_S)
        with self._lock:
            same = [other for other in self._guests if other.origin == guest.origin]
            if len(same) >= _PLACES_OF_ORIGIN:
                self._turn_out(same[0])
            elif len(self._guests) >= _PLACES:
                self._turn_out(self._guests[0])
            self._guests.append(guest)
        return guest

    def leave(self, guest: Guest) -> None:
        """The connection is authenticated, or ended."""
        with self._lock, suppress(ValueError):
            self._guests.remove(guest)

    def left_s(self) -> float | None:
        """How long the next one who has to go may stay, in seconds; None where nobody is here."""
        with self._lock:
            return max(self._guests[0].until - time.monotonic(), 0.0) if self._guests else None

    def turn_out(self, until: float = math.inf) -> None:
        """Ends what may not be here at that time any more, whatever it sends."""
        with self._lock:
            for guest in [guest for guest in self._guests if guest.until < until]:
                self._turn_out(guest)

    def turn_out_oldest(self) -> None:
        """Makes room for what the system has too few of."""
        with self._lock:
            if self._guests:
                self._turn_out(self._guests[0])

    def _turn_out(self, guest: Guest) -> None:
        self._guests.remove(guest)
        with suppress(OSError):
            guest.sock.shutdown(socket.SHUT_RDWR)  # whoever waits on it wakes up and closes it


class Listener:
    """Accepts connections on all addresses of a name in a thread of its own, until it is closed."""

    def __init__(self, host: str, port: int) -> None:
        self.room = Room()
        self._sockets = listen_on_all(host, port)
        self.addresses = ", ".join(address_text(sock.getsockname()) for sock in self._sockets)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._waker, self._woken = socket.socketpair()

    def start(self, welcome: Callable[[Guest], None]) -> None:
        """Calls `welcome`, in a thread of its own each time, for every connection; it must close the socket."""
        self._thread = threading.Thread(target=self._accept_all, args=(welcome,), daemon=True, name="accept")
        self._thread.start()

    def close(self) -> None:
        """Frees the addresses: they stay taken for as long as another thread waits on a socket."""
        self._closed.set()
        self._waker.close()  # wakes that thread
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        if self._thread:
            self._thread.join(1.0)
        self._woken.close()
        _closed(self._sockets)
        self.room.turn_out()

    def _accept_all(self, welcome: Callable[[Guest], None]) -> None:
        with selectors.DefaultSelector() as selector:
            for sock in self._sockets:
                selector.register(sock, selectors.EVENT_READ, sock)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._closed.is_set():
                self.room.turn_out(time.monotonic())
                for key, _ in selector.select(self.room.left_s()):
                    if key.data is not None:
                        self._accept(key.data, welcome)

    def _accept(self, listening: socket.socket, welcome: Callable[[Guest], None]) -> None:
        """One connection. A failure is one connection's, or passes when the system has descriptors again."""
        try:
            sock, address = listening.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in _TOO_FEW:
                self.room.turn_out_oldest()
            self._closed.wait(_PAUSE_S)
            return
        guest = self.room.enter(sock, address)
        try:
            threading.Thread(target=welcome, args=(guest,), daemon=True, name="welcome").start()
        except RuntimeError:  # no more threads
            self.room.leave(guest)
            sock.close()


def _addresses(host: str, port: int, flags: int = 0) -> list[tuple[int, tuple[Any, ...]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _origin(host: str) -> str:
    """Whom a connection is counted for."""
    address = ipaddress.ip_address(host.split("%")[0])
    if address.version == 6 and address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else str(address)


def _closed(sockets: list[socket.socket]) -> list[socket.socket]:
    for sock in sockets:
        sock.close()
    return []
