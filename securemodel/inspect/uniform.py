"""Statistical tests of a view: what is hidden by masks must look like words drawn at random, whatever was hidden.

Every test gives a bound on the probability of what it saw, were all words uniform and independent: by Hoeffding's
inequality for counts of bits, by Bernstein's for the spread, and by counting for words that are equal. The bounds hold
for any number of samples. A finding is a bound below ALARM divided by the number of tests of the whole report, so the
probability that an honest engine gives any finding at all is at most ALARM.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from securemodel.inspect.views import OWN, Place, View

ALARM = 1e-6


@dataclass(frozen=True)
class Examination:
    """One test: of which party's view, what was asked of which words, and a bound on the chance of what was seen."""

    party: str
    question: str
    about: str
    chance: float


def examine(view: View) -> Iterator[Examination]:
    """All tests of one view."""
    received = {place: words for place, words in view.places.items() if place.kind != OWN}
    for kind, group in _by_kind(received).items():
        yield from (Examination(view.party, BITS, f"{kind} bit {bit}", p) for bit, p in enumerate(_bits(group)))
        yield Examination(view.party, SPREAD_OF_BITS, kind, _spread(group))
    for place, words in received.items():
        about = f"{place.kind} %{place.node} of {place.sender}, run {place.run}"
        yield Examination(view.party, CONSTANT, about, _constant(words, place.bits, view.scenario))
        yield Examination(view.party, INPUTS, about, _two_inputs(words, place.bits, view.scenario))
    for how in ("difference", "sum", "exclusive or") if received else ():
        yield Examination(view.party, PAIRS, how, _pairs(view.places, view.scenario, how))


BITS = "is every bit 0 as often as 1"
SPREAD_OF_BITS = "does each word's every bit vary from session to session as a coin does"
CONSTANT = "do no words, and no more bits than by chance, stay the same in all sessions with the same inputs"
INPUTS = "have the words the same distribution with both inputs"
PAIRS = "is no pair of words tied by a constant"


def _by_kind(places: dict[Place, np.ndarray]) -> dict[str, list[tuple[int, np.ndarray]]]:
    groups: dict[str, list[tuple[int, np.ndarray]]] = {}
    for place, words in places.items():
        groups.setdefault(f"{place.kind} of {place.bits} bits", []).append((place.bits, words))
    return groups


def _ones(words: np.ndarray, bits: int) -> np.ndarray:
    """How often each bit is set, along the first axis: [sessions, words] -> [words, bits]."""
    shifts = np.arange(bits, dtype=np.uint64)
    return np.stack([((words >> shift) & np.uint64(1)).sum(0) for shift in shifts], 1)


def _bits(group: list[tuple[int, np.ndarray]]) -> list[float]:
    bits = group[0][0]
    count = sum(words.size for _, words in group)
    ones = sum(_ones(words, bits).sum(0) for _, words in group)
    return [_hoeffding((2 * int(one) - count) ** 2 / (2 * count)) for one in ones]


def _spread(group: list[tuple[int, np.ndarray]]) -> float:
    """Sum over words and bits of (2 ones - n)^2 / n, whose mean is their number m: variance below 2, values up to n."""
    off, m, n = 0.0, 0, len(group[0][1])
    for bits, words in group:
        found = (2.0 * _ones(words, bits) - n) ** 2 / n - 1
        off, m = off + float(found.sum()), m + found.size
    return min(1.0, 2 * math.exp(-(off**2) / (2 * (2 * m + n * abs(off) / 3))))


def _constant(words: np.ndarray, bits: int, scenario: np.ndarray) -> float:
    """Of words, and of single bits: the smallest of four bounds on the chance of finding so many, times four."""
    chance = 1.0
    for index in (0, 1):
        same = words[scenario == index]
        ones = _ones(same, bits)
        constant = (ones == 0) | (ones == len(same))
        for found, size in ((constant.all(1), bits), (constant.ravel(), 1)):
            chance = min(chance, _at_least(int(found.sum()), found.size, 2.0 ** -min(1000, size * (len(same) - 1))))
    return min(1.0, 4 * chance)


def _at_least(found: int, count: int, chance: float) -> float:
    """A bound on the chance that `found` or more of `count` independent events happen: the expected number of such sets."""
    return min(1.0, math.exp(found * math.log(count * chance) - math.lgamma(found + 1))) if found else 1.0


def _two_inputs(words: np.ndarray, bits: int, scenario: np.ndarray) -> float:
    """The largest difference between the shares of ones, over all bits."""
    parts = [words[scenario == index] for index in (0, 1)]
    shares = [_ones(part, bits).sum(0) / part.size for part in parts]
    largest = float(np.abs(shares[0] - shares[1]).max())
    return min(1.0, bits * _hoeffding(2 * largest**2 / sum(1 / part.size for part in parts)))


def _hoeffding(exponent: float) -> float:
    return min(1.0, 2 * math.exp(-exponent))


def _pairs(places: dict[Place, np.ndarray], scenario: np.ndarray, how: str) -> float:
    """Whether a received word moves together with another one, or with one of the party's own stream.

    Seen by their low bytes, which every word has: if v - w is the same in all sessions with the same inputs, then v
    and w change alike from the first of these sessions to all others.
    """
    low = np.concatenate([words.astype(np.uint8) for words in places.values()], 1)
    received = np.concatenate([np.full(words.shape[1], place.kind != OWN) for place, words in places.items()])
    groups = [low[scenario == index] for index in (0, 1)]
    changes = np.concatenate([g[1:] ^ g[:1] if how == "exclusive or" else g[1:] - g[:1] for g in groups]).T.copy()
    keys = [change.tobytes() for change in changes]
    count = Counter(keys)
    if how == "sum":
        opposite = [change.tobytes() for change in np.uint8(0) - changes]
        tied = any(
            there in count and there != here for here, there, ok in zip(keys, opposite, received, strict=True) if ok
        )
    else:
        tied = any(count[key] > 1 for key, ok in zip(keys, received, strict=True) if ok)
    return min(1.0, len(keys) ** 2 * 2.0 ** -min(1000, 8 * changes.shape[1])) if tied else 1.0
