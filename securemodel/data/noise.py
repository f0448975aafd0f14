"""Noise on totals: every party adds its own, large enough by itself, so that it hides a row from all the others.

The noise is discrete Gaussian [Canonne, Kamath, Steinke, NeurIPS 2020], drawn exactly, and accounted for by OpenDP. With
several parties there is as much noise as all of them drew; what is promised counts one party's alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from protocols.errors import InputError, explain
from securemodel.data import gaussian
from securemodel.shown import Shown

_LEAST, _MOST = 0.01, 2.0**20
_MOST_SCALE = 2.0**54


def discrete_gaussian(scale: float, count: int) -> torch.Tensor:
    """So many whole numbers of the discrete Gaussian distribution of parameter `scale`, int64, drawn by this party.

    All are 0 where `scale` is. Raises InputError for a scale that is none.
    """
    if scale == 0:
        return torch.zeros(count, dtype=torch.int64)
    if not gaussian.LEAST_SCALE <= scale <= gaussian.MOST_SCALE:
        raise InputError(explain(f"noise of scale {scale:g} cannot be drawn", fix="give one from 2^-64 to 2^58"))
    return torch.from_numpy(gaussian.draw(scale, count))


@dataclass(frozen=True)
class Noise:
    """How much noise each party adds to each total: of standard deviation `multiplier` times what one row may change.

    Neighbors are tables in which one row is another; their number of rows is public. Raises InputError.
    """

    multiplier: float

    def __post_init__(self) -> None:
        if not _LEAST <= self.multiplier <= _MOST:
            what = f"a noise of {self.multiplier} times what one row may change"
            raise InputError(explain(what, where="noise=", fix="give a number between 0.1 and 100; 1 is usual"))

    def draw(self, sensitivities: Sequence[float]) -> torch.Tensor:
        """A party's noise for as many totals, each of which one row changes by so much; int64. Raises InputError."""
        scales = [self.multiplier * sensitivity for sensitivity in sensitivities]
        _library()  # before anything is told that nobody could account for
        if any(scale > _MOST_SCALE for scale in scales):
            raise InputError(explain("this much noise has no room beside the totals", fix="give a smaller multiplier"))
        return torch.cat([discrete_gaussian(scale, len(list(same))) for scale, same in groupby(scales)])


@dataclass(frozen=True, repr=False)
class Spent(Shown):
    """What answers with noise tell of one row: zero-concentrated differential privacy of parameter `rho` for one row
    replaced by another, towards everybody but one party whose noise is its own secret [Bun and Steinke, TCC 2016].

    Those of several answers add up.
    """

    rho: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.rho + other.rho)

    def epsilon(self, delta: float) -> float:
        """The epsilon of (epsilon, delta)-differential privacy. Raises InputError for a delta that is none."""
        if not 0 < delta < 1:
            fix = "give less than one over the number of rows"
            raise InputError(explain(f"delta={delta} is not between 0 and 1", fix=fix))
        dp = _library()
        domain, metric = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="i64")
        mechanism = dp.m.make_gaussian(domain, metric, scale=1 / math.sqrt(2 * self.rho))
        return float(dp.c.make_zCDP_to_approxDP(mechanism).map(1).epsilon(delta))

    def __str__(self) -> str:
        return f"rho = {self.rho:.4g} (zCDP), for one row replaced by another; the noise of one party is counted"


def spent(noise: Noise, totals: int) -> Spent:
    """What so many totals with noise tell together."""
    return Spent(totals / (2 * noise.multiplier**2))


def _library() -> Any:
    try:
        import opendp.prelude as dp
    except ImportError as problem:
        what = "noise is accounted for by the package opendp, which is not installed"
        raise InputError(explain(what, fix="pip install 'securemodel[privacy]'")) from problem
    dp.enable_features("contrib")
    return dp
