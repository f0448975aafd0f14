"""Metrics that are means: log-loss, Brier score, squared and absolute errors, R².

Scores are logits or probabilities. Targets of a regression are divided by a public `scale`, a power of two that brings
them near 1, so that squares have room and keep their digits; what is read is in the target's own unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from protocols.errors import InputError, explain
from securemodel.data.measured import Measured, Metric, Part, Tensors, Terms, number, too_few
from securemodel.data.quotients import at_least, mean, on_grid, ratio, shifted

Scores = Literal["logit", "probability"]
_LEAST = 2.0**-16
"""A probability counts as no smaller in a log-loss: the finest that the ring holds."""
_FINE = 26  # fractional bits of the variances whose quotient R² is
_LEAST_SPREAD = 2**10


def _probability(score: Tensor, scores: Scores) -> Tensor:
    if scores == "probability":
        return score
    return torch.sigmoid(score) if score.ndim == 1 else torch.softmax(score, 1)


def _log_loss(label: Tensor, score: Tensor, scores: Scores) -> Tensor:
    """Of each row."""
    if score.ndim == 1 and scores == "logit":
        return F.softplus(score) - score * label
    if score.ndim == 1:
        own = (1 - score) + (2 * score - 1) * label
        return -torch.log(own.clamp(min=_LEAST))
    truth = F.one_hot(label.long(), score.shape[1])
    if scores == "logit":
        return -(torch.log_softmax(score, 1) * truth).sum(1)
    return -torch.log((score * truth).sum(1).clamp(min=_LEAST))


def _brier(label: Tensor, score: Tensor, scores: Scores) -> Tensor:
    """Of each row: of two classes the square of one difference, of more the sum of all."""
    p = _probability(score, scores)
    return (p - label) ** 2 if score.ndim == 1 else ((p - F.one_hot(label.long(), score.shape[1])) ** 2).sum(1)


def _squares(label: Tensor, score: Tensor, scale: float) -> Tensor:
    return (score * (1 / scale) - label * (1 / scale)) ** 2


def _magnitudes(label: Tensor, score: Tensor, scale: float) -> Tensor:
    return (score * (1 / scale) - label * (1 / scale)).abs()


Rows = Callable[[Tensor, Tensor], Tensor]


def _summed(label: Tensor, score: Tensor, weight: Tensor | None, rows: Rows) -> dict[str, Tensor]:
    each = rows(label, score)
    return {"total": each.sum()} if weight is None else {"total": (each * weight).sum(), "rows": weight.sum()}


def _mean(totals: Tensors, terms: Terms) -> dict[str, Tensor]:
    if not terms.weighted:
        return {"total": totals["total"]}
    enough = at_least(totals["rows"], terms.least)
    return {"value": mean(totals["total"], totals["rows"], terms.most) * enough, "shown": enough}


def _read_mean(shown: Tensors, terms: Terms, name: str, factor: float) -> Measured:
    few = terms.rows < terms.least if not terms.weighted else number(shown, "shown") < 0.5
    if few:
        return Measured(name, why=too_few("rows", terms))
    return Measured(name, (number(shown, "value") if terms.weighted else number(shown, "total") / terms.rows) * factor)


def _mean_of(name: str, what: str, rows: Rows, factor: float = 1.0, classes: int = 2) -> Metric:
    part = Part(f"{name} {what}", partial(_summed, rows=rows))
    return Metric(name, part, name, _mean, partial(_read_mean, name=name, factor=factor), classes)


def log_loss(scores: Scores = "logit", classes: int = 2) -> Metric:
    """The mean of -log p of each row's class: off by at most 1e-4 for logits of two classes.

    Logarithms of probabilities, and those of several classes, are off by 2^-10 each; no probability counts as less than
    2^-16. One sum is revealed.
    """
    return _mean_of("log_loss", f"of {scores}", partial(_log_loss, scores=_known(scores)), classes=classes)


def brier(scores: Scores = "logit", classes: int = 2) -> Metric:
    """The mean squared difference of probability and class: off by at most 1e-4; one sum is revealed."""
    return _mean_of("brier", f"of {scores}", partial(_brier, scores=_known(scores)), classes=classes)


def _known(scores: str) -> Scores:
    if scores == "logit":
        return "logit"
    if scores == "probability":
        return "probability"
    raise InputError(explain(f"scores are no {scores!r} here", fix='say "logit" or "probability"'))


# ---- regression
def power_of_two(scale: float) -> float:
    """The power of two at a scale or above it. Raises InputError for a scale that is not positive."""
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(
            explain(f"the scale {scale!r} is no positive number", fix="give the size of the largest target")
        )
    return 2.0 ** math.ceil(math.log2(scale))


def mse(scale: float = 1.0) -> Metric:
    """The mean squared error; one sum is revealed. `scale`: no target or prediction is much larger."""
    scale = power_of_two(scale)
    return _mean_of("mse", f"at {scale!r}", partial(_squares, scale=scale), scale**2)


def rmse(scale: float = 1.0) -> Metric:
    """The root of the mean squared error, of the same sum."""
    inner = mse(scale)

    def read(shown: Tensors, terms: Terms) -> Measured:
        made = inner.read(shown, terms)
        return Measured("rmse", None if made.value is None else math.sqrt(made.value), why=made.why)

    return Metric("rmse", inner.part, inner.shows, inner.finish, read)


def mae(scale: float = 1.0) -> Metric:
    """The mean absolute error; one sum is revealed. `scale`: no target or prediction is much larger."""
    scale = power_of_two(scale)
    return _mean_of("mae", f"at {scale!r}", partial(_magnitudes, scale=scale), scale)


def _moments(label: Tensor, score: Tensor, weight: Tensor | None, scale: float, center: float) -> dict[str, Tensor]:
    target = (label - center) * (1 / scale)
    squares, rests = target**2, _squares(label, score, scale)
    if weight is None:
        return {"sum": target.sum(), "squares": squares.sum(), "rests": rests.sum()}
    return {
        "sum": (target * weight).sum(),
        "squares": (squares * weight).sum(),
        "rests": (rests * weight).sum(),
        "rows": weight.sum(),
    }


def _square_of(x: Tensor) -> Tensor:
    """x², with the digits beyond the 16th that a product leaves out."""
    high = torch.floor(x * 2.0**16).long()
    low = (x - shifted(high, 16)) * 2.0**16
    return shifted(high * high, 32) + (shifted(high, 16) * low) * 2.0**-15


def _r2(totals: Tensors, terms: Terms) -> dict[str, Tensor]:
    """1 - rests / (squares - sum² / rows), each divided by rows first."""
    rows = totals["rows"] if terms.weighted else torch.floor(totals["rests"] * 0).long() + terms.rows
    middle, squares, rests = mean(torch.stack([totals[name] for name in ("sum", "squares", "rests")]), rows, terms.most)
    spread, rest = (on_grid(x, _FINE) for x in (squares - _square_of(middle), rests))
    shown = at_least(spread, _LEAST_SPREAD)
    if terms.weighted:
        shown = shown * at_least(totals["rows"], terms.least)
    value = ratio((spread - rest) * shown, spread * shown, 2 ** (_FINE + 2))
    return {"value": value, "shown": shown}


def _read_r2(shown: Tensors, terms: Terms) -> Measured:
    if number(shown, "shown") < 0.5 or terms.rows < terms.minimum:
        return Measured(
            "r2", why=f"undefined or withheld: the targets hardly differ, or are fewer than {terms.minimum}"
        )
    return Measured("r2", number(shown, "value"))


def r2(scale: float = 1.0, center: float = 0.0) -> Metric:
    """The share of the targets' variance that predictions explain; it alone is revealed.

    `center`: about the middle of the targets, and `scale`: none is much further from it; both are public. Off by 2^-24 over
    the variance of the targets in units of `scale`, squared, and undefined where this is below 2^-16.
    """
    scale = power_of_two(scale)
    part = Part(f"squares at {scale!r} from {center!r}", partial(_moments, scale=scale, center=center))
    return Metric("r2", part, "r2", _r2, _read_r2)
