"""Parties of a service as plain HTTP servers: each multiplies its share with public whole numbers, and tells no other."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from securemodel.edge import wire

CARD: dict[str, Any] = {
    "digest": "ab" * 32,
    "sizes": [1, 8],
    "inputs": [{"name": "x", "shape": [-1, 3], "frac_bits": 16, "kind": "real", "limit": 100.0}],
    "outputs": [{"name": "y", "shape": [-1, 2], "frac_bits": 16, "kind": "scores", "limit": 1000.0}],
    "recipe": {"x": [["divide", 2.0]]},
    "labels": None,
    "clamp": None,
    "reveal": "all",
    "plan": {"rounds": 3, "bytes_by_size": {}, "preprocessing_by_size": {}},
}
WEIGHTS, BIAS = np.array([[1, -2, 3], [0, 5, -1]]), np.array([1 << 16, -3 << 16])


def linear(x: np.ndarray) -> np.ndarray:
    """What the service computes, in the clear: of half of x, as its recipe says."""
    return (x / 2) @ WEIGHTS.T + BIAS / 2**16


def refuse(code: str, status: int, what: str = "not now", **more: Any) -> tuple[int, dict[str, Any]]:
    return status, {"title": code, "status": status, "code": code, "what": what, "error": what, **more}


@dataclass
class FakeParty:
    """One party. `behave` may answer in its place: with (status, problem), another Answer, or None for the usual."""

    rank: int
    url: str = ""
    behave: Callable[[wire.Request, wire.Answer], Any] = lambda request, answer: answer
    seen: list[wire.Request] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    certificate: str | None = None
    server: _Server | None = None

    def answer(self, request: wire.Request) -> wire.Answer:
        share = request.shares()[0] @ WEIGHTS.T + (BIAS if self.rank == 0 else 0)
        run = f"0123456789abcdef:{int(request.id[:6], 16)}"
        return wire.Answer(request.id, "line", "3", run, 0, 8, {"y": share}, {"y": 16})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    party: FakeParty
    document: Callable[[], bytes]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(200, {}, type(self).document())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers[wire.LENGTH_HEADER])
        request = wire.read_request(body[:length], body[length:], self.party.rank)
        self.party.bodies.append(body)
        self.party.seen.append(request)
        self.party.heads.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
        found = self.party.behave(request, self.party.answer(request))
        if found == "close":
            self.close_connection = True
        elif isinstance(found, tuple):
            self._send(found[0], {"Content-Type": "application/problem+json"}, wire.dump(found[1]))
        else:
            message = wire.answer(found)
            self._send(200, {wire.LENGTH_HEADER: str(len(message.header))}, message.body)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *words: Any) -> None:
        self.open: list[Any] = []
        super().__init__(*words)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.append(request)
        super().process_request(request, client_address)

    def cut(self) -> None:
        """Ends connections, as the end of a process does."""
        for connection in self.open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: Any) -> None:
        """Clients that go away are no news."""


class FakeService:
    """Parties that run in threads of this process, and their service.json."""

    def __init__(
        self, names: Sequence[str] = ("bank", "hospital"), card: dict[str, Any] = CARD, tls: Path | None = None
    ):
        self.parties = {name: FakeParty(rank) for rank, name in enumerate(names)}
        self.card, self.keys, self._tls = card, False, tls
        for name in names:
            self.start(name)

    def start(self, name: str, port: int = 0) -> None:
        party = self.parties[name]
        handler = type("Handler", (_Handler,), {"party": party, "document": lambda: wire.dump(self.document())})
        party.server = _Server(("127.0.0.1", port), handler)
        if self._tls is not None:
            own = self._tls / name
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(own / "identity.crt", own / "identity.key")
            party.server.socket = context.wrap_socket(party.server.socket, server_side=True)
        party.url = f"http{'s' if self._tls else ''}://127.0.0.1:{party.server.server_address[1]}"
        threading.Thread(target=party.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self, name: str) -> int:
        """Ends a party; its port."""
        server = self.parties[name].server
        assert server is not None
        server.shutdown()
        server.server_close()
        server.cut()
        return server.server_address[1]

    def document(self) -> dict[str, Any]:
        parties = [
            {"name": name, "url": party.url, "certificate": party.certificate, "ca": None, "hpke": None, "page": {}}
            for name, party in self.parties.items()
        ]
        model = {"name": "line", "version": 3, "versions": [3], "rows": 8, "card": self.card}
        leader = next(iter(self.parties))
        return {"securemodel_service": 1, "name": "lines", "parties": parties, "leader": leader, "dealer": "dealer",
                "keys": self.keys, "models": [model], "trust": []}  # fmt: skip

    def close(self) -> None:
        for name in self.parties:
            self.stop(name)


def once(first: Any) -> Callable[[wire.Request, wire.Answer], Any]:
    """Answers the first request with this, and others as usual."""
    left = [first]
    return lambda request, answer: left.pop() if left else answer


def moved(**changes: Any) -> Callable[[wire.Request, wire.Answer], Any]:
    return lambda request, answer: replace(answer, **changes)


def sleeping(seconds: float) -> Callable[[wire.Request, wire.Answer], Any]:
    def behave(request: wire.Request, answer: wire.Answer) -> wire.Answer:
        time.sleep(seconds)
        return answer

    return behave
