"""How often each client may take part, and how much all its rounds may tell of it: kept by every aggregator for itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from securemodel.federated.noise import Protection


@dataclass(frozen=True)
class Budget:
    """The most of one client: `rounds` it takes part in, and the `epsilon` of all of them. None: no limit."""

    rounds: int | None = None
    epsilon: float | None = None


def exceeded(budget: Budget, spent: int, protection: Protection | None) -> str:
    """Why a client that took part in so many rounds cannot take part in another one; nothing where it can."""
    if budget.rounds is not None and spent >= budget.rounds:
        return f"it took part in {spent} rounds, and its budget is {budget.rounds}"
    if budget.epsilon is None:
        return ""
    if protection is None:
        return "its budget has an epsilon, and this round has no noise"
    if (after := _epsilon(protection, spent + 1)) > budget.epsilon:
        return f"one more round would bring its epsilon to {after:.4g}, and its budget is {budget.epsilon:g}"
    return ""


_epsilon = lru_cache(Protection.epsilon)
