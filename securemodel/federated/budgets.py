"""How often each client may take part, and how much all its rounds may tell of it: kept by every aggregator for itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from protocols.errors import InputError, explain
from securemodel.federated.noise import Protection


@dataclass(frozen=True)
class Budget:
    """The most of one client: `rounds` it takes part in, and the `epsilon` of all of them. None: no limit. Raises InputError."""

    rounds: int | None = None
    epsilon: float | None = None

    def __post_init__(self) -> None:
        rounds, epsilon = self.rounds, self.epsilon
        whole = rounds is None or (type(rounds) is int and rounds >= 1)
        if not whole or not (epsilon is None or 0 < epsilon < float("inf")):
            what = "this is no budget: a whole number of rounds from 1 on, and an epsilon above 0"
            raise InputError(explain(what, where="Budget()", fix="leave out what has no limit"))


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
