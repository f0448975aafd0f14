"""How commands on a party's own machine talk to its front: a Unix socket in its data folder, of its user alone.

A request is a line of JSON, {"do": NAME, …}; the answers are lines: {"say": TEXT} any number of times, then
{"done": {…}} or {"error": TEXT}.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from protocols.errors import ConfigError, SecureModelError, explain
from protocols.files import check_folder

_NAME, _MOST_BYTES, _LONGEST_PATH = "admin.sock", 1 << 20, 100

Say = Callable[[str], None]
Do = Callable[[str, Mapping[str, Any], Say], Awaitable[Mapping[str, Any]]]
"""Does what was asked for: a name, its arguments, and a way to say how it goes. Raises SecureModelError."""


class Failed(SecureModelError):
    """What the front said went wrong."""


@asynccontextmanager
async def listening(data: Path, do: Do) -> AsyncIterator[None]:
    """Meanwhile commands are answered. Raises ConfigError where another front uses the folder, or it is not safe."""
    check_unserved(data)
    path = _path(data)
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(str(path))
    finally:
        os.umask(before)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def write(line: Mapping[str, Any]) -> None:
            writer.write(msgspec.json.encode(line) + b"\n")

        with suppress(OSError):
            try:
                asked = msgspec.json.decode(await reader.readline(), type=dict[str, Any])
                name = asked.pop("do", "")
                write({"done": await do(str(name), asked, lambda text: write({"say": text}))})
            except (SecureModelError, msgspec.DecodeError, ValueError) as error:
                write({"error": str(error)})
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(answer, sock=sock, limit=_MOST_BYTES)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


def check_unserved(data: Path) -> None:
    """Raises ConfigError where another front uses the folder, or it is not safe."""
    check_folder(data, "a party's data")
    if _is_answered(_path(data)):
        fix = "end it first, or give this one another data folder"
        raise ConfigError(explain("another process serves this party already", where=str(data), fix=fix))


def ask(data: Path, do: str, **arguments: object) -> Iterator[Mapping[str, Any]]:
    """What the front of a data folder answers, line by line; the last one has `done`. Raises ConfigError, Failed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(_path(data)))
        except OSError:
            fix = "start it with `securemodel serve`, as the same user"
            raise ConfigError(explain("this party is not being served here", where=str(data), fix=fix)) from None
        with suppress(OSError), sock.makefile("rwb") as lines:
            lines.write(msgspec.json.encode({"do": do, **arguments}) + b"\n")
            lines.flush()
            for line in lines:
                found = msgspec.json.decode(line, type=dict[str, Any])
                if "error" in found:
                    raise Failed(found["error"])
                yield found
                if "done" in found:
                    return
    raise Failed(explain("the front ended before it answered", where=str(data), fix="look at its own output"))


def _path(data: Path) -> Path:
    path = data / _NAME
    if len(os.fsencode(path)) > _LONGEST_PATH:
        why, fix = f"names of Unix sockets have at most {_LONGEST_PATH} bytes", "choose a shorter one"
        raise ConfigError(explain("the data folder's name is too long", where=str(data), why=why, fix=fix))
    return path


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
        except OSError:
            return False
        return True
