"""What who waits is told: for whom, and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Say = Callable[[str], None]
NOT_READY = "it is there and not ready: it compiles its program, or reads its data"
_FIRST_S, _AGAIN_S = 3.0, 60.0


def silent(text: str) -> None:
    """Tells nobody."""


@dataclass
class Notices:
    """Says why `me` waits: after a while, when that changes, and once a minute."""

    me: str
    say: Say = silent
    _began: float = field(default_factory=time.monotonic)
    _said_at: float = 0.0
    _said: str = ""

    def waiting(self, reasons: Mapping[str, str]) -> None:
        """It still waits for these, and why for each."""
        now = time.monotonic()
        if not reasons or now - self._began < _FIRST_S:
            return
        text = "; ".join(f"waiting for {name!r}: {reason}" for name, reason in reasons.items())
        if text != self._said or now - self._said_at >= _AGAIN_S:
            self._said, self._said_at = text, now
            self.say(f"{self.me}: {text}")
