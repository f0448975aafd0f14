"""The HTTPS server against clients that are slow, silent, wrong or many: they are let go, and others are served."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import io
import json
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography.hazmat.primitives import serialization

from protocols.errors import ConfigError
from securemodel.service import certificates, server
from securemodel.service.app import make_app
from securemodel.service.certificates import fingerprint
from securemodel.service.connections import Limits
from securemodel.service.logs import Log
from tests.service.certificate import certificate
from tests.service.front import Desk, messages, settings, wait_for

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
OK = b"HTTP/1.1 200 OK\r\n"
GET = b"GET /v2 HTTP/1.1\r\nhost: bank.example\r\n\r\n"
SHORT = Limits(arrival_s=1.0, idle_s=2.0, closing_s=0.2)


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("web"))


class Running:
    """A server in a thread with a loop of its own."""

    def __init__(self, app: Any, tls: Any, limits: Limits, loop: str) -> None:
        self.loop, self.tls = LOOPS[loop](), tls
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.server = self.do(server.start(app, "127.0.0.1", 0, tls=tls, limits=limits))

    def do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def connect(self, seconds: float = 60.0) -> socket.socket:
        """A connection; over TLS where the server speaks it."""
        plain = socket.create_connection(("127.0.0.1", self.server.port), seconds)
        if self.tls is None:
            return plain
        context = ssl.create_default_context(cafile=str(self.tls[0]))
        return context.wrap_socket(plain, server_hostname="localhost")

    def end(self, grace: float = 5.0) -> None:
        self.do(self.server.stop(grace))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(60)
        self.loop.close()


@contextlib.contextmanager
def running(
    app: Any = None, tls: Any = None, limits: Limits = SHORT, loop: str = "asyncio", **more: Any
) -> Iterator[Running]:
    made = Running(app or make_app(Desk(), settings(**more)), tls, limits, loop)
    try:
        yield made
    finally:
        made.end()
        assert not made.server._server.server_state.connections, "connections that had ended were not let go"


def shown(server: Running, file: Path) -> str:
    """The certificate that a new client is shown, which must be the one in the file."""
    plain = socket.create_connection(("127.0.0.1", server.server.port), 60)
    with ssl.create_default_context(cafile=str(file)).wrap_socket(plain, server_hostname="localhost") as connection:
        return hashlib.sha256(connection.getpeercert(True)).hexdigest()


@pytest.mark.parametrize("loop", LOOPS)
def test_a_renewed_certificate_is_shown_without_a_restart(tls, tmp_path: Path, loop: str) -> None:
    new, other = certificate(tmp_path), tmp_path / "other"
    other.mkdir()
    with running(tls=tls, loop=loop) as made, contextlib.closing(made.connect()) as before:
        assert shown(made, tls[0]) == fingerprint(str(tls[0]))
        made.server.renew(new)
        assert shown(made, new[0]) == fingerprint(str(new[0])) != fingerprint(str(tls[0]))
        with pytest.raises(ConfigError, match="cannot be used"):
            made.server.renew((certificate(other)[0], new[1]))
        assert shown(made, new[0]) == fingerprint(str(new[0]))
        before.sendall(GET)
        assert before.recv(1 << 16).startswith(OK), "who was connected is served"


def test_files_of_certificates_are_read_again_when_they_change(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(certificates, "_LOOK_S", 0.01)
    told, files, renewed = io.BytesIO(), certificate(tmp_path), []

    def renew() -> None:
        renewed.append(fingerprint(str(files[0])))

    async def changed() -> None:
        watching = asyncio.create_task(certificates.watch(files, renew, Log(told)))
        await asyncio.sleep(0.1)
        assert not renewed
        files[0].write_bytes(b"half")
        await wait_until(lambda: b"refused" in told.getvalue())
        certificate(tmp_path)
        await wait_until(lambda: fingerprint(str(files[0])) in renewed)
        watching.cancel()

    async def wait_until(done: Any) -> None:
        until = time.monotonic() + 60
        while not done():
            assert time.monotonic() < until
            await asyncio.sleep(0.01)

    asyncio.run(changed())
    assert b"renewed" in told.getvalue()


def until_end(connection: socket.socket) -> bytes:
    """Everything that still comes; a connection that is cut off has ended, too."""
    read = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while piece := connection.recv(1 << 16):
            read += piece
    return read


def post() -> bytes:
    """A new request, as it is on the wire."""
    message = messages([[1, 2, 3, 4]])[0]
    lines = f"content-length: {len(message.body)}\r\ninference-header-content-length: {len(message.header)}\r\n\r\n"
    return b"POST /v2/models/line/infer HTTP/1.1\r\nhost: a\r\n" + lines.encode() + message.body


def ask(connection: socket.socket, sent: bytes) -> tuple[int, bytes]:
    """(status, body) of the answer to some bytes, on a connection that stays."""
    connection.sendall(sent)
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


def served(at: Running) -> bool:
    """Whether somebody who asks now is answered."""
    with contextlib.closing(at.connect()) as connection:
        connection.sendall(GET.replace(b"host", b"connection: close\r\nhost"))
        return until_end(connection).startswith(OK)


both = pytest.mark.parametrize(("loop", "secure"), [("asyncio", True), ("uvloop", True), ("uvloop", False)])


@both
def test_requests_on_one_connection(tls: Any, loop: str, secure: bool) -> None:
    with running(tls=tls if secure else None, loop=loop) as at:
        context = ssl.create_default_context(cafile=str(tls[0]))
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind("localhost", at.server.port, timeout=60, **({"context": context} if secure else {}))
        for _ in range(3):
            message = messages([[1, 2, 3, 4]])[0]
            head = {"Inference-Header-Content-Length": str(len(message.header))}
            connection.request("POST", "/v2/models/line/infer", message.body, head)
            reply = connection.getresponse()
            assert reply.status == 200 and reply.read() and "server" not in reply.headers
        connection.request("POST", "/v2/models/line/infer", bytes(3_000_000), {})
        reply = connection.getresponse()
        assert reply.status == 415 and json.loads(reply.read())["code"] == "plaintext_refused"
        connection.request("GET", "/")
        page = connection.getresponse()
        assert page.status == 200 and "default-src 'none'" in page.headers["content-security-policy"] and page.read()
        connection.close()


@both
def test_silent_clients_are_let_go(tls: Any, loop: str, secure: bool) -> None:
    """Before keys are agreed on, before a request, in its lines, in its body, between requests."""
    head = b"POST /v2/models/line/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 400\r\ninference-header-content-length: 300\r\n\r\n"
    with running(tls=tls if secure else None, loop=loop) as at:
        bare = socket.create_connection(("127.0.0.1", at.server.port), 60)
        silent = {part: at.connect() for part in (b"", b"POST /v2 HTTP/1.1\r\nhost: ", head, head + b"{", GET)}
        for part, connection in silent.items():
            connection.sendall(part)
        assert served(at)
        assert until_end(bare) == b""
        answers = {part: until_end(connection) for part, connection in silent.items()}
        assert answers.pop(GET).startswith(OK)
        assert set(answers.values()) == {b""}
        assert served(at)


@both
def test_slow_clients_are_let_go(tls: Any, loop: str, secure: bool) -> None:
    """A byte at a time does not make the time longer."""
    with running(tls=tls if secure else None, loop=loop) as at:
        connection = at.connect()
        began = time.monotonic()
        with pytest.raises((ConnectionError, ssl.SSLError, TimeoutError)):
            for byte in b"GET /v2 HTTP/1.1\r\nhost: " + b"a" * 10_000:
                connection.sendall(bytes([byte]))
                time.sleep(0.05)
        assert time.monotonic() - began < 60
        assert served(at)


@both
def test_a_thousand_silent_connections_shut_nobody_out(tls: Any, loop: str, secure: bool) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        with running(tls=tls if secure else None, loop=loop, limits=Limits(arrival_s=600.0)) as at:
            known = at.connect()
            assert ask(known, GET)[0] == 200
            crowd = [socket.create_connection(("127.0.0.1", at.server.port), 60) for _ in range(1000)]
            assert served(at)
            assert ask(known, GET)[0] == 200, "who was answered before is not given up for silent ones"
            first = crowd[0]
            assert until_end(first) == b""
            for connection in (known, *crowd):
                connection.close()
            wait_for(lambda: not at.server._server.server_state.connections)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


WRONG = {
    "long lines": b"GET /v2 HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 17_000,
    "many lines": b"GET /v2 HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 5000 + b"\r\n",
    "long path": b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two lengths": b"POST /v2 HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
    "length and chunks": b"POST /v2 HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "length below zero": b"POST /v2 HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
    "connect": b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n",
    "letters in the path": "GET /ü HTTP/1.1\r\nhost: a\r\n\r\n".encode("latin-1"),
    "no host": b"GET /v2 HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /v2 HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
}


def test_what_is_no_request_is_refused_by_name(tls: Any) -> None:
    with running(tls=tls) as at:
        for name, sent in WRONG.items():
            connection = at.connect()
            status, body = ask(connection, sent)
            assert (status, json.loads(body)["code"]) == (400, "bad_header"), name
            connection.close()
        assert served(at)


def test_bodies_that_lie_about_their_length() -> None:
    message = messages([[1, 2, 3, 4]])[0]

    def head(length: int) -> bytes:
        lines = f"host: a\r\ncontent-length: {length}\r\ninference-header-content-length: {len(message.header)}\r\n\r\n"
        return b"POST /v2/models/line/infer HTTP/1.1\r\n" + lines.encode()

    with running() as at:
        with contextlib.closing(at.connect()) as longer:
            longer.sendall(head(len(message.body) + 1) + message.body)
            assert until_end(longer) == b"", "the byte that was announced never came"
        with contextlib.closing(at.connect()) as shorter:
            assert b'"code":"bad_header"' in ask(shorter, head(len(message.body) - 1) + message.body)[1]
        with contextlib.closing(at.connect()) as chunked:
            pieces = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (message.header, message.data))
            lines = head(0).replace(b"content-length: 0", b"transfer-encoding: chunked")
            assert ask(chunked, lines + pieces + b"0\r\n\r\n")[0] == 200
            endless = lines + b"ffffffff\r\n" + message.header + bytes(100_000)
            assert b'"code":"too_large"' in ask(chunked, endless)[1]
        assert served(at)


def test_a_second_request_before_the_first_answer_ends_the_connection() -> None:
    desk = Desk(hold=asyncio.Event())
    with running(make_app(desk, settings()), limits=Limits()) as at:
        together, apart = at.connect(), at.connect()
        together.sendall(post() + GET)
        apart.sendall(post())
        wait_for(lambda: len(desk.asked) == 2)
        apart.sendall(GET)
        time.sleep(0.2)
        at.loop.call_soon_threadsafe(desk.hold.set)  # type: ignore[union-attr]
        for connection in (together, apart):
            assert until_end(connection).count(b"HTTP/1.1 ") == 1
        assert served(at)


def test_other_protocols_are_not_spoken() -> None:
    with running() as at, contextlib.closing(at.connect()) as connection:
        connection.sendall(GET.replace(b"host", b"connection: upgrade\r\nupgrade: websocket\r\nhost") + b"\x81\x00")
        assert until_end(connection).startswith(OK)


async def large(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(100):
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})


@both
def test_clients_that_do_not_read_are_let_go(tls: Any, loop: str, secure: bool) -> None:
    with running(large, tls if secure else None, loop=loop) as at:
        connection = at.connect()
        connection.sendall(GET)
        wait_for(lambda: at.server._server.server_state.connections)
        wait_for(lambda: not at.server._server.server_state.connections)
        connection.close()


def stopping(desk: Desk, loop: str = "asyncio") -> tuple[Running, socket.socket]:
    at = Running(make_app(desk, settings()), None, Limits(), loop)
    connection = at.connect()
    connection.sendall(post())
    wait_for(lambda: desk.asked)
    return at, connection


def test_a_server_that_stops_answers_what_it_began_with() -> None:
    desk = Desk(hold=asyncio.Event())
    at, connection = stopping(desk)
    idle = at.connect()
    stop = asyncio.run_coroutine_threadsafe(at.server.stop(60.0), at.loop)
    assert until_end(idle) == b""
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", at.server.port), 1).recv(1)
        raise OSError("it accepts and ends")
    at.loop.call_soon_threadsafe(desk.hold.set)  # type: ignore[union-attr]
    assert until_end(connection).startswith(OK)
    stop.result(60)
    at.end()


def test_a_server_does_not_wait_for_ever() -> None:
    at, connection = stopping(Desk(hold=asyncio.Event()))
    at.end(grace=1.0)
    connection.close()


def test_a_busy_port_and_a_wrong_certificate_are_named(tmp_path: Path) -> None:
    async def start(port: int, files: Any) -> None:
        await server.start(make_app(Desk(), settings()), "127.0.0.1", port, tls=files)

    with running() as at, pytest.raises(ConfigError, match=f"127.0.0.1:{at.server.port}"):
        asyncio.run(start(at.server.port, None))
    (tmp_path / "web.crt").write_text("no certificate")
    with pytest.raises(ConfigError, match="web.crt"):
        asyncio.run(start(0, (tmp_path / "web.crt", tmp_path / "web.key")))
    crt, key = certificate(tmp_path)
    locked = serialization.BestAvailableEncryption(b"x")
    made = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
    with pytest.raises(ConfigError, match="asks for a password[^$]*web.key"):
        asyncio.run(start(0, (crt, key)))
