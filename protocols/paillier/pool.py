"""Blinding factors made ahead of time in the background, each used once."""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING

import numpy as np

from protocols.errors import InputError, explain
from protocols.paillier.cipher import Draw, Key, blinding_factors, public, refreshing_factors
from protocols.paillier.keys import PublicKey

if TYPE_CHECKING:
    from typing_extensions import Self


class BlindingPool:
    """Keeps up to `size` blinding factors of one key in store; a thread fills it up `batch` at a time.

    With a private key they are for encrypting one's own data, with a public key `refreshing_factors`, for anything.

    Use it as a context manager, or call `close`. A process that was forked shares no factor with its parent: its pool
    begins empty and without a thread.
    """

    def __init__(self, key: Key, size: int = 4096, batch: int = 128) -> None:
        if size < 1 or batch < 1:
            raise InputError(f"BlindingPool: size {size} and batch {batch} must be at least 1")
        self.key, self.size, self._batch = key, size, min(batch, size)
        self._changed = threading.Condition()
        self._stored: deque[np.ndarray] = deque()
        self._process, self._closed, self._wanted = os.getpid(), False, 0
        self._thread = threading.Thread(target=self._fill, name="blinding-pool", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"BlindingPool({public(self.key)!r}, {len(self)} of {self.size} in store)"

    @property
    def refreshing(self) -> bool:
        """Whether the factors hide computed results also from the key's owner."""
        return isinstance(self.key, PublicKey)

    def __len__(self) -> int:
        return sum(map(len, list(self._stored))) if self._process == os.getpid() else 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and forget what is in store."""
        if self._process != os.getpid():  # the parent's thread is not here, and it may have held the lock
            return
        with self._changed:
            self._closed = True
            self._stored.clear()
            self._changed.notify_all()
        self._thread.join()

    def wait(self, count: int, timeout_s: float = 60.0) -> bool:
        """Wait until `count` factors (at most `size`) are in store; False when that took too long."""
        wanted = min(count, self.size)
        with self._changed:
            self._wanted = max(self._wanted, wanted)
            self._changed.notify_all()
            return self._changed.wait_for(lambda: len(self) >= wanted, timeout_s)

    def take(self, count: int) -> np.ndarray:
        """[count, *cell]: factors from the store, and fresh ones for what it lacks. InputError after `close`."""
        taken, missing = [], count
        if self._process != os.getpid():
            return self._make(count)
        with self._changed:
            if self._closed:
                raise InputError(explain("this pool of blinding factors is closed", fix="make a new BlindingPool"))
            while missing and self._stored:
                part = self._stored.popleft()
                if len(part) > missing:
                    self._stored.appendleft(part[missing:])
                    part = part[:missing]
                taken.append(part)
                missing -= len(part)
            self._changed.notify_all()
        if missing or not taken:
            taken.append(self._make(missing) if missing else public(self.key).residues.ones(0))
        return np.concatenate(taken)

    def _fill(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._closed:
                    return
                count = min(self._batch, self.size - len(self))
            made = self._make(count)
            with self._changed:
                if not self._closed:
                    self._stored.append(made)
                if len(self) >= self._wanted:
                    self._wanted = 0
                self._changed.notify_all()

    def _make(self, count: int) -> np.ndarray:
        return _factors(self.key, count)

    def _has_work(self) -> bool:
        """A whole batch is missing, or someone waits: a smaller batch takes as long as a whole one."""
        return self._closed or len(self) + self._batch <= self.size or len(self) < self._wanted


def _factors(key: Key, count: int, draw: Draw | None = None) -> np.ndarray:
    return refreshing_factors(key, count, draw) if isinstance(key, PublicKey) else blinding_factors(key, count, draw)


class InsecurePool(BlindingPool):
    """Blinding factors that whoever knows `draw` computes again, for tests that must repeat: they hide nothing."""

    def __init__(self, key: Key, draw: Draw) -> None:
        self.key, self._draw = key, draw

    def __repr__(self) -> str:
        return f"InsecurePool({public(self.key)!r})"

    def __len__(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is in store."""

    def take(self, count: int) -> np.ndarray:
        """[count, *cell]: the next factors."""
        return _factors(self.key, count, self._draw)
