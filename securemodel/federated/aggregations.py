"""What can be aggregated: each is a description, of which a task makes its programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Literal

import torch

from protocols.errors import explain
from securemodel.errors import CompileError

Kind = Literal["sum", "scaled", "sorted", "closest", "custom", "norms"]
Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Aggregation:
    """`name` and the numbers say what is computed, `kind` how.

    weighted: by the clients' secret weights. bound: the norm that an update is checked against. rows: of projections that
    check updates, 0 for none. trim: the share of values left out at each end. edges: of bins. dishonest, keep: how many
    such clients there may be, and how many updates are chosen. `mixes`: whether updates are mixed before they are sorted.
    """

    name: str
    kind: Kind = "sum"
    weighted: bool = False
    bound: float | None = None
    rows: int = 0
    trim: float = 0.0
    edges: tuple[float, ...] = ()
    dishonest: int = 0
    keep: int = 0
    function: Function | None = None

    @property
    def mixes(self) -> bool:
        return self.kind == "sorted" and self.dishonest > 0

    def text(self) -> str:
        """What is computed, but for a function of one's own, in words that the task's digest is made of."""
        told = (
            self.name,
            self.kind,
            self.weighted,
            self.bound,
            self.rows,
            self.trim,
            self.edges,
            self.dishonest,
            self.keep,
        )
        return repr(told)


def _is_bound(x: object) -> bool:
    return isinstance(x, Real) and 0 < float(x) < float("inf")


ROWS = 64
"""Projections that check an update, by default: one that passes has at most 4.6 times the norm that it may have."""


def mean() -> Aggregation:
    """The mean of all updates: sums of shares, without any talk."""
    return Aggregation("mean")


def weighted_mean() -> Aggregation:
    """The mean of all updates, each as often as its client's secret weight says; the sum of weights is revealed, too."""
    return Aggregation("weighted_mean", weighted=True)


def norm_bounded_mean(
    bound: float, *, over: Literal["drop", "scale"] = "drop", weighted: bool = False, rows: int = ROWS
) -> Aggregation:
    """The mean of updates of Euclidean norm at most `bound`. Others are dropped by name, or scaled to it in secret.

    An update within the bound always counts; one beyond `projections.slack(rows)` times the bound never does (but for
    probabilities of 2^-40), and between them it depends on the projections whether it counts as it is ("drop"), or it is
    scaled by its exact norm, to 1 + 2^-13 times the bound at most ("scale"). Raises CompileError.
    """
    if not _is_bound(bound) or over not in ("drop", "scale") or type(rows) is not int or not 48 <= rows <= 1024:
        raise CompileError(
            explain(f"bound={bound}, over={over!r}, rows={rows} make no norm-bounded mean",
                    fix="give a bound above 0, over='drop' or 'scale', and 48 to 1024 rows")
        )  # fmt: skip
    if over == "scale" and weighted:
        raise CompileError(explain("weighted updates are dropped, not scaled", fix="leave out over= or weighted="))
    return Aggregation("norm_bounded_mean", "sum" if over == "drop" else "scaled", weighted, float(bound), rows)


def trimmed_mean(trim: float = 0.2, *, dishonest: int = 0, bound: float | None = None) -> Aggregation:
    """For each coordinate, the mean of the values left after the share `trim` of the smallest and of the largest, rounded
    down, is taken away.

    Where sites differ much, what is cut off may be what few of them know. With `dishonest`, the most clients that may lie,
    each update is replaced by the mean of all but so many, those nearest to it, before values are sorted (nearest neighbor
    mixing) [Allouah et al., AISTATS 2023]. Updates of norm beyond `bound` are dropped first, and counted among the
    dishonest. Raises CompileError.
    """
    if not isinstance(trim, Real) or not 0 <= trim < 0.5:
        raise CompileError(explain(f"trim={trim} leaves nothing", fix="give a share below 0.5, such as 0.2"))
    return _sorted("trimmed_mean", float(trim), dishonest, bound)


def median(*, dishonest: int = 0, bound: float | None = None) -> Aggregation:
    """For each coordinate, the median, or the mean of the two in the middle. `dishonest` and `bound`: as of `trimmed_mean`.

    Raises CompileError.
    """
    return _sorted("median", 0.5, dishonest, bound)


def _sorted(name: str, trim: float, dishonest: int, bound: float | None) -> Aggregation:
    if type(dishonest) is not int or dishonest < 0:
        what = f"dishonest={dishonest!r} is no number of clients"
        raise CompileError(explain(what, where=name, fix="give a whole number from 0 on"))
    if bool(dishonest) != (bound is not None) or not (bound is None or _is_bound(bound)):
        what = f"dishonest={dishonest} and bound={bound} do not go together"
        why = "updates are mixed with those nearest to them, and distances need a bound of norms"
        raise CompileError(explain(what, where=name, why=why, fix="give both, the bound above 0, or neither"))
    bound = None if bound is None else float(bound)
    return Aggregation(name, "sorted", bound=bound, rows=ROWS, trim=trim, dishonest=dishonest)


def krum(dishonest: int, *, bound: float, keep: int = 2) -> Aggregation:
    """The mean of the `keep` updates closest to their neighbors, with up to so many dishonest clients [Blanchard et al.,
    NeurIPS 2017]. Updates of norm beyond `bound` are dropped first; of equally close ones, the first by name are chosen. The
    aggregators learn which these are.

    Raises CompileError.
    """
    whole = type(dishonest) is int and type(keep) is int
    if not whole or dishonest < 0 or keep < 1 or not _is_bound(bound):
        what = f"dishonest={dishonest}, bound={bound}, keep={keep} choose no updates"
        raise CompileError(explain(what, fix="give whole numbers from 0 and 1 on, and a bound of norms above 0"))
    return Aggregation("krum", "closest", bound=float(bound), rows=ROWS, dishonest=dishonest, keep=keep)


def norm_histogram(edges: Sequence[float]) -> Aggregation:
    """How many updates have a norm below the first edge, between each two, and from the last one on; nothing else.

    Raises CompileError.
    """
    try:
        told = tuple(map(float, edges))
    except (TypeError, ValueError):
        told = ()
    if not 1 <= len(told) <= 64 or not all(map(_is_bound, told)) or any(a >= b for a, b in pairwise(told)):
        raise CompileError(explain("these edges make no bins", fix="give 1 to 64 growing numbers above 0"))
    return Aggregation("norm_histogram", "norms", bound=told[-1], rows=ROWS, edges=told)


def custom(function: Function, *, weighted: bool = False) -> Aggregation:
    """A function of one's own, `function(updates, weights)`, of tensors: (slots, n) and (slots,) to (n,).

    It is compiled as models are, of one call, in fixed point with 16 fractional bits at most: a quotient by weights is off by
    a few 2^-16 of what is divided. It must treat each column alike, since it sees some of the parameters at a time; what
    does not is refused when the first card is made. The rows of clients who are not there are zeros of weight 0; weights
    are 1, or the clients' own where `weighted`. Raises CompileError.
    """
    if not callable(function):
        what = f"a {type(function).__name__} is no function to aggregate with"
        raise CompileError(explain(what, fix="give function(updates, weights)"))
    return Aggregation("custom", "custom", weighted, rows=ROWS, function=function)
