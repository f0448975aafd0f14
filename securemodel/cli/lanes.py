"""A party's lanes in `securemodel predict --lanes K`: who runs them, and what this party's process does meanwhile.

This process keeps lane 0, over which the parties agree; it alone has the files. It gives lanes their inputs and takes
results from them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

from protocols.channel import Channel
from protocols.identity import MOST_LANES
from securemodel.cli.part import Part
from securemodel.engines.labels import lanes_label
from securemodel.engines.packing import pack, unpack
from securemodel.files.rows import Rows
from securemodel.program import Program
from securemodel.sessions import chunks as rule
from securemodel.sessions.chunks import Chunks, Said, State

MOST = MOST_LANES // 4
_TICK_S = 0.05  # between two agreements
_END_S = 5.0
_CHUNK_BYTES = 32 << 20
_SHARE = 4  # chunks for each lane at first, so that a slow lane keeps nobody waiting for long


class Crew(Protocol):
    """What runs a party's lanes."""

    def start(self, lane: int) -> None:
        """Starts a lane, or starts it again."""

    def give(self, lane: int, chunk: bytes) -> None:
        """Hands a lane its next chunk; never waits for its end."""

    def stop(self, lane: int) -> None:
        """Ends a lane at once."""

    def events(self, timeout_s: float) -> list[tuple[int, bytes | None]]:
        """What lanes have replied, waiting so long for the first reply; None from a lane that is gone."""

    def close(self, patience_s: float = 0.0) -> None:
        """Ends all lanes: those that are done in good order, those that do not in so many seconds at once."""


class Processes:
    """Lanes as processes of this machine. They end with this process."""

    def __init__(self, job: Mapping[str, Any], lanes: int) -> None:
        self._job, self._running = job, dict[int, tuple[subprocess.Popen[bytes], Connection]]()
        threads = max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // lanes)
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def start(self, lane: int) -> None:
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "securemodel.cli.lane", str(theirs.fileno())]
        with theirs:
            process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
            )
        self._running[lane] = process, ours
        self.give(lane, pack({**self._job, "lane": lane}, {}))

    def give(self, lane: int, chunk: bytes) -> None:
        try:
            self._running[lane][1].send_bytes(chunk)
        except OSError:
            pass  # it is gone, and `events` says so

    def stop(self, lane: int) -> None:
        process, connection = self._running.pop(lane)
        process.kill()
        process.wait()
        connection.close()

    def events(self, timeout_s: float) -> list[tuple[int, bytes | None]]:
        lanes: dict[Any, int] = {connection: lane for lane, (_, connection) in self._running.items()}
        found: list[tuple[int, bytes | None]] = []
        for connection in wait(list(lanes), timeout_s):
            try:
                found.append((lanes[connection], connection.recv_bytes()))  # type: ignore[union-attr]
            except (EOFError, OSError):
                found.append((lanes[connection], None))
        return found

    def close(self, patience_s: float = 0.0) -> None:
        for _, connection in self._running.values():
            connection.close()
        until = time.monotonic() + patience_s
        for process, _ in self._running.values():
            try:
                process.wait(max(until - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()


@dataclass
class _Inputs:
    """This party's inputs of each chunk, read in order; those of a chunk that is run again are looked for."""

    rows: Rows | None
    mine: Sequence[bool]
    pieces: Sequence[Sequence[int]]
    _next: int = 0
    _reader: Iterator[list[torch.Tensor]] | None = None

    def message(self, chunk: int, rows: int) -> bytes:
        """What a lane needs for a chunk of so many rows."""
        batches, tensors = self.pieces[chunk], dict[str, torch.Tensor]()
        if self.rows:
            places = [index for index, own in enumerate(self.mine) if own]
            for batch, inputs in zip(batches, self._read(self.rows, chunk), strict=False):
                tensors |= {f"{batch}.{at}": x.contiguous() for at, x in zip(places, inputs, strict=True)}
        return pack({"chunk": chunk, "batches": batches, "rows": rows}, tensors)

    def _read(self, rows: Rows, chunk: int) -> Iterator[list[torch.Tensor]]:
        if chunk != self._next:
            return rows.read(self.pieces[chunk])
        self._next += 1
        self._reader = self._reader or rows.read([batch for piece in self.pieces for batch in piece])
        return (next(self._reader) for _ in self.pieces[chunk])


@dataclass
class Lanes:
    """This party's side of a job that runs in lanes 1 to K."""

    channel: Channel
    part: Part
    size: int
    rows: int
    crew: Crew
    count: int
    shown: Callable[[int, int], None]
    say: Callable[[str], None]
    _said: dict[int, Said] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)

    def run(self, program: Program, todo: Sequence[int]) -> None:
        """Runs these batches; the lanes have been started. Raises PeerError, ProtocolError, FileError."""
        pieces = cut(program, todo, self.count)
        inputs, chunks = _Inputs(self.part.rows, self.part.mine, pieces), Chunks(len(pieces), self.count)
        self._said = {lane: Said() for lane in range(1, self.count + 1)}
        before, number = self.rows - self._rows_of(todo), 0
        while not chunks.over:
            self._listen(before)
            number += 1
            orders = chunks.step(self._exchanged(number))
            for lane in orders.stop:
                self.crew.stop(lane)
            for lane in orders.start:
                self.crew.start(lane)
                self._said[lane] = Said()
            for lane, chunk in orders.give:
                self.crew.give(lane, inputs.message(chunk, self._rows_of(pieces[chunk])))
        self.crew.close(_END_S)

    def _rows_of(self, batches: Sequence[int] | set[int]) -> int:
        return sum(min(self.size, self.rows - batch * self.size) for batch in batches)

    def _exchanged(self, number: int) -> dict[str, dict[int, Said]]:
        channel, mine = self.channel, rule.pack(self._said)
        sizes = dict.fromkeys(channel.peers, len(mine))
        got = channel.exchange(lanes_label(number), {peer: [mine] for peer in channel.peers}, sizes)
        theirs = {peer: rule.unpack(peer, data.numpy().tobytes(), list(self._said)) for peer, data in got.items()}
        return {channel.me: self._said, **theirs}

    def _listen(self, before: int) -> None:
        """Takes what the lanes have replied since."""
        timeout_s = _TICK_S
        while events := self.crew.events(timeout_s):
            for lane, message in events:
                self._take(lane, message, before)
            if any(message is None for _, message in events):
                return
            timeout_s = 0.0

    def _take(self, lane: int, message: bytes | None, before: int) -> None:
        words, tensors = unpack(message) if message is not None else ({"error": "its process has ended"}, {})
        said = self._said[lane]
        if "error" in words:
            if said.state != State.FAILED:
                self.say(f"lane {lane}: {words['error']}")
            self._said[lane] = Said(said.done, State.FAILED)
        elif "ready" in words:
            self._said[lane] = Said(said.done, State.READY)
        elif "done" in words:
            self._said[lane] = Said(said.done + 1, said.state)
        else:
            if self.part.record:
                self.part.record.add(words["batch"], [tensors[str(index)] for index in self.part.results])
            self._done.add(words["batch"])
            self.shown(before + self._rows_of(self._done), self.rows)


def cut(program: Program, todo: Sequence[int], lanes: int) -> list[list[int]]:
    """The batches in chunks, each of neighbors: several for each lane, and none with inputs of more than 32 MiB."""
    batch_bytes = sum(8 * torch.Size(shape).numel() for shape in program.header.input_shapes)
    each = max(1, min(-(-len(todo) // (_SHARE * lanes)), _CHUNK_BYTES // max(batch_bytes, 1)))
    return [list(todo[first : first + each]) for first in range(0, len(todo), each)]
