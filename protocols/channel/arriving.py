"""Messages of known sizes while they arrive, one after the other: headers and payloads in one piece of memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocols.channel.buffers import fresh, writable
from protocols.channel.frame import HEADER_BYTES, Expected

_SMALL_BYTES = 1 << 16  # a smaller message needs no memory of torch, which takes longer to make
_NOTHING = torch.empty(0, dtype=torch.uint8)


class Arriving:
    """Room for messages, what of it is filled, and how many of their headers were seen.

    `begun`: what was read of the first one already.
    """

    def __init__(self, expected: Sequence[Expected], begun: memoryview) -> None:
        self.expected = expected
        self.size = HEADER_BYTES * len(expected) + sum(message.nbytes for message in expected)
        self._small = bytearray(self.size) if len(expected) == 1 and self.size < _SMALL_BYTES else None
        self._bytes = _NOTHING if self._small is not None else fresh(self.size)
        self._view = memoryview(self._small) if self._small is not None else writable(self._bytes)
        self.filled = len(begun)
        if begun:
            self._view[: self.filled] = begun
        self.seen, self._begin = 0, 0
        self.beats = 0
        """How many messages were dropped since the reader had to wait."""

    @property
    def room(self) -> memoryview:
        """What is to be filled."""
        return self._view[self.filled :]

    @property
    def header(self) -> memoryview | None:
        """The next header, once it is there."""
        end = self._begin + HEADER_BYTES
        return self._view[self._begin : end] if end <= self.filled and self.seen < len(self.expected) else None

    @property
    def behind(self) -> memoryview:
        """What was read behind the next header."""
        return self._view[self._begin + HEADER_BYTES : self.filled]

    @property
    def waits_for(self) -> tuple[Expected, int]:
        """The message that is not there yet, and how many bytes of its payload are."""
        if self.filled < self._begin:
            due = self.expected[self.seen - 1]
            return due, due.nbytes - (self._begin - self.filled)
        return self.expected[min(self.seen, len(self.expected) - 1)], 0

    def accept(self) -> None:
        """The next header is that of the message that is due."""
        self._begin += HEADER_BYTES + self.expected[self.seen].nbytes
        self.seen += 1

    def drop(self) -> None:
        """The next header is that of an empty message which is not among these."""
        self.beats += 1
        behind = bytes(self.behind)
        self.filled -= HEADER_BYTES
        self._view[self._begin : self.filled] = behind

    def payloads(self) -> list[torch.Tensor]:
        """What the messages say, as parts of the memory."""
        if self.size == HEADER_BYTES:
            return [_NOTHING]
        if self._small is not None:
            return [torch.frombuffer(self._small, dtype=torch.uint8, offset=HEADER_BYTES)]
        sizes = [size for message in self.expected for size in (HEADER_BYTES, message.nbytes)]
        return list(self._bytes.split_with_sizes(sizes)[1::2])
