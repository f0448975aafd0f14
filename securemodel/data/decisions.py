"""Metrics of decisions: accuracy, confusion matrix, precision, recall, F1, and the k likeliest classes.

Two classes are told apart at a threshold of the score, more by the largest score. What is summed are whole numbers, so
counts are exact. Names, averages and what happens without predictions follow scikit-learn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from protocols.errors import InputError, explain
from securemodel.data.measured import Measured, Metric, Part, Tensors, Terms, number, too_few
from securemodel.data.quotients import at_least, ratio

Average = Literal["binary", "macro", "micro", "weighted"]


# ---- sums over rows
def _weighted(x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else x * weight


def _of_two(label: Tensor, score: Tensor, weight: Tensor | None, threshold: float) -> dict[str, Tensor]:
    """Rows that are positive, called positive, both, and all (of weighted ones)."""
    positive = _weighted(label.long(), weight)
    called = (score >= threshold).long()
    sums = {"positive": positive.sum(), "called": _weighted(called, weight).sum(), "both": (called * positive).sum()}
    return sums if weight is None else {**sums, "rows": weight.sum()}


def _of_classes(label: Tensor, score: Tensor, weight: Tensor | None, classes: int) -> dict[str, Tensor]:
    """The matrix of rows by class and by the class that they are called."""
    truth = F.one_hot(label.long(), classes)
    truth = truth if weight is None else truth * weight.unsqueeze(1)
    return {"matrix": truth.T @ F.one_hot(score.argmax(1), classes)}


def _of_places(label: Tensor, score: Tensor, weight: Tensor | None, k: int) -> dict[str, Tensor]:
    """Rows whose class is among the k of the largest scores: fewer than k are above it."""
    own = (score * F.one_hot(label.long(), score.shape[1])).sum(1, keepdim=True)
    hit = ((score > own).long().sum(1) < k).long()
    sums = {"hits": _weighted(hit, weight).sum()}
    return sums if weight is None else {**sums, "rows": weight.sum()}


def _part(threshold: float, classes: int) -> Part:
    if classes > 2:
        return Part(f"the matrix of {classes} classes", partial(_of_classes, classes=classes))
    return Part(f"decisions at {threshold!r}", partial(_of_two, threshold=threshold))


def matrix(totals: Tensors, terms: Terms) -> Tensor:
    """Rows by true class (down) and by the class they are called (across)."""
    if "matrix" in totals:
        return totals["matrix"]
    hits, missed = totals["both"], totals["positive"] - totals["both"]
    false = totals["called"] - hits
    rest = totals.get("rows", terms.rows) - totals["positive"] - false
    return torch.stack([torch.stack([rest, false]), torch.stack([missed, hits])])


# ---- a rate: two counts that are revealed, or of weighted rows their quotient
def rate(num: Tensor, den: Tensor, terms: Terms) -> dict[str, Tensor]:
    """What is revealed of num / den: nothing but zeros where den is of fewer rows than the minimum."""
    if terms.weighted:
        quotient, enough = ratio(num, den, terms.most), at_least(den, terms.least)
        return {"value": quotient * enough, "shown": enough}
    if terms.least > 1:
        enough = at_least(den, terms.least)
        num, den = num * enough, den * enough
    return {"num": num, "den": den}


def read_rate(shown: Tensors, terms: Terms, name: str, of: str, threshold: float | None = None) -> Measured:
    """The rate that was revealed, or why there is none; `of` says which rows are below its line."""
    if "value" in shown:
        value = number(shown, "value") if number(shown, "shown") > 0.5 else None
    else:
        value = number(shown, "num") / number(shown, "den") if number(shown, "den") > 0.5 else None
    return Measured(name, value, threshold=threshold, why="" if value is not None else too_few(of, terms))


# ---- accuracy, precision, recall, F1
def _parts_of_rates(m: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """(above, below the line) of each class."""
    right, true, called = m.diagonal(), m.sum(1), m.sum(0)
    return {"precision": (right, called), "recall": (right, true), "f1": (2 * right, true + called)}


_OF = {
    "precision": "rows called positive",
    "recall": "positive rows",
    "f1": "rows that are positive, or are called so",
    "accuracy": "rows",
}


def _accuracy(totals: Tensors, terms: Terms) -> dict[str, Tensor]:
    right = matrix(totals, terms).diagonal().sum()
    if not terms.weighted:
        return {"num": right}
    return rate(right, matrix(totals, terms).sum(), terms)


def _read_accuracy(shown: Tensors, terms: Terms, name: str, threshold: float | None) -> Measured:
    if not terms.weighted:
        if terms.rows < terms.least:
            return Measured(name, threshold=threshold, why=too_few("rows", terms))
        return Measured(name, number(shown, "num") / terms.rows, threshold=threshold)
    return read_rate(shown, terms, name, "rows", threshold)


def _one_rate(totals: Tensors, terms: Terms, which: str) -> dict[str, Tensor]:
    """That of the positive class."""
    num, den = _parts_of_rates(matrix(totals, terms))[which]
    num, den = num[1], den[1]
    return rate(num, den, terms)


def _averaged(totals: Tensors, terms: Terms, which: str, average: Average) -> dict[str, Tensor]:
    """The mean over classes, and how many have no row below the line and count as 0, as in scikit-learn; off by 2^-15."""
    m = matrix(totals, terms)
    num, den = _parts_of_rates(m)[which]
    rates, most = ratio(num, den, 2 * terms.most), terms.most
    true = m.sum(1)
    if average == "weighted":
        value = (rates * ratio(true, m.sum(), most)).sum()
        missing = ((1 - at_least(den, 1)) * at_least(true, 1)).sum()
    else:  # classes with neither rows nor calls are no classes to scikit-learn
        met = at_least(true + m.sum(0), 1)
        value = rates.sum() * ratio(_one(met), met.sum(), m.shape[0])
        missing = ((1 - at_least(den, 1)) * met).sum()
    if terms.least <= 1:
        return {"value": value, "missing": missing}
    few = at_least(true, 1) - at_least(true, terms.least)  # classes of which too little is known to say anything
    enough = 1 - at_least(few.sum(), 1)
    return {"value": value * enough, "missing": missing * enough, "shown": enough}


def _one(like: Tensor) -> Tensor:
    """The whole number 1, as secret as another."""
    return like.sum() * 0 + 1


def _read_average(shown: Tensors, terms: Terms, name: str, average: str) -> Measured:
    if "shown" in shown and number(shown, "shown") < 0.5:
        return Measured(name, why=too_few("rows of some class", terms), method=average)
    missing = int(number(shown, "missing") + 0.5)
    note = f"{missing} classes have nothing to divide by and count as 0" if missing else ""
    return Measured(name, number(shown, "value"), notes=(note,) if note else (), method=average)


def accuracy(threshold: float = 0.5, classes: int = 2) -> Metric:
    """The share of rows that are called what they are; one count is revealed."""
    at = threshold if classes == 2 else None
    read = partial(_read_accuracy, name="accuracy", threshold=at)
    return Metric("accuracy", _part(threshold, classes), "accuracy", _accuracy, read, classes)


def _of_rate(which: str, threshold: float, classes: int, average: Average | None) -> Metric:
    average = average or ("binary" if classes == 2 else "macro")
    part = _part(threshold, classes)
    if average == "micro":  # every row has one class and is called one
        made = accuracy(threshold, classes)
        read = partial(_read_accuracy, name=f"{which} (micro)", threshold=threshold if classes == 2 else None)
        return Metric(which, part, made.shows, made.finish, read, classes)
    if average == "binary":
        if classes != 2:
            fix = 'average="macro", "micro" or "weighted"'
            raise InputError(explain(f'{which} of {classes} classes is no "binary" one', fix=f"choose {fix}"))
        read = partial(read_rate, name=which, of=_OF[which], threshold=threshold)
        return Metric(which, part, which, partial(_one_rate, which=which), read)
    if average not in ("macro", "weighted"):
        raise InputError(explain(f"no average is called {average!r}", fix="binary, macro, micro or weighted"))
    finish: Callable[..., dict[str, Tensor]] = partial(_averaged, which=which, average=average)
    return Metric(
        which, part, f"{which} {average}", finish, partial(_read_average, name=which, average=average), classes
    )


def precision(threshold: float = 0.5, classes: int = 2, average: Average | None = None) -> Metric:
    """The share of rows called positive that are; two counts are revealed, of several classes their average."""
    return _of_rate("precision", threshold, classes, average)


def recall(threshold: float = 0.5, classes: int = 2, average: Average | None = None) -> Metric:
    """The share of positive rows that are called so; two counts are revealed, of several classes their average."""
    return _of_rate("recall", threshold, classes, average)


def f1(threshold: float = 0.5, classes: int = 2, average: Average | None = None) -> Metric:
    """The harmonic mean of precision and recall; two counts are revealed, of several classes their average."""
    return _of_rate("f1", threshold, classes, average)


# ---- the confusion matrix
def withheld(cells: Tensor, terms: Terms) -> Tensor:
    """[cell is withheld], for counts [rows, cells]: small ones, and where a row has one, its smallest other cell.

    Whoever knows the sum of a row would find a small cell that is alone.
    """
    small = 1 - at_least(cells, terms.least)
    alone = at_least(small.sum(1, keepdim=True), 1) - at_least(small.sum(1, keepdim=True), 2)
    others = cells + small * (terms.most + 1)
    least = (others == others.amin(1, keepdim=True)).long()
    return small + (1 - small) * least * alone


def _confusion(totals: Tensors, terms: Terms) -> dict[str, Tensor]:
    cells = matrix(totals, terms)
    if terms.least <= 1:
        return {"cells": cells}
    hidden = withheld(cells, terms)
    return {"cells": cells * (1 - hidden), "hidden": hidden}


def cells_of(shown: Tensors, terms: Terms) -> list[list[float | None]]:
    """Counts as they were revealed; None where one was withheld."""
    hidden = shown["hidden"].tolist() if "hidden" in shown else (shown["cells"] * 0).tolist()
    return [
        [None if h > 0.5 else _plain(c / terms.unit) for c, h in zip(row, flags, strict=True)]
        for row, flags in zip(shown["cells"].tolist(), hidden, strict=True)
    ]


def _plain(x: float) -> float:
    return int(x) if x == int(x) else x


def _read_confusion(shown: Tensors, terms: Terms, threshold: float | None) -> Measured:
    cells = cells_of(shown, terms)
    hidden = sum(cell is None for row in cells for cell in row)
    notes = (
        (f"{hidden} cells are withheld: of fewer than {terms.minimum} rows, or told by such a one",) if hidden else ()
    )
    return Measured("confusion", threshold=threshold, curve={"matrix": cells}, notes=notes, method="true class down")


def confusion(threshold: float = 0.5, classes: int = 2) -> Metric:
    """Counts by true class (down) and by what rows are called (across); counts below the minimum are withheld."""
    read = partial(_read_confusion, threshold=threshold if classes == 2 else None)
    return Metric("confusion", _part(threshold, classes), "confusion", _confusion, read, classes)


# ---- the k likeliest classes
def _top_k(totals: Tensors, terms: Terms) -> dict[str, Tensor]:
    if not terms.weighted:
        return {"num": totals["hits"]}
    return rate(totals["hits"], totals["rows"], terms)


def top_k(k: int = 5, classes: int = 0) -> Metric:
    """The share of rows whose class has one of the k largest scores; one count is revealed.

    A class of the same score as that of the k-th counts as being above it only if it is larger.
    """
    name = f"top_{k}"
    read = partial(_read_accuracy, name=name, threshold=None)
    return Metric(name, Part(f"the {k} likeliest", partial(_of_places, k=k)), name, _top_k, read, classes)
