"""How many requests a key may have at once, and how many a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from securemodel.service.desk import Refused

_REMEMBERED = 10_000


class RateLimits:
    """Token buckets of `per_second` requests, `burst` at most saved up, and at most `at_once` running, for each key."""

    def __init__(self, per_second: float, burst: int, at_once: int, clock: Callable[[], float]) -> None:
        self.per_second, self.burst, self.at_once, self._clock = per_second, burst, at_once, clock
        self._buckets: dict[str, tuple[float, float]] = {}
        self._running: dict[str, int] = {}

    def take(self, key_id: str, requests: int = 1) -> None:
        """Counts requests of a key. Raises Refused("rate") where it has to wait."""
        now = self._clock()
        left, then = self._buckets.get(key_id, (float(self.burst), now))
        left = min(float(self.burst), left + (now - then) * self.per_second)
        if requests > self.burst:
            raise Refused("rate", f"at most {self.burst} requests can be asked together", fix="ask for fewer at a time")
        if left < requests:
            raise Refused(
                "rate",
                f"more than {self.per_second:g} requests a second with one key",
                fix="wait as long as Retry-After says",
                retry_after=(requests - left) / self.per_second,
            )
        if len(self._buckets) >= _REMEMBERED:
            self._forget(now)
        self._buckets[key_id] = (left - requests, now)

    @contextmanager
    def running(self, key_id: str) -> Iterator[None]:
        """While a request of a key is being answered. Raises Refused("rate") where too many are."""
        count = self._running.get(key_id, 0)
        if count >= self.at_once:
            raise Refused(
                "rate",
                f"{self.at_once} requests of this key are being answered",
                fix="wait for one of them",
                retry_after=1.0,
            )
        self._running[key_id] = count + 1
        try:
            yield
        finally:
            self._running[key_id] -= 1
            if not self._running[key_id]:
                del self._running[key_id]

    def _forget(self, now: float) -> None:
        """Buckets that are full again say nothing, and go; where none is, the oldest one does."""
        full = self.burst / self.per_second
        for key_id, (_, then) in list(self._buckets.items()):
            if now - then >= full:
                del self._buckets[key_id]
        if len(self._buckets) >= _REMEMBERED:
            del self._buckets[next(iter(self._buckets))]
