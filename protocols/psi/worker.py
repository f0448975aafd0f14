"""A process that multiplies points for a party. It reads tasks from its input until that ends, and answers in order.

`cryptography` keeps the interpreter's lock while it multiplies: threads would not help. Both ends of the pipe are this
project's, on one machine, and what goes through it is bytes of known length; nothing is unpickled.
"""

from __future__ import annotations

import signal
import struct
import sys
from typing import BinaryIO

from protocols.psi.curve import KEY_BYTES, BadPoint, blind, multiply, parted

TASK = struct.Struct("<BBQ")
"""What is to be done, the bytes of each result, and how many bytes follow: key, salt or nothing, and items."""
DONE = struct.Struct("<BQ")
"""How it went, and how many bytes follow."""
BLIND, MULTIPLY = 1, 2
WELL, BAD_POINT = 0, 1


def perform(task: int, size: int, data: bytes) -> bytes:
    """What a task's bytes ask for. Raises BadPoint."""
    key, rest = data[:KEY_BYTES], data[KEY_BYTES:]
    if task == MULTIPLY:
        return multiply(rest, key, size)
    return blind(parted(rest[KEY_BYTES:]), key, rest[:KEY_BYTES])


def serve(reading: BinaryIO, writing: BinaryIO) -> None:
    """Until there is nothing to read any more."""
    while head := reading.read(TASK.size):
        task, size, length = TASK.unpack(head)
        try:
            status, result = WELL, perform(task, size, reading.read(length))
        except BadPoint:
            status, result = BAD_POINT, b""
        writing.write(DONE.pack(status, len(result)))
        writing.write(result)
        writing.flush()


def main() -> None:
    """Serves the process that started this one, which alone decides when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
