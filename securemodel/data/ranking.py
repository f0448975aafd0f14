"""Metrics of the exact order of scores, ties included: AUC, average precision, KS, by sorting under encryption.

Scores are whole numbers on a public grid, and the label is the digit below the last: one sorting network orders both, with
one number a row. Rows of the same score form a group, and counts at its beginning are handed on to all of its rows.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from securemodel.data.curves import Scale, between, enough, known_scale, quotients, truths
from securemodel.data.measured import FEW, Measured, Metric, Part, Tensors, Terms, number, too_few
from securemodel.data.quotients import real

_GRID = 16
LARGEST = 2.0**12
"""Logits stay below this in magnitude: a key of 16 fractional bits and the label then has 30 bits."""
_ABOVE = 2**29


def carried(new: Tensor, x: Tensor) -> Tensor:
    """For each row [rows, ...], x of the last row at or before it where `new` is 1; the first row's is 1.

    x [k, rows, ...] has k numbers a row. Pairs of rows become one, and again, and come apart again on the way back
    [Blelloch 1990]: twice log2(rows) products in a row, of 2 k rows numbers together.
    """
    return _carried(torch.cat([new.unsqueeze(0), x * new]))[1:]


def _carried(x: Tensor) -> Tensor:
    """x [1 + k, rows, ...]: whether there is something at a row, and what."""
    rows = x.shape[1]
    if rows == 1:
        return x
    paired = rows - rows % 2
    first, second = x[:, 0:paired:2], x[:, 1:paired:2]
    last = _carried(_after(first, second))
    before = torch.cat([x[:, :1] * 0, last], 1)[:, : (rows + 1) // 2]
    firsts = _after(before, x[:, 0::2])
    pairs = torch.stack([firsts[:, : rows // 2], last], 2).flatten(1, 2)
    return pairs if rows % 2 == 0 else torch.cat([pairs, firsts[:, -1:]], 1)


def _after(earlier: Tensor, later: Tensor) -> Tensor:
    return later + (1 - later[:1]) * earlier


def _order(label: Tensor, score: Tensor, weight: Tensor | None, scores: Scale, classes: int) -> dict[str, Tensor]:
    """Labels in ascending order of scores, negative rows first in a group, and where groups begin; [rows, 1 or classes].

    Absent rows, of weight 0, come first and count as negative.
    """
    at = score if classes == 2 and scores == "logit" else between(score, scores)
    key = 2 * torch.floor(at * 2.0**_GRID).long() + truths(label, classes)
    key = key.reshape(len(label), -1)
    if weight is not None:
        key = (key + _ABOVE) * weight.reshape(-1, 1)
    key = torch.sort(key.to(torch.int32), 0)[0].long()
    group = torch.floor(real(key) * 0.5).long()
    differs = (group[1:] > group[:-1]).long()
    new = torch.cat([differs[:1] * 0 + 1, differs]) if len(label) > 1 else torch.ones_like(key)
    absent = {} if weight is None else {"absent": len(label) - weight.sum()}
    return {"positive": key - 2 * group, "new": new, **absent}


def _part(scores: Scale, classes: int) -> Part:
    sums = partial(_order, scores=known_scale(scores), classes=classes)
    return Part(f"order of {scores!r}" + (f" of {classes} classes" if classes > 2 else ""), sums, True, True)


# ---- what the order says
def _counts(totals: Tensors, terms: Terms) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(negative, positive rows before each; negative, positive rows in all), absent ones among none."""
    positive = totals["positive"]
    above = positive.cumsum(0)
    places = torch.arange(len(positive)).reshape(-1, 1)
    absent = totals.get("absent", 0)
    n = len(positive) - above[-1] - absent
    return places - (above - positive) - absent, above - positive, n, above[-1]


def _shown(num: Tensor, den: Tensor, most: int, n: Tensor, p: Tensor, terms: Terms) -> dict[str, Tensor]:
    """The quotient of each class against the rest, where both have rows enough."""
    if len(num) == 1:
        num, den, n, p = num[0], den[0], n[0], p[0]
    return quotients({"value": num}, den, most, enough(n, p, terms))


def _auc(totals: Tensors, terms: Terms) -> dict[str, Tensor]:
    """Half of the negative rows below each positive one, and half of those below its group, over all pairs."""
    positive = totals["positive"]
    below, _, n, p = _counts(totals, terms)
    below_group = carried(totals["new"], below.unsqueeze(0))[0]
    pairs = (positive * (below + below_group)).sum(0)
    return _shown(pairs, 2 * n * p, 2 * (terms.rows // 2 + 1) ** 2, n, p, terms)


def _ks(totals: Tensors, terms: Terms) -> dict[str, Tensor]:
    """The largest distance where a group begins, beyond the first: there nothing is below, but absent rows."""
    below, above, n, p = _counts(totals, terms)
    if len(below) == 1:
        return _shown(p * 0, p, 1, n, p, terms)
    distance = ((below * p - above * n) * totals["new"])[1:].abs().amax(0)
    return _shown(distance, n * p, (terms.rows // 2 + 1) ** 2, n, p, terms)


def _average_precision(totals: Tensors, terms: Terms) -> dict[str, Tensor]:
    """The mean over positive rows of the precision down to the end of their group: of a public number of rows."""
    positive, new = totals["positive"], totals["new"]
    _, above, n, p = _counts(totals, terms)
    rows = len(positive)
    inverse = torch.floor(rows * 2.0**_GRID / torch.arange(rows, 0, -1).double() + 0.5).long().reshape(-1, 1)
    high, low = inverse // 2**_GRID, inverse % 2**_GRID
    at = carried(new, torch.stack([above, new * high * 2**_GRID + new * low]))
    shares = (p - at[0]) * at[1]  # precision times rows, in units of 2^-16
    total = (positive * shares).sum(0)
    return _shown(total, p * rows * 2**_GRID, rows**2 * 2**_GRID, n, p, terms)


def _read(shown: Tensors, terms: Terms, name: str, how: str) -> Measured:
    if number(shown, "shown") < 0.5:
        return Measured(name, why=too_few("rows of a class", terms), method=how)
    notes = (f"fewer than {2 * FEW} rows: one class has fewer than {FEW}",) if terms.rows < 2 * FEW else ()
    return Measured(name, number(shown, "value"), notes=notes, method=how)


def _sorted(name: str, finish, scores: Scale, classes: int = 2) -> Metric:
    how = "by sorting" + (", one against the rest" if classes > 2 else "")
    return Metric(name, _part(scores, classes), f"exact {name}", finish, partial(_read, name=name, how=how), classes)


def auc(scores: Scale = "logit", classes: int = 2) -> Metric:
    """The area under the ROC curve, ties included, off by less than 1e-5; of several classes, one against the rest.

    Scores are told apart if they differ by 2^-16; logits stay below 2^12 in magnitude.
    """
    return _sorted("auc", _auc, scores, classes)


def ks(scores: Scale = "logit") -> Metric:
    """The largest distance between the shares of both classes up to a score, ties included."""
    return _sorted("ks", _ks, scores)


def average_precision(scores: Scale = "logit") -> Metric:
    """The mean precision over positive rows, ties included, as scikit-learn's, off by less than 1e-4."""
    return _sorted("average_precision", _average_precision, scores)
