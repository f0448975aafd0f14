"""Evaluates a model on the rows of a joint table: metrics of scores and labels that nobody sees.

The owners prepare their columns in the clear, the model and the metrics run under encryption, and what is asked for, and
nothing else, is revealed to whom it is for. Metrics that need the same sums over rows share them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from protocols.errors import InputError, explain
from protocols.names import EVERYBODY, PUBLIC
from securemodel.data.answers import warn_of_scores
from securemodel.data.column import Column
from securemodel.data.curves import Scale
from securemodel.data.joint import Joint
from securemodel.data.measured import Measured, Metric, Part, Terms, weight_unit, whole_weights
from securemodel.data.metrics import CLASSIFICATION, named
from securemodel.data.prepared import Columns, Whole
from securemodel.data.query import CompiledQuery, Query
from securemodel.data.report import write
from securemodel.planning.costs import Network
from securemodel.shown import Shown
from securemodel.training.datasets import Owned

Model = nn.Module | Callable[..., Tensor]
DEFAULT = ("accuracy", "f1", "auc", "log_loss")
_OPENED = 64  # numbers of a row that a metric opens: bounds what a block of rows takes in memory
_PERFECT = 0.9995
"""Of a model, where it is more likely that it was given the label."""
_LABEL, _WEIGHT, _MODEL = "label", "weight {}", "model {}"


@dataclass(frozen=True, repr=False)
class Evaluation(Shown):
    """What an evaluation found, by metric, at one party: those that others alone learn say so.

    `facts`: what is public of it, by name: rows, parties, digests of schema, rows and programs, and what was revealed to whom.
    """

    metrics: Mapping[str, Measured]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Measured:
        """A metric by name. Raises InputError for one that was not asked for."""
        if name not in self.metrics:
            raise InputError(explain(f"{name!r} was not evaluated", fix=f"there are {', '.join(self.metrics)}"))
        return self.metrics[name]

    def __str__(self) -> str:
        rows = f"{self.facts['rows']:,} rows" if "rows" in self.facts else ""
        lines = [str(made) + "".join(f"\n  {note}" for note in made.notes) for made in self.metrics.values()]
        return "\n".join([rows, *lines] if rows else lines)

    def save(self, path: str | Path, *, ledger: str | Path | Sequence[Mapping[str, Any]] = ()) -> Path:
        """Writes a report as one HTML page, and the same numbers beside it as JSON (report.html, report.json).

        `ledger`: lines that the report is to list, or a ledger's file. Curves need matplotlib. Raises FileError, LedgerError,
        ConfigError, InputError.
        """
        return write(self.metrics, self.facts, Path(path), ledger)


@dataclass(frozen=True, repr=False)
class Asked:
    """An evaluation that was asked for: what it costs and reveals (`plan`), and its answer (`run`)."""

    joint: Joint
    metrics: tuple[Metric, ...]
    terms: Terms
    queries: tuple[CompiledQuery, ...]
    places: Mapping[int, tuple[int, str]]  # for each metric the query that computes it, and how its results are called
    reveal: Mapping[str, str]

    def plan(self, network: str | Network = "lan") -> str:
        """Rounds, bytes and seconds, and what is revealed to whom."""
        return "\n".join(str(query.plan(network)) for query in self.queries)

    def run(self) -> Evaluation:
        """Computes it together with the other parties, which all do the same. Raises PeerError, Mismatch."""
        found = [self.joint.ask(query) for query in self.queries]
        made = {m.name: self._read(at, m, found) for at, m in enumerate(self.metrics)}
        for name in ("auc", "r2"):
            if name in made and (value := made[name].value) is not None and value >= _PERFECT:
                warn_of_scores(name, value)
        return Evaluation(made, self._facts())

    def _read(self, at: int, metric: Metric, found: list[dict[str, Tensor | None]]) -> Measured:
        query, prefix = self.places[at]
        shown = {name[len(prefix) :]: x for name, x in found[query].items() if name.startswith(prefix)}
        mine = {name: x for name, x in shown.items() if x is not None}
        if len(mine) < len(shown):
            return Measured(metric.name, why=f"revealed to {self.reveal[metric.name]} alone")
        return metric.read(mine, self.terms)

    def _facts(self) -> dict[str, Any]:
        return {
            "rows": self.joint.rows,
            "weighted": self.terms.weighted,
            "minimum": self.terms.minimum,
            "parties": list(self.joint.parties),
            "schema": self.joint.schema.digest,
            "data": self.joint.digest,
            "programs": [piece.program.digest for query in self.queries for piece in query.pieces],
            "revealed": dict(self.reveal),
            "costs": [
                {"query": p.name, "rounds": p.rounds, "sent_bytes": dict(p.sent_bytes), "dealt_bytes": p.dealt_bytes}
                for p in (query.plan() for query in self.queries)
            ],
        }


def evaluate(
    model: Model,
    joint: Joint,
    *,
    label: str,
    metrics: str | Metric | Sequence[str | Metric] = DEFAULT,
    reveal: str | Mapping[str, str] = EVERYBODY,
    **settings: Any,
) -> Evaluation:
    """Metrics of a model on the rows of a joint table, computed with the other parties; all call it with the same.

    `model`: `prepared.then(model)`, a module that takes one float32[rows, columns] for each owner of columns, or such a
    function; it returns scores [rows], [rows, 1] or, of several classes, [rows, classes]. `label`: a boolean or category, or
    a number for a regression. `metrics`: names or metrics of `data.metrics`. `reveal`: who learns them: a party, "all", or
    either by name of metric. `settings`: those of `asked`. Raises InputError, UnsupportedOperator, PeerError, Mismatch.
    """
    return asked(model, joint, label=label, metrics=metrics, reveal=reveal, **settings).run()


def asked(
    model: Model,
    joint: Joint,
    *,
    label: str,
    metrics: str | Metric | Sequence[str | Metric] = DEFAULT,
    reveal: str | Mapping[str, str] = EVERYBODY,
    columns: Mapping[str, Sequence[str]] | None = None,
    weights: str = PUBLIC,
    scores: Scale = "logit",
    threshold: float | None = None,
    exact: bool = False,
    weight: str | None = None,
) -> Asked:
    """An evaluation that is compiled and not run yet: its `plan` says what it costs and what it reveals to whom.

    `columns`: by owner ("features" where rows are split), those that the model takes; by default all but label and weight,
    in the schema's order. `weights`: who owns the model's parameters; other parties may have it on the meta device.
    `scores`: whether the model returns logits, probabilities, or numbers from a least to a largest one. `threshold`: from
    which score on a row counts as positive; by default 0 of logits. `exact`: by sorting, in place of bins. `weight`: a column
    of weights of rows, which stay secret. Raises InputError, with all that is wrong with names, and UnsupportedOperator.
    """
    told = joint.column(label)
    classes = len(told.labels) or 2
    if told.kind == "number" or (told.kind in ("integer", "date") and (told.low, told.high) != (0, 1)):
        metrics = _of_regression(metrics)
        center, scale = (told.low + told.high) / 2, max((told.high - told.low) / 2, 2.0**-16)
        chosen = named(metrics, scores=scores, scale=scale, center=center)
    else:
        chosen = named(metrics, scores=scores, classes=classes, threshold=threshold, exact=exact)
        if wrong := [m.name for m in chosen if m.classes not in (0, classes)]:
            what = f"{', '.join(wrong)} is of another number of classes than the {classes} of {label!r}"
            raise InputError(explain(what, fix=f"give it classes={classes}"))
    if doubled := {m.name for m in chosen if [c.name for c in chosen].count(m.name) > 1}:
        raise InputError(
            explain(f"{', '.join(sorted(doubled))} is asked for twice", fix="evaluate again for the second")
        )
    to = _receivers(reveal, chosen)
    rows, terms = _rows(model, joint, told, columns, weight)
    if joint.rows < joint.schema.minimum:
        raise InputError(explain(
            f"{joint.rows} rows are fewer than the schema's minimum of {joint.schema.minimum}",
            why="nothing is revealed of so few", fix="evaluate more rows",
        ))  # fmt: skip
    scored, beside = _scored(model, weights, [n for n in rows if n not in (_LABEL, *_weights_in(rows))])
    return _compiled(joint, chosen, to, rows, terms, scored, beside)


def _of_regression(metrics: str | Metric | Sequence[str | Metric]) -> str | Metric | Sequence[str | Metric]:
    if metrics is DEFAULT:
        return ("mse", "mae", "r2")
    wanted = [metrics] if isinstance(metrics, (str, Metric)) else list(metrics)
    if wrong := [m for m in wanted if isinstance(m, str) and m in CLASSIFICATION]:
        what = f"the label is a number, and {', '.join(wrong)} is of classes"
        raise InputError(explain(what, fix="ask for mse, rmse, mae or r2, or take a label of 0 and 1"))
    return wanted


def _receivers(reveal: str | Mapping[str, str], chosen: Sequence[Metric]) -> dict[str, str]:
    """Who learns each metric. Raises InputError."""
    if isinstance(reveal, str):
        return {metric.name: reveal for metric in chosen}
    names = [metric.name for metric in chosen]
    if set(reveal) != set(names):
        what = f"reveal names {', '.join(sorted(reveal))}, and the metrics are {', '.join(names)}"
        raise InputError(explain(what, fix="name a receiver for each of them"))
    by_shown: dict[tuple[str, str], str] = {}
    for metric in chosen:
        first = by_shown.setdefault((metric.part.name, metric.shows), metric.name)
        if reveal[first] != reveal[metric.name]:
            what = f"{first} and {metric.name} are read off the same numbers, and have different receivers"
            raise InputError(explain(what, fix="give them the same"))
    return dict(reveal)


# ---- rows: what owners give
def _rows(
    model: Model, joint: Joint, label: Column, columns: Mapping[str, Sequence[str]] | None, weight: str | None
) -> tuple[dict[str, tuple[Owned, ...]], Terms]:
    """Tensors of rows by argument: labels, features by owner, weights; and what is public of them."""
    real = joint.parts(label.name)[0].dtype.is_floating_point
    rows = {_LABEL: tuple(_float(part) if real else part for part in joint.parts(label.name))}
    rows |= _features(model, joint, columns, {label.name, weight})
    present: list[tuple[Owned, ...]] = [(owned,) for owned in joint.weights.values()]
    missing = joint.missing(label.name)
    if missing:
        present.append(tuple(map(_present, missing)))
    unit, heaviest = 1, 1.0
    if weight is not None:
        told = joint.column(weight)
        if told.low < 0 or told.kind == "category":
            raise InputError(explain(f"{weight!r} may be negative, or is no number", fix="weights are from 0 on"))
        heaviest = max(float(told.high), 2.0**-16)
        unit = weight_unit(joint.rows, heaviest) if told.kind == "number" else 1
        present.append(tuple(_whole(part, unit) for part in joint.parts(weight)))
    rows |= {_WEIGHT.format(at): parts for at, parts in enumerate(present)}
    return rows, Terms(joint.rows, bool(present), unit, heaviest, joint.schema.minimum)


def _weights_in(rows: Mapping[str, Any]) -> list[str]:
    return [name for name in rows if name.startswith(_WEIGHT.format(""))]


def _float(part: Owned) -> Owned:
    return part.made(lambda: part.tensor.float(), (), torch.float32)


def _present(missing: Owned) -> Owned:
    return missing.made(lambda: 1 - missing.tensor, (), torch.int64)


def _whole(part: Owned, unit: int) -> Owned:
    return part.made(lambda: whole_weights(part.tensor, unit), (), torch.int64)


def _features(
    model: Model, joint: Joint, columns: Mapping[str, Sequence[str]] | None, left_out: set[str | None]
) -> dict[str, tuple[Owned, ...]]:
    """What the model takes, by owner: prepared where the model says how, else columns as they are."""
    if isinstance(model, Whole):
        if columns is not None:
            raise InputError(explain("the prepared model says itself which columns it takes", fix="leave out columns="))
        owners = zip(model.inputs, model.owners, strict=True)
        return {who: _side_by_side(joint, model.columns[who], of) for who, of in owners}  # type: ignore[arg-type]
    if columns is None:
        columns = {}
        for name, told in joint.schema.columns.items():
            if name not in left_out and name not in joint.schema.keys:
                columns.setdefault(told.owner or "features", []).append(name)  # type: ignore[attr-defined]
    wrong = [f"{name!r}" for name, told in joint.schema.columns.items()
             if any(name in of for of in columns.values()) and told.missing]  # fmt: skip
    if wrong:
        fix = "fill them first: prepare = data.Pipeline(...).fit(train), and evaluate prepare.then(model)"
        raise InputError(explain(f"{', '.join(wrong)} may be missing, and the model takes numbers", fix=fix))
    if not columns:
        raise InputError(explain("no column is left for the model", fix="name some: columns={...}"))
    return {who: _side_by_side(joint, of, None) for who, of in columns.items()}


def _side_by_side(joint: Joint, names: Sequence[str], prepare: Columns | None) -> tuple[Owned, ...]:
    """Columns of one owner, or of all where rows are split, as one tensor; prepared in the clear by whoever has the rows."""
    values = [joint.parts(name) for name in names]
    gone = [joint.missing(name) for name in names]
    width = len(names) if prepare is None else sum(len(column.fields) for column in prepare.columns)
    made = []
    for at, first in enumerate(values[0]):
        given = [(x[at], None if m is None else m[at]) for x, m in zip(values, gone, strict=True)]
        if wrong := [name for name, (x, _) in zip(names, given, strict=True) if x.party != first.party]:
            raise InputError(explain(f"{wrong[0]!r} is not {first.party!r}'s", fix="name columns under their owner"))
        made.append(first.made(_joined(given, prepare), (width,), torch.float32))
    return tuple(made)


def _joined(given: Sequence[tuple[Owned, Owned | None]], prepare: Columns | None) -> Callable[[], Tensor]:
    def source() -> Tensor:
        parts = []
        for values, gone in given:
            x = values.tensor.double().reshape(-1, 1)
            parts.append(x if gone is None else x.masked_fill(gone.tensor.reshape(-1, 1) != 0, float("nan")))
        x = torch.cat(parts, 1)
        with torch.no_grad():
            return x.float() if prepare is None else prepare(x)

    return source


# ---- the model
def _scored(
    model: Model, weights: str, names: Sequence[str]
) -> tuple[Callable[[Mapping[str, Tensor]], Tensor], dict[str, Owned]]:
    """(scores of rows by argument name, the model's parameters as tensors of their owner)."""
    inner = model.model if isinstance(model, Whole) else model
    joined = isinstance(model, Whole)
    if not isinstance(inner, nn.Module):
        return lambda given: _flat(inner(*(given[name] for name in names))), {}
    inner = inner.eval()
    state = {name: x for name, x in inner.state_dict(keep_vars=True).items() if x.is_floating_point()}
    beside = {
        _MODEL.format(name): Owned(weights, x.detach() if x.device.type != "meta" else None, tuple(x.shape), x.dtype)
        for name, x in state.items()
    }

    def scores(given: Mapping[str, Tensor]) -> Tensor:
        own = {name: given[_MODEL.format(name)] for name in state}
        rows = [given[name] for name in names]
        return _flat(functional_call(inner, own, (torch.cat(rows, 1),) if joined else tuple(rows)))

    return scores, beside


def _flat(score: Tensor) -> Tensor:
    """[rows] for one score a row; the difference of both where a model has one for each of two classes."""
    if score.ndim == 2 and score.shape[1] == 1:
        return score.squeeze(1)
    return score[:, 1] - score[:, 0] if score.ndim == 2 and score.shape[1] == 2 else score


# ---- queries
def _compiled(
    joint: Joint,
    chosen: Sequence[Metric],
    to: Mapping[str, str],
    rows: Mapping[str, tuple[Owned, ...]],
    terms: Terms,
    scored: Callable[[Mapping[str, Tensor]], Tensor],
    beside: Mapping[str, Owned],
) -> Asked:
    """One query for what is summed block by block, one for what needs all rows at once; each computes a part once."""
    queries: list[Query] = []
    places: dict[int, tuple[int, str]] = {}
    for whole in (False, True):
        metrics = [(at, m) for at, m in enumerate(chosen) if m.part.whole == whole]
        if not metrics:
            continue
        if whole and terms.weighted and terms.heaviest * terms.unit > 1:
            fix = "leave out exact=True, or the weights"
            raise InputError(explain("sorting does not take weights of rows", fix=fix))
        parts = list({m.part.name: m.part for _, m in metrics}.values())
        shows = _shown_once([m for _, m in metrics])
        for at, metric in metrics:
            places[at] = (len(queries), _called(metric, shows) + " ")
        queries.append(_query([m for _, m in metrics], to, rows, terms, scored, beside, parts, whole))
    return Asked(joint, tuple(chosen), terms, tuple(joint.compiled(q) for q in queries), places, to)


def _shown_once(metrics: Sequence[Metric]) -> list[Metric]:
    """One metric for each set of numbers that is revealed."""
    return list({(m.part.name, m.shows): m for m in metrics}.values())


def _called(metric: Metric, shown: Sequence[Metric]) -> str:
    """What the results of a metric are called in plans: alone, or with the sums that they are of."""
    alone = sum(m.shows == metric.shows for m in shown) == 1
    return metric.shows if alone else f"{metric.shows} of {metric.part.name}"


def _query(
    metrics: Sequence[Metric],
    to: Mapping[str, str],
    rows: Mapping[str, tuple[Owned, ...]],
    terms: Terms,
    scored: Callable[[Mapping[str, Tensor]], Tensor],
    beside: Mapping[str, Owned],
    parts: Sequence[Part],
    whole: bool,
) -> Query:
    shows = {_called(m, _shown_once(metrics)): m for m in _shown_once(metrics)}
    places = {part.name: at for at, part in enumerate(parts)}

    def sums(**given: Tensor) -> dict[str, Tensor]:
        label, score, weight = given[_LABEL], scored(given), None
        for name in _weights_in(given):
            weight = given[name] if weight is None else weight * given[name]
        made = {}
        for at, part in enumerate(parts):
            made.update({f"part{at}_{name}": x for name, x in part.sums(label, score, weight).items()})
        return made

    def finish(**totals: Tensor) -> dict[str, Tensor]:
        made = {}
        for called, metric in shows.items():
            prefix = f"part{places[metric.part.name]}_"
            own = {name[len(prefix) :]: x for name, x in totals.items() if name.startswith(prefix)}
            made.update({f"{called} {name}": x for name, x in metric.finish(own, terms).items()})
        return made

    zeros = {name: torch.zeros((2, *p[0].shape[1:]), dtype=p[0].dtype) for name, p in rows.items()}
    with torch.no_grad():
        like = {name: torch.zeros(x.shape, dtype=x.dtype) for name, x in beside.items()}
        names = finish(**sums(**zeros, **like))
    receivers = {
        name: to[next(m.name for called, m in shows.items() if name.startswith(called + " "))] for name in names
    }
    given = sum(math.prod(parts_of[0].shape[1:]) for parts_of in rows.values())
    elements = given + _OPENED * sum(max(1, metric.classes - 1) for metric in shows.values())
    title = "evaluation: " + ", ".join(metric.name for metric in metrics)
    return Query(title, finish, receivers, rows, beside=beside, sums=sums, whole=whole, row_elements=elements)
