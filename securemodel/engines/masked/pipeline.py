"""Makes the items of an iterator in a thread while earlier ones are used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from protocols.devices import same_order
from protocols.interpreter import share_the_interpreter

T = TypeVar("T")
_POLL_S = 0.1
_ALONE_BYTES = 1 << 20  # of the first items: no thread is begun for so little


class _End:
    """Closes the queue; carries what the iterator raised, if it did."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def pipelined(items: Iterator[T], size: Callable[[T], int], limit_bytes: int) -> Iterator[T]:
    """The same items in the same order, made ahead of use by a thread.

    The thread waits while items of `limit_bytes` (by `size`) are unused; one item may always wait. It has
    ended when this iterator is exhausted or closed. What `items` raises is raised here. The first items are made when
    they are used.
    """
    share_the_interpreter()
    made = 0
    for first in items:
        yield first
        made += size(first)
        if made >= _ALONE_BYTES:
            break
    else:
        return
    ready: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
    changed, waiting, stop = threading.Condition(), [0], threading.Event()

    here = same_order()

    def work() -> None:
        with here():
            make()

    def make() -> None:
        error = None
        try:
            for item in items:
                with changed:
                    while waiting[0] > limit_bytes and not stop.is_set():
                        changed.wait(_POLL_S)
                    waiting[0] += size(item)
                if stop.is_set():
                    break
                ready.put(item)
        except BaseException as caught:
            error = caught
        ready.put(_End(error))

    thread = threading.Thread(target=work, daemon=True, name="pipelined")
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
            with changed:
                waiting[0] -= size(item)
                changed.notify()
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        thread.join()
