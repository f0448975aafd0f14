"""Prepares runs ahead of their inputs in a thread of its own, within a memory limit, or without one when they are taken."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator

from protocols.devices import same_order
from protocols.interpreter import share_the_interpreter
from securemodel.compiler.ir import Phase
from securemodel.engines.masked.masks import FIRST_PORTION_BYTES
from securemodel.engines.masked.preparing import Item, Prepared
from securemodel.errors import SecureModelError

_BATCH_BYTES, _LEAST_BYTES = 4 << 20, 1 << 20  # handed over together; and where a run waits for it, but for its first
_POLL_S = 1.0

PrepareRun = Callable[[int, Phase], Iterator[Item]]


class AtOnce:
    """`Ahead` without a thread: an epoch is prepared node by node, when it is taken."""

    def __init__(self, prepare: PrepareRun) -> None:
        self._prepare = prepare
        self._items: Iterator[Item] = iter(())

    def submit(self, epoch: int, phase: Phase) -> None:
        """Asks for an epoch."""
        self._items = self._prepare(epoch, phase)

    def take_from(self, epoch: int) -> Callable[[int], Prepared]:
        """A function that hands out what is prepared for the epoch that was asked for, node by node."""
        end: Item = (-1, {})

        def take(node: int) -> Prepared:
            prepared, value = next(self._items, end)
            return value if prepared == node else _checked((prepared, value), node)

        return take

    def is_prepared(self, epoch: int) -> bool:
        """Nothing is, before it is taken."""
        return False

    def look(self) -> None:
        """Nothing can have failed before it is taken."""

    def finish(self, epoch: int) -> None:
        """Ends an epoch of which nothing is left to take."""
        for _ in self._items:
            raise _left_over(epoch)

    def discard(self) -> None:
        """Drops what was asked for."""
        self._items = iter(())

    def close(self, wait_s: float = 0.0) -> bool:
        """Nothing is left to stop."""
        return True


class Ahead:
    """A worker that prepares epochs in the order they are submitted, and hands them out node by node.

    `prepare(epoch, phase)` yields (node, prepared) pairs; the worker is stopped while `limit_bytes` of them
    wait to be taken (one batch may always wait), but for a run that waits for its own. Epochs are taken in any order. An
    error of the worker is raised by the next `take`.
    """

    def __init__(self, prepare: PrepareRun, limit_bytes: int, name: str) -> None:
        share_the_interpreter()
        self._prepare, self._limit = prepare, limit_bytes
        self._jobs: queue.SimpleQueue[tuple[int, Phase] | None] = queue.SimpleQueue()
        self._ready: deque[tuple[int, list[Item], int]] = deque()
        self._waiting_bytes = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._discarding = self._closed = False
        self._open: list[int] = []
        self._wanted = False
        self._current: deque[Item] = deque()
        self._in_order = same_order()
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"prepare-{name}")
        self._thread.start()

    def submit(self, epoch: int, phase: Phase) -> None:
        """Asks for an epoch."""
        with self._changed:
            self._open.append(epoch)
        self._jobs.put((epoch, phase))

    def take_from(self, epoch: int) -> Callable[[int], Prepared]:
        """A function that hands out what was prepared for an epoch, node by node."""
        current = self._current

        def take(node: int) -> Prepared:
            if not current:
                current.extend(self._next_batch(epoch))
            prepared, value = current.popleft()
            return value if prepared == node else _checked((prepared, value), node)

        return take

    def is_prepared(self, epoch: int) -> bool:
        """Whether the worker is done with an epoch that was asked for."""
        with self._changed:
            return epoch not in self._open

    def look(self) -> None:
        """Raises the error that the worker ended with, if it did."""
        with self._changed:
            if self._error is not None:
                raise self._error

    def finish(self, epoch: int) -> None:
        """Waits until the worker is done with an epoch of which nothing is left to take."""
        with self._changed:
            self._wait_for(lambda: epoch not in self._open or self._place(epoch) is not None)
            if self._current or self._place(epoch) is not None:
                raise _left_over(epoch)

    def discard(self) -> None:
        """Lets the worker end what it was asked for, and drops it all."""
        with self._changed:
            self._discarding = True
            self._ready.clear()
            self._waiting_bytes = 0
            self._changed.notify_all()
            self._wait_for(lambda: not self._open)
            self._ready.clear()
            self._current.clear()
            self._waiting_bytes = 0
            self._discarding = False

    def close(self, wait_s: float = 0.0) -> bool:
        """Stops the worker after the value it prepares now; true if it has ended within `wait_s`."""
        with self._changed:
            self._discarding = self._closed = True
            self._ready.clear()
            self._current.clear()
            self._waiting_bytes = 0
            self._changed.notify_all()
        self._jobs.put(None)
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _wait_for(self, done: Callable[[], bool]) -> None:
        while not done():
            if self._error is not None:
                raise self._error
            if self._closed or not self._thread.is_alive():
                raise SecureModelError("nothing is prepared any more: the session is closed. Open a new one.")
            self._changed.wait(_POLL_S)

    def _next_batch(self, epoch: int) -> list[Item]:
        with self._changed:
            self._wanted = True
            self._changed.notify_all()
            try:
                unknown = lambda: epoch not in self._open and self._error is None and not self._closed
                self._wait_for(lambda: self._place(epoch) is not None or unknown())
            finally:
                self._wanted = False
            if (place := self._place(epoch)) is None:
                others = [*(other for other, _, _ in self._ready), *self._open]
                prepared = f"epoch {others[0]}" if others else "no epoch"
                raise SecureModelError(f"prepared {prepared}, but epoch {epoch} runs: out of order")
            _, batch, nbytes = self._ready[place]
            del self._ready[place]
            self._waiting_bytes -= nbytes
            self._changed.notify_all()
        return batch

    def _place(self, epoch: int) -> int | None:
        """Where the first batch of an epoch waits."""
        return next((at for at, (prepared, _, _) in enumerate(self._ready) if prepared == epoch), None)

    def _work(self) -> None:
        with self._in_order():
            self._work_in_order()

    def _work_in_order(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._closed:
                return
            try:
                self._work_on(*job)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._open.remove(job[0])
                self._changed.notify_all()

    def _work_on(self, epoch: int, phase: Phase) -> None:
        batch: list[Item] = []
        nbytes, least = 0, min(FIRST_PORTION_BYTES, _LEAST_BYTES)
        for item in self._prepare(epoch, phase):
            if self._closed:
                return
            batch.append(item)
            for t in item[1].values():
                if t is not None:
                    nbytes += t.nbytes
            if nbytes >= (least if self._wanted else _BATCH_BYTES):
                self._put(epoch, batch, nbytes)
                batch, nbytes, least = [], 0, min(2 * least, _LEAST_BYTES)
        self._put(epoch, batch, nbytes)

    def _put(self, epoch: int, batch: list[Item], nbytes: int) -> None:
        if not batch:
            return
        with self._changed:
            while self._waiting_bytes and self._waiting_bytes + nbytes > self._limit:
                if self._discarding or self._wanted:
                    break
                self._changed.wait(_POLL_S)
            if not self._discarding:
                self._ready.append((epoch, batch, nbytes))
                self._waiting_bytes += nbytes
                self._changed.notify_all()


def _checked(item: Item, node: int) -> Prepared:
    """What was prepared, if it is for the node that asks."""
    prepared, value = item
    if prepared != node:
        raise SecureModelError(f"prepared node {prepared}, but node {node} asks for it: out of order")
    return value


def _left_over(epoch: int) -> SecureModelError:
    return SecureModelError(f"more was prepared for epoch {epoch} than it took: out of order")
