"""What multiplies points for a party: threads with kernels for it, or processes; and the tasks they have."""

from __future__ import annotations

import queue
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import torch

from protocols.errors import ProtocolError, explain
from protocols.kernels import curve25519
from protocols.psi import lanes, worker
from protocols.psi.curve import POINT_BYTES, BadPoint, joined

if TYPE_CHECKING:
    from typing_extensions import Self

_FEW = 2000  # multiplications that take less time than it takes to start a process
_SECONDS, _SECONDS_IN_LANES = 30e-6, 9e-6
_END_S = 5.0
_CODE = "import sys; sys.path.insert(0, sys.argv.pop()); from protocols.psi.worker import main; main()"


def multiplication_s() -> float:
    """Seconds that a core takes for a point, with hashing and what is around it, where nothing was measured."""
    return _SECONDS_IN_LANES if curve25519.lanes() else _SECONDS


class Workers:
    """What blinds ids and multiplies points for a party. Used by one thread; ends with its `with` block.

    count: how many work at once; none: what is asked is computed when it is asked. They are threads where there are
    kernels for it, and else processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._lanes = curve25519.lanes() > 0
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._all = [] if self._lanes else [_Process() for _ in range(count)]
        for process in self._all:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(count, "psi") if count else None

    @classmethod
    def for_work(cls, multiplications: int, count: int | None = None) -> Workers:
        """As many as torch has threads, or `count`; none where there is too little to do."""
        most = torch.get_num_threads() if count is None else count
        return cls(min(most, multiplications // _FEW))

    def blind(self, items: Sequence[bytes], key: bytes, salt: bytes) -> Future[bytes]:
        """The points of ids times a key."""
        if self._lanes:
            return self._submit(lambda: lanes.blind(items, key, salt))
        return self._submit(lambda: self._ask(worker.BLIND, POINT_BYTES, b"".join([key, salt, joined(items)])))

    def multiply(self, points: bytes, key: bytes, size: int = POINT_BYTES) -> Future[bytes]:
        """Points times a key, cut to `size` bytes each; the result raises BadPoint for one of small order."""
        if self._lanes:
            return self._submit(lambda: lanes.multiply(points, key, size))
        return self._submit(lambda: self._ask(worker.MULTIPLY, size, key + points))

    def ahead(self, tasks: int, submit: Callable[[int], Future[bytes]]) -> Iterator[bytes]:
        """The results of tasks 0, 1, ... in order, of which as many as there are workers, and one more, are under way."""
        under_way: deque[Future[bytes]] = deque()
        for task in range(tasks):
            under_way.append(submit(task))
            if len(under_way) > self.count + 1:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def _submit(self, work: Callable[[], bytes]) -> Future[bytes]:
        if self._threads is not None:
            return self._threads.submit(work)
        done: Future[bytes] = Future()
        try:
            done.set_result(work())
        except BadPoint as error:
            done.set_exception(error)
        return done

    def _ask(self, task: int, size: int, data: bytes) -> bytes:
        if not self._all:
            return worker.perform(task, size, data)
        process = self._idle.get()
        try:
            return process.ask(task, size, data)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """Ends the processes; what was asked and not waited for is dropped."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._all:
            process.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Process:
    """One process; one thread at a time asks it."""

    def __init__(self) -> None:
        root = str(Path(__file__).parents[2])
        command = [sys.executable, "-c", _CODE, root]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._lock = threading.Lock()

    def ask(self, task: int, size: int, data: bytes) -> bytes:
        with self._lock:
            try:
                writing, reading = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
                writing.write(worker.TASK.pack(task, size, len(data)))
                writing.write(data)
                writing.flush()
                status, length = worker.DONE.unpack(reading.read(worker.DONE.size))
                result = reading.read(length)
            except (OSError, ValueError, struct.error):
                raise self._ended() from None
        if status == worker.BAD_POINT:
            raise BadPoint("a point of small order")
        if len(result) != length:
            raise self._ended()
        return result

    def end(self) -> None:
        """Ends it, at once if it does not end by itself."""
        self._process.kill()
        self._process.wait(_END_S)
        with self._lock:
            for pipe in (self._process.stdin, self._process.stdout):
                try:
                    cast(BinaryIO, pipe).close()
                except OSError:
                    pass  # what was not written has nobody to read it

    def _ended(self) -> ProtocolError:
        code = self._process.poll()
        return ProtocolError(
            explain(
                "a process that multiplies points for this party has ended",
                why=f"its exit code is {code}" if code is not None else "its answer was cut short",
                fix="see whether this machine ran out of memory, then start all parties again",
            )
        )
