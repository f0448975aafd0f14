"""Metrics of the order of scores, from bins: AUC, average precision, KS, lift, and the curves ROC, PR, gains, calibration.

A score from 0 to 1 falls into one of 256 bins of the same width. The number of a bin is two digits of base 16; with the
label it is the product of two unit vectors, 32 and 16 long, and summed over rows the histogram of both classes is one
matrix product. Within a bin the order of rows is not known: what that can change at most is measured from the same bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from protocols.errors import InputError, explain
from securemodel.data.decisions import cells_of, withheld
from securemodel.data.measured import FEW, Measured, Metric, Part, Tensors, Terms, number, too_few
from securemodel.data.quotients import at_least, on_grid, ratio, real

Scale = Literal["logit", "probability"] | tuple[float, float]
"""What scores are: logits, probabilities, or numbers between two public bounds."""
BINS = 256
_DIGIT = 16
_BELOW_ONE = 1 - 2.0**-12
_OUTER = 8 - 2.0**-12


# ---- sums over rows
def between(score: Tensor, scores: Scale) -> Tensor:
    """Scores brought between 0 and 1; of several classes, those of each against the rest."""
    if scores == "probability":
        return score
    if scores == "logit":
        return torch.sigmoid(score) if score.ndim == 1 else torch.softmax(score, 1)
    low, high = scores
    return (score - low) * (1 / (high - low))


def known_scale(scores: Scale) -> Scale:
    """What was said of scores, checked. Raises InputError."""
    if scores in ("logit", "probability"):
        return scores
    if isinstance(scores, tuple) and len(scores) == 2 and math.isfinite(scores[0]) and scores[0] < scores[1] < math.inf:
        return scores
    fix = '"logit", "probability", or (least, largest score)'
    raise InputError(explain(f"scores are no {scores!r}", fix=f"say what they are: {fix}"))


def truths(label: Tensor, classes: int) -> Tensor:
    """0 or 1 for each row; of several classes [rows, classes], each against the rest."""
    return label.long() if classes == 2 else F.one_hot(label.long(), classes)


def place(score: Tensor, scores: Scale) -> Tensor:
    """Scores as real numbers in [0, 256): the whole part is the bin.

    Logits are bent: bins are 1/40 wide up to 2, 1/8 up to 8, and what is further is in the first and last one. So they
    serve rare and frequent classes, and take no function but four comparisons.
    """
    if scores == "logit" and score.ndim == 1:
        return 128 + 8 * score.clamp(-_OUTER, _OUTER) + 32 * score.clamp(-2, 2)
    return between(score, scores).clamp(0, _BELOW_ONE) * BINS


def _histogram(label: Tensor, score: Tensor, weight: Tensor | None, scores: Scale, classes: int) -> dict[str, Tensor]:
    """Weights of rows [..., 2, 256] by class and bin; of several classes, one such table for each."""
    at = place(score, scores)
    high = torch.floor(at * (1 / _DIGIT)).long()
    low = F.one_hot(torch.floor(at).long() - _DIGIT * high, _DIGIT)
    both = F.one_hot(high + _DIGIT * truths(label, classes), 2 * _DIGIT)
    if weight is not None:
        low = low * weight.reshape(-1, *[1] * (low.ndim - 1))
    if classes > 2:
        both, low = both.permute(1, 2, 0), low.permute(1, 0, 2)
        return {"bins": (both @ low).reshape(classes, 2, BINS)}
    return {"bins": (both.T @ low).reshape(2, BINS)}


def _calibration(label: Tensor, score: Tensor, weight: Tensor | None, scores: Scale, bins: int) -> dict[str, Tensor]:
    """By bin of the probability: rows, positive rows, the sum of probabilities. Bins are right-closed, as scikit-learn's."""
    p = between(score, scores).clamp(0, 1)
    inside = F.one_hot(bins - 1 - torch.floor((1 - p).clamp(max=_BELOW_ONE) * bins).long(), bins)
    if weight is not None:
        inside = inside * weight.unsqueeze(1)
    return {"rows": inside.sum(0), "positive": inside.T @ label.long(), "scores": inside.to(p.dtype).T @ p}


def _part(scores: Scale, classes: int) -> Part:
    sums = partial(_histogram, scores=known_scale(scores), classes=classes)
    return Part(f"{BINS} bins of {scores!r}" + (f" of {classes} classes" if classes > 2 else ""), sums)


# ---- what the bins say
def _classes(totals: Tensors) -> tuple[Tensor, Tensor]:
    """(negative, positive) rows by bin."""
    bins = totals["bins"]
    return bins[..., 0, :], bins[..., 1, :]


def enough(negative: Tensor, positive: Tensor, terms: Terms) -> Tensor:
    """[both classes have as many rows as the minimum]; one number for each class that is held against the rest."""
    return at_least(negative, terms.least) * at_least(positive, terms.least)


def quotients(nums: Mapping[str, Tensor], den: Tensor, most: int, shown: Tensor) -> dict[str, Tensor]:
    """What is revealed of quotients that need `shown`; of several classes their mean, if all of them are shown."""
    if not shown.ndim:
        made = ratio(torch.stack(list(nums.values())) * shown, den, most)
        return {**dict(zip(nums, made, strict=True)), "shown": shown}
    together = 1 - at_least((1 - shown).sum(), 1)
    made = ratio(torch.stack(list(nums.values())) * together, den, most).sum(1) * (1 / shown.shape[0])
    return {**dict(zip(nums, made, strict=True)), "shown": together}


def _auc(totals: Tensors, terms: Terms) -> dict[str, Tensor]:
    """Pairs of a positive row above a negative one, half of those in one bin, over all pairs [Bamber 1975]."""
    negative, positive = _classes(totals)
    n, p = negative.sum(-1), positive.sum(-1)
    below = negative.cumsum(-1) - negative
    above, same = (positive * (2 * below + negative)).sum(-1), (positive * negative).sum(-1)
    most = 2 * (terms.most // 2 + 1) ** 2
    return quotients({"value": above, "error": same}, 2 * n * p, most, enough(n, p, terms))


def _ks(totals: Tensors, terms: Terms) -> dict[str, Tensor]:
    """The largest distance of the shares of both classes up to a score, as at the edges of bins."""
    negative, positive = _classes(totals)
    n, p = negative.sum(-1), positive.sum(-1)
    distance = (positive.cumsum(-1) * n - negative.cumsum(-1) * p).abs().amax()
    within = torch.stack([positive * n, negative * p]).amax()
    return quotients({"value": distance, "error": within}, n * p, (terms.most // 2 + 1) ** 2, enough(n, p, terms))


def _average_precision(totals: Tensors, terms: Terms) -> dict[str, Tensor]:
    """The mean over positive rows of the precision down to their bin; with it, the best and worst order within bins."""
    negative, positive = _classes(totals)
    n, p = negative.sum(), positive.sum()
    above, rows = positive.sum() - positive.cumsum(0), (negative + positive).sum() - (negative + positive).cumsum(0)
    shares = ratio(
        torch.stack([above + positive, above + positive, above]),
        torch.stack([rows + negative + positive, rows + positive, rows + negative]),
        terms.most,
    )
    sums = (shares * positive).sum(1)
    either = torch.stack([sums[1] - sums[0], sums[0] - sums[2]]).amax()
    value, error = (on_grid(x, 16) for x in (sums[0], either))
    return quotients({"value": value, "error": error}, p * 2**16, terms.most * 2**16, enough(n, p, terms))


def _lift(totals: Tensors, terms: Terms, top: float) -> dict[str, Tensor]:
    """The share of positive rows among those of the largest scores, over their share of all: the last bin in part."""
    negative, positive = (x.flip(0) for x in _classes(totals))
    rows = negative + positive
    n, p, every = negative.sum(), positive.sum(), rows.sum()
    wanted: Tensor | int = max(1, round(terms.rows * top))
    if terms.weighted:
        wanted = torch.floor(real(every) * top + 0.5).long()
    before = rows.cumsum(0) - rows
    inside = at_least(wanted - before, 1) * at_least(before + rows - wanted, 1)  # the bin that is taken in part
    whole = (positive * at_least(wanted - before - rows, 0)).sum()
    part, of, left = ((x * inside).sum() for x in (positive, rows, wanted - before))
    of = of + 1 - at_least(of, 1)
    above = whole * of + part * left
    made = quotients({"value": above, "error": part * of}, of * p, (terms.most + 1) ** 2, enough(n, p, terms))
    scale = terms.rows / wanted if isinstance(wanted, int) else ratio(every, _at_least_one(wanted), terms.most)
    return {**made, "value": made["value"] * scale, "error": made["error"] * scale}


def _at_least_one(x: Tensor) -> Tensor:
    return x + 1 - at_least(x, 1)


# ---- curves: cells of bins, none of fewer rows than the minimum
def _curve(totals: Tensors, terms: Terms) -> dict[str, Tensor]:
    """Running counts of both classes where a cell ends; bins of few rows are in one cell with their neighbors.

    With a power of two t of at least twice the minimum, a cell may end where the running count passes a multiple of t by
    no more than t less the minimum: so the next end, beyond the next multiple, is as many rows away.
    """
    negative, positive = _classes(totals)
    n, p = negative.sum(), positive.sum()
    rows = (negative + positive).cumsum(0)
    shown = enough(n, p, terms)
    counts = torch.stack([negative.cumsum(0), positive.cumsum(0)])
    if terms.least <= 1:
        return {"counts": counts * shown, "shown": shown}
    step = 2 ** (2 * terms.least - 1).bit_length()
    passed = torch.floor(real(rows) * (1 / step)).long()
    rest = rows - passed * step
    new = at_least(passed - torch.cat([passed[:1] * 0, passed[:-1]]), 1)
    near = 1 - at_least(rest, step - terms.least + 1)
    left = at_least(rows[-1] - rows, terms.least)
    ends = torch.cat([(new * near * left)[:-1], left[-1:] * 0 + 1]) * shown
    return {"counts": counts * ends, "ends": ends, "shown": shown}


def cells(shown: Tensors, terms: Terms) -> tuple[list[float], list[float], list[float]]:
    """(lower edges, negative and positive rows) of the cells of a revealed curve, from the largest score down."""
    ends = shown["ends"].tolist() if "ends" in shown else [1] * BINS
    negative, positive = (row.tolist() for row in shown["counts"] / terms.unit)
    at = [i for i, end in enumerate(ends) if end > 0.5]
    starts = [0, *[i + 1 for i in at[:-1]]]
    edges = [start / BINS for start in starts]
    counts = [[running[b] - (running[a] if a is not None else 0) for a, b in zip([None, *at[:-1]], at, strict=True)]
              for running in (negative, positive)]  # fmt: skip
    return edges[::-1], counts[0][::-1], counts[1][::-1]


def _running(values: list[float]) -> list[float]:
    made = [0.0]
    for value in values:
        made.append(made[-1] + value)
    return made


def threshold_of(edge: float, scores: Scale) -> float:
    """The score at an edge of bins, on its own scale."""
    if scores == "logit":
        at = 256 * edge - 128
        return -math.inf if edge <= 0 else at / 40 if abs(at) <= 80 else math.copysign(2 + (abs(at) - 80) / 8, at)
    return edge if scores == "probability" else scores[0] + edge * (scores[1] - scores[0])


def _read_curve(shown: Tensors, terms: Terms, name: str, scores: Scale) -> Measured:
    if number(shown, "shown") < 0.5:
        return Measured(name, why=too_few("rows of a class", terms))
    edges, negative, positive = cells(shown, terms)
    false, true = _running(negative), _running(positive)
    n, p = false[-1], true[-1]
    few = min(n, p) < FEW
    notes = (f"fewer than {FEW} rows of a class: the curve is uncertain, and nearly tells their scores",) if few else ()
    columns: dict[str, list[float]] = {"threshold": [math.inf, *[threshold_of(e, scores) for e in edges]]}
    called = [a + b for a, b in zip(false, true, strict=True)]
    if name == "roc":
        columns |= {"false_positive_rate": [x / n for x in false], "true_positive_rate": [x / p for x in true]}
    elif name == "pr":
        columns |= {
            "recall": [x / p for x in true],
            "precision": [1.0 if not c else t / c for t, c in zip(true, called, strict=True)],
        }
    else:
        columns |= {
            "rows": [c / (n + p) for c in called],
            "gain": [x / p for x in true],
            "lift": [(t / p) / (c / (n + p)) if c else 1.0 for t, c in zip(true, called, strict=True)],
        }
    return Measured(name, curve=columns, notes=notes, method=f"{len(edges)} of {BINS} bins")


def _read_bins(shown: Tensors, terms: Terms, name: str, how: str) -> Measured:
    if number(shown, "shown") < 0.5:
        return Measured(name, why=too_few("rows of a class", terms), method=how)
    notes = (f"fewer than {2 * FEW} rows: one class has fewer than {FEW}",) if terms.rows < 2 * FEW else ()
    return Measured(name, number(shown, "value"), number(shown, "error"), notes=notes, method=how)


def _binned(name: str, finish, scores: Scale, classes: int = 2) -> Metric:
    how = f"{BINS} bins" + (", one against the rest" if classes > 2 else "")
    return Metric(name, _part(scores, classes), name, finish, partial(_read_bins, name=name, how=how), classes)


def auc(scores: Scale = "logit", classes: int = 2) -> Metric:
    """The area under the ROC curve from bins, and how far the exact one can be; of several classes, one against the rest."""
    return _binned("auc", _auc, scores, classes)


def ks(scores: Scale = "logit") -> Metric:
    """The largest distance between the shares of both classes up to a score (Kolmogorov-Smirnov), from bins."""
    return _binned("ks", _ks, scores)


def average_precision(scores: Scale = "logit") -> Metric:
    """The mean precision over positive rows, as scikit-learn's, from bins."""
    return _binned("average_precision", _average_precision, scores)


def lift(scores: Scale = "logit", top: float = 0.1) -> Metric:
    """How many times more positive rows there are among the `top` share of the largest scores than among all."""
    if not 0 < top <= 1:
        raise InputError(explain(f"the top {top!r} of the rows is no share", fix="give a number above 0 and up to 1"))
    made = _binned("lift", partial(_lift, top=top), scores)
    how = f"the top {top:.3g}, {BINS} bins"
    return replace(made, shows=f"lift {top!r}", read=partial(_read_bins, name="lift", how=how))


def _of_cells(name: str, scores: Scale) -> Metric:
    read = partial(_read_curve, name=name, scores=known_scale(scores))
    return Metric(name, _part(scores, 2), "curve", _curve, read, curve=True)


def roc(scores: Scale = "logit") -> Metric:
    """The ROC curve at the edges of cells of bins, from the largest threshold down."""
    return _of_cells("roc", scores)


def pr(scores: Scale = "logit") -> Metric:
    """Precision and recall at the edges of cells of bins, from the largest threshold down."""
    return _of_cells("pr", scores)


def gains(scores: Scale = "logit") -> Metric:
    """Cumulative gains and lift: which share of the positive rows is among which share of the largest scores."""
    return _of_cells("gains", scores)


# ---- calibration
def _shown_calibration(totals: Tensors, terms: Terms) -> dict[str, Tensor]:
    rows = totals["rows"].reshape(1, -1)
    if terms.least <= 1:
        return {"cells": rows, "positive": totals["positive"], "scores": totals["scores"]}
    hidden = withheld(rows, terms)
    kept = 1 - hidden.reshape(-1)
    return {
        "cells": rows * (1 - hidden),
        "hidden": hidden,
        "positive": totals["positive"] * kept,
        "scores": totals["scores"] * kept,
    }


def _read_calibration(shown: Tensors, terms: Terms, bins: int) -> Measured:
    (rows,) = cells_of(shown, terms)
    full = [i for i, count in enumerate(rows) if count]
    positive, scores = (shown[name].double() / terms.unit for name in ("positive", "scores"))
    columns = {
        "from": [i / bins for i in full],
        "to": [(i + 1) / bins for i in full],
        "rows": [rows[i] for i in full],
        "predicted": [float(scores[i]) / float(rows[i] or 1) for i in full],
        "observed": [float(positive[i]) / float(rows[i] or 1) for i in full],
    }
    hidden = sum(count is None for count in rows)
    notes = (
        (f"{hidden} bins are withheld: of fewer than {terms.minimum} rows, or told by such a one",) if hidden else ()
    )
    why = "" if full else too_few("rows in any bin", terms)
    return Measured("calibration", curve=columns if full else {}, why=why, notes=notes, method=f"{bins} bins")


def calibration(scores: Scale = "logit", bins: int = 10) -> Metric:
    """By bin of the predicted probability: rows, the mean prediction, and the share of positive rows."""
    if not 2 <= bins <= 64:
        raise InputError(explain(f"{bins} bins of a calibration", fix="take from 2 to 64"))
    part = Part(f"calibration of {scores!r} in {bins}", partial(_calibration, scores=known_scale(scores), bins=bins))
    return Metric(
        "calibration", part, "calibration", _shown_calibration, partial(_read_calibration, bins=bins), curve=True
    )
