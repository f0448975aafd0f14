"""Noise on an aggregate: every aggregator adds its own to its share, large enough by itself [decision 20].

The noise is discrete Gaussian [Canonne, Kamath, Steinke, NeurIPS 2020] over ring elements, drawn exactly.
With n aggregators there is as much noise as all of them drew; what is promised counts one aggregator's alone, so it
holds against all others together. Which clients take part in a round is public: no amplification is claimed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protocols.errors import InputError, explain
from securemodel.federated.spool import drawn_once

NEIGHBORS = "one client's update replaced by any other update of a norm within the bound"
_TAIL = 9.0  # a normal number is beyond so many standard deviations once in 2^62 times
_WHAT = "the noise of a round"


@dataclass(frozen=True)
class Protection:
    """Noise of standard deviation `multiplier` times what one client may change of the sum: twice `norm` and its weight.

    `norm` bounds the Euclidean norm of a client's update, before its weight, which the client itself checks; `delta` is
    that of the promise. Raises InputError.
    """

    multiplier: float
    norm: float
    delta: float = 1e-5

    def __post_init__(self) -> None:
        if not 0.01 <= self.multiplier <= 2.0**20 or not 0 < self.norm < 2.0**31 or not 0 < self.delta < 1:
            what = "this is no noise: a multiplier from 0.01 on, a norm above 0, and a delta between 0 and 1"
            raise InputError(explain(what, where="Protection()", fix="multiplier=1.1, delta=1e-5 are usual"))

    def scale(self, unit: float, count: int, weight: int) -> float:
        """The standard deviation in ring elements, of `unit` each, with weights of at most `weight`; each of `count` numbers
        was rounded, by half an element at most.
        """
        return self.multiplier * 2.0 * (weight * self.norm / unit + math.sqrt(count) / 2)

    def epsilon(self, rounds: int) -> float:
        """Of (epsilon, delta)-differential privacy of a client in so many rounds; neighbors are NEIGHBORS. Raises InputError."""
        from securemodel.training.privacy import DP, privacy  # 100 MB, for rounds with noise alone

        return privacy(DP(self.multiplier, 1.0), rounds, self.delta, ()).epsilon

    def told(self, epsilon: float) -> str:
        """What noise promises of a client, for people: of this `epsilon`."""
        return f"epsilon {epsilon:.4g} at delta {self.delta:g}, of one aggregator's noise; neighbors: {NEIGHBORS}"

    def has_room(self, most: float, unit: float, count: int, weight: int, parties: int, bits: int) -> bool:
        """Whether sums of up to `most` ring elements and the noise of all parties fit the ring."""
        return most + parties * _TAIL * self.scale(unit, count, weight) < 2.0 ** (bits - 1)

    def check_room(self, most: float, unit: float, count: int, weight: int, parties: int, bits: int) -> None:
        """Raises InputError where sums of up to `most` ring elements and the noise of all parties may not fit the ring."""
        if not self.has_room(most, unit, count, weight, parties, bits):
            fix = "use bits=64, fewer fractional bits, or a smaller norm"
            raise InputError(explain(f"this noise has no room beside the sum, modulo 2^{bits}", fix=fix))


def with_noise(folder: Path, protection: Protection, total: np.ndarray, unit: float, weight: int) -> np.ndarray:
    """An aggregator's share of a total, with its noise in it."""
    scale = protection.scale(unit, total.size, weight)
    return total + _drawn(folder / "noise", scale, total.size).astype(total.dtype)


def _drawn(path: Path, scale: float, count: int) -> np.ndarray:
    """This aggregator's noise for a round: drawn once, and kept beside the round's uploads.

    A round that is repeated adds the same noise to the same sum: fresh noise each time would average out.
    """
    data = drawn_once(path, _WHAT, lambda: _noise(scale, count))
    if len(data) != 8 * count:
        raise InputError(
            explain(f"{_WHAT} is of another size", where=str(path), fix="begin anew, in empty folders everywhere")
        )
    return np.frombuffer(data, "<i8")


def _noise(scale: float, count: int) -> bytes:
    from securemodel.data.noise import discrete_gaussian  # SciPy and pandas, which sums do not need

    return discrete_gaussian(scale, count).numpy().astype("<i8").tobytes()
