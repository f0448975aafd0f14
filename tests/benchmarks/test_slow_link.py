"""The slow link: what goes in comes out, whole, in order, and no sooner than the link allows."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from benchmarks.slow_link import SlowLinks, network
from protocols.channel.testing import run_together
from securemodel import Network

SIZE = 3 << 20


@pytest.fixture
def pair():
    """A link of 80 Mbit/s and 0.1 s, and both ends of a connection over it."""
    links, listening = SlowLinks(Network(80e6, 0.1)), socket.create_server(("127.0.0.1", 0))
    near = links.add(listening.getsockname())
    links.start()
    client = socket.create_connection(near)
    server, _ = listening.accept()
    try:
        yield links, client, server
    finally:
        for end in (client, server, listening):
            end.close()
        links.end()


def received(end: socket.socket) -> tuple[bytes, float]:
    """All that comes until the other end says that it is over, and when."""
    data = b""
    while more := end.recv(1 << 20):
        data += more
    return data, time.perf_counter()


def test_bytes_arrive_whole_both_ways_and_not_too_soon(pair) -> None:
    links, client, server = pair
    text = {"client": bytes(range(256)) * (SIZE // 256), "server": bytes(reversed(range(256))) * (SIZE // 256)}

    def send(end: socket.socket, data: bytes) -> None:
        end.sendall(data)
        end.shutdown(socket.SHUT_WR)

    began = time.perf_counter()
    senders = [
        threading.Thread(target=send, args=(end, text[name])) for end, name in ((client, "client"), (server, "server"))
    ]
    for sender in senders:
        sender.start()
    got = run_together({"client": lambda: received(client), "server": lambda: received(server)}, 60)
    for name, other in (("client", "server"), ("server", "client")):
        data, ended = got[name]
        assert data == text[other]
        assert ended - began >= 8 * SIZE / links.link.bandwidth + links.link.latency, "both ways at once, each its own"
    for sender in senders:
        sender.join()


def test_a_connection_that_ends_on_one_side_ends_on_the_other(pair) -> None:
    _, client, server = pair
    server.close()
    client.settimeout(10.0)
    assert not client.recv(1)


def test_links_are_written_as_they_are_said() -> None:
    link = network("0.5,10000")
    assert (link.latency, link.bandwidth, link.name) == (0.5e-3, 10e9, "0.5 ms, 10000 Mbit/s")
