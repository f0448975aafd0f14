"""Messages between a front and its engine processes, over a Unix socket pair: a head in msgpack, then int64 arrays.

A frame is the head's length (4 bytes, little-endian), the length of the arrays' bytes (8 bytes), the head, the bytes.
Both ends are this project's own processes of one user; sizes are bounded all the same.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec import Struct

from protocols.errors import DecodeError

_SIZES = struct.Struct("<IQ")
_MOST_HEAD, _MOST_DATA = 1 << 24, 1 << 31


class Run(Struct, frozen=True, tag=True):
    """Front to engine: a job of a session that is ready. The arrays are this party's shares of the inputs."""

    session: int
    run: int
    size: int
    rows: int
    manifest: bytes
    shapes: tuple[tuple[int, ...], ...]


class Ready(Struct, frozen=True, tag=True):
    """Engine to front: the weights are loaded. `session` counts sessions, `name` is what all parties call this one;
    `seconds` is what a run of each size took."""

    session: int
    name: str
    card: bytes
    seconds: dict[int, float]
    loaded_from: str


class Computed(Struct, frozen=True, tag=True):
    """Engine to front: a job is done. The arrays are this party's shares of the outputs."""

    job: int
    run: str
    seconds: float
    rounds: int
    sent_bytes: dict[str, int]
    shapes: tuple[tuple[int, ...], ...]
    ahead: dict[int, int] = {}


class Ahead(Struct, frozen=True, tag=True):
    """Engine to front: how many runs of each size are prepared, and whether the job that it has waits for its own."""

    runs: dict[int, int]
    waiting: bool = False


class Down(Struct, frozen=True, tag=True):
    """Engine to front: the session is over; it meets the others again, or ends."""

    reason: str
    party: str = ""


class Stage(Struct, frozen=True, tag=True):
    """Engine to front: what it is doing before it is ready."""

    doing: str


Message = Run | Ready | Computed | Ahead | Down | Stage
_DECODER = msgspec.msgpack.Decoder(Message)


def shapes_of(arrays: Sequence[np.ndarray]) -> tuple[tuple[int, ...], ...]:
    """What a message says of the arrays that go with it."""
    return tuple(array.shape for array in arrays)


def encode(message: Message, arrays: Sequence[np.ndarray] = ()) -> list[bytes]:
    """A frame in parts."""
    head, data = msgspec.msgpack.encode(message), [np.ascontiguousarray(array, "<i8").tobytes() for array in arrays]
    return [_SIZES.pack(len(head), sum(map(len, data))) + head, *data]


def decode(head: bytes, data: bytes) -> tuple[Message, list[np.ndarray]]:
    """The message and its arrays. Raises DecodeError."""
    try:
        message = _DECODER.decode(head)
        arrays, at = [], 0
        for shape in getattr(message, "shapes", ()):
            count = int(np.prod(shape, dtype=np.int64))
            arrays.append(np.frombuffer(data, "<i8", count, at).reshape(shape))
            at += 8 * count
    except (msgspec.MsgspecError, ValueError):
        raise DecodeError("a message between front and engine cannot be read") from None
    return message, arrays


def send(sock: socket.socket, message: Message, arrays: Sequence[np.ndarray] = ()) -> None:
    """Sends a frame; blocks. Raises OSError where the other end is gone."""
    for part in encode(message, arrays):
        sock.sendall(part)


def receive(sock: socket.socket) -> tuple[Message, list[np.ndarray]]:
    """The next frame; blocks. Raises EOFError at the end, DecodeError."""
    sizes = _checked(_exactly(sock, _SIZES.size))
    return decode(*(_exactly(sock, size) for size in sizes))


async def receive_async(reader: asyncio.StreamReader) -> tuple[Message, list[np.ndarray]]:
    """The next frame. Raises EOFError (asyncio.IncompleteReadError) at the end, DecodeError."""
    sizes = _checked(await reader.readexactly(_SIZES.size))
    return decode(*[await reader.readexactly(size) for size in sizes])


def _checked(raw: bytes) -> tuple[int, int]:
    head, data = _SIZES.unpack(raw)
    if head > _MOST_HEAD or data > _MOST_DATA:
        raise DecodeError("a message between front and engine is too long")
    return head, data


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        count = sock.recv_into(view[got:])
        if not count:
            raise EOFError
        got += count
    return bytes(data)
