"""Listens for clients over HTTPS: uvicorn behind a door of our own, which silent clients cannot keep shut."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from protocols.errors import ConfigError, explain
from securemodel.service.connections import Connection, Limits

_BACKLOG = 1024
_LIMITS = Limits()


class Server:
    """A running server. `port` is where it listens."""

    def __init__(self, listeners: list[socket.socket], server: _Uvicorn, task: asyncio.Task[None]) -> None:
        self._server, self._task = server, task
        self.port: int = listeners[0].getsockname()[1]

    def renew(self, tls: tuple[Path, Path]) -> None:
        """Shows clients who connect from now on this certificate. Raises ConfigError; then they see the old one."""
        context = _context(*tls)
        for door in self._server.doors:
            door.renew(context)

    async def stop(self, grace: float = 30.0) -> None:
        """Takes no more connections, and ends when all requests are answered, after `grace` seconds in any case."""
        self._server.config.timeout_graceful_shutdown = max(1, round(grace))
        self._server.should_exit = True
        await self._task


async def start(
    app: ASGIApp, host: str, port: int, *, tls: tuple[Path, Path] | None, limits: Limits = _LIMITS
) -> Server:
    """Serves an app at an address; `tls` are the files of certificate chain and key, None is plain HTTP. Port 0 takes
    a free one. Raises ConfigError."""
    context = None if tls is None else _context(*tls)
    config = uvicorn.Config(
        app,
        interface="asgi3",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    config.load()
    listeners = await _listen(host, port)
    server = _Uvicorn(config, listeners, context, limits)
    task = asyncio.create_task(server.serve())
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    return Server(listeners, server, task)


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])

    def password() -> str:
        fix = f"store it without: openssl pkey -in {key} -out FILE, and chmod 600 FILE"
        raise ConfigError(
            explain("the key of the certificate for clients asks for a password", where=str(key), fix=fix)
        )

    try:
        context.load_cert_chain(certificate, key, password)
    except (OSError, ssl.SSLError) as error:
        what = "the certificate for clients cannot be used"
        fix = "give the files of a certificate chain and of its key, both in PEM"
        raise ConfigError(explain(what, where=f"{certificate}, {key}", why=str(error), fix=fix)) from error
    return context


async def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at every address a name has."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = dict.fromkeys((family, address) for family, *_, address in found)
        listeners = [
            socket.create_server(address[:2], family=family, backlog=_BACKLOG) for family, address in addresses
        ]
    except OSError as error:
        where = f"{host}:{port}"
        fix = "choose another port, or end what listens there"
        raise ConfigError(explain("clients cannot be listened for", where=where, why=str(error), fix=fix)) from error
    for listener in listeners:
        listener.setblocking(False)
    return listeners


class _Uvicorn(uvicorn.Server):
    """uvicorn with another door, which leaves the signals to the program."""

    def __init__(
        self, config: uvicorn.Config, listeners: list[socket.socket], context: ssl.SSLContext | None, limits: Limits
    ) -> None:
        super().__init__(config)
        self._given = (listeners, context, limits)
        self.doors: list[_Door] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        listeners, context, limits = self._given
        waiting = Waiting(limits.waiting)

        def connection(began: float) -> Connection:
            return Connection(self.config, self.server_state, limits, waiting, began)

        self.doors = doors = [_Door(listener, context, limits.arrival_s, waiting, connection) for listener in listeners]
        self.servers = doors  # type: ignore[assignment]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Waiting:
    """Connections that wait for their clients, the one that was silent longest first; those never answered go before."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._strangers: dict[Connection | asyncio.Task[None], None] = {}
        self._known: dict[Connection, None] = {}

    def heard(self, connection: Connection) -> None:
        self.busy(connection)
        if connection.answered:
            self._known[connection] = None
        else:
            self._strangers[connection] = None

    def busy(self, connection: Connection) -> None:
        self._known.pop(connection, None)
        self._strangers.pop(connection, None)

    def greeted(self, task: asyncio.Task[None]) -> None:
        """A connection began, and its keys are being agreed on."""
        while len(self._strangers) + len(self._known) >= self._limit:
            self._give_up()
        self._strangers[task] = None
        task.add_done_callback(lambda task: self._strangers.pop(task, None))

    def close(self) -> None:
        """Gives those up that have not agreed on keys yet."""
        for task in [one for one in self._strangers if isinstance(one, asyncio.Task)]:
            task.cancel()

    def _give_up(self) -> None:
        oldest = next(iter(self._strangers or self._known))
        if isinstance(oldest, asyncio.Task):
            del self._strangers[oldest]
            oldest.cancel()
        else:
            self.busy(oldest)
            oldest.drop()


class _Door:
    """Accepts connections of one socket. What uvicorn needs of a server: `close` and `wait_closed`."""

    def __init__(
        self,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        arrival_s: float,
        waiting: Waiting,
        connection: Callable[[float], Connection],
    ) -> None:
        """`connection` makes the protocol of one that began at a time of the loop's clock."""
        self._listener, self._waiting, self._connection = listener, waiting, connection
        self._tls = None if context is None else (context, arrival_s)
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._accept())

    async def _accept(self) -> None:
        while True:
            try:
                client, _ = await self._loop.sock_accept(self._listener)
            except OSError:  # no more files, or the client has left again
                await asyncio.sleep(0.1)
                continue
            self._waiting.greeted(self._loop.create_task(self._welcome(client, self._loop.time())))

    async def _welcome(self, client: socket.socket, began: float) -> None:
        """Agrees on keys, and hands the connection over; a client who does not manage is left without a word."""
        connection = self._connection(began)
        context, limit = self._tls or (None, None)
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                lambda: connection, client, ssl=context, ssl_handshake_timeout=limit
            )
        except (OSError, asyncio.TimeoutError):
            client.close()

    def renew(self, context: ssl.SSLContext) -> None:
        """Agrees on keys with this certificate from now on."""
        if self._tls:
            self._tls = context, self._tls[1]

    def close(self) -> None:
        self._task.cancel()
        self._waiting.close()
        self._listener.close()

    async def wait_closed(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
