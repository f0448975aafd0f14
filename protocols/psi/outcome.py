"""What an alignment gives one party."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Outcome:
    """What one party has of an alignment; rows are counted from 0. Which arrays there are depends on who learns.

    rows: joint rows; with learns="count" there are none, and `common` says how many ids are common.
    positions: int64[rows], one's own row at each joint row; where all learn, and at the party that learns.
    links: at the party that learns, by peer, int64[rows]: the place in that peer's list, -1 where it has no such id.
    order: at the peers of a party that learns, int64[own rows]: one's own row at each place of one's list.
    places: with learns="nobody", int64[own rows]: the joint row of each of one's own rows.
    """

    rows: int
    common: int | None = None
    positions: np.ndarray | None = field(default=None, repr=False)
    links: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)
    order: np.ndarray | None = field(default=None, repr=False)
    places: np.ndarray | None = field(default=None, repr=False)
