"""Turns: calls of several threads go one at a time, in the order in which they came."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from protocols.errors import explain
from securemodel.errors import InputError

T = TypeVar("T")


@dataclass(eq=False)
class Turn:
    """A call's place in the line: the thread that asked for it, and the one in which it runs.

    `raced`: it came while calls of other threads were in the line, so chance decided their order. `busy`: it runs, and
    not the code of whoever reads its batches.
    """

    asker: int
    raced: bool
    runner: int | None = None
    busy: bool = False


class Turns:
    """A line of calls. Whoever is in its own turn may not ask for another: it would wait for itself."""

    def __init__(self) -> None:
        self._line: deque[Turn] = deque()
        self._changed = threading.Condition()
        self._halting = 0
        self._process = os.getpid()

    def are_here(self) -> bool:
        """Whether this is the process that opened the session, not a fork of it."""
        return self._process == os.getpid()

    def check_here(self) -> None:
        """Raises InputError in a fork of the process: it has the same keys and masks, and would use them again."""
        if not self.are_here():
            raise InputError(
                explain(
                    "a session was called in a fork of the process that opened it",
                    why="both would hide different values under the same masks, and talk over the same links",
                    fix="open a session in the new process, with connect() or local()",
                )
            )

    def ask(self) -> Turn:
        """A place at the end of the line, for `taken`. Raises InputError in a turn of the same thread, or in a fork."""
        self.check_here()
        me = threading.get_ident()
        with self._changed:
            if self._line and self._line[0].runner == me:
                raise InputError(
                    explain(
                        "a session was called inside one of its own calls",
                        why="its runs go one after the other, and the one under way waits for the code that called",
                        fix="call it when run() has returned; after the last batch of run_batches(), or after closing it",
                    )
                )
            turn = Turn(me, any(other.asker != me for other in self._line))
            self._line.append(turn)
        return turn

    def arrange(self, arrangement: Callable[[Turn], T]) -> T:
        """Hands a new place to what arranges its call; nobody else gets a place before it is arranged."""
        with self._changed:
            turn = self.ask()
            try:
                return arrangement(turn)
            except BaseException:
                self._line.remove(turn)
                raise

    @contextmanager
    def taken(self, turn: Turn) -> Iterator[None]:
        """Waits until it is this call's turn, and ends it afterwards."""
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._line[0] is turn and not self._halting)
                turn.runner, turn.busy = threading.get_ident(), True
            yield
        finally:
            with self._changed:
                self._line.remove(turn)
                self._changed.notify_all()

    @contextmanager
    def pausing(self, turn: Turn) -> Iterator[None]:
        """While the caller has a batch in its hands the session may be closed, but nobody else may run."""
        with self._changed:
            turn.busy = False
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                turn.runner, turn.busy = threading.get_ident(), True

    @contextmanager
    def halted(self) -> Iterator[None]:
        """Waits for the call that runs, if this is not inside of it, and lets no other begin."""
        me = threading.get_ident()
        with self._changed:
            self._halting += 1
            try:
                self._changed.wait_for(lambda: not any(turn.busy and turn.runner != me for turn in self._line))
                yield
            finally:
                self._halting -= 1
                self._changed.notify_all()
