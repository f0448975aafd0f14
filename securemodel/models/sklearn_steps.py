"""Preprocessing of scikit-learn, followed as one linear map of what owners compute of their columns in the clear.

A feature is b + sum of a_s (s - center_s) over sources s: numbers (scaled by a public power of two), and whether a column
is a category or missing. Scalers, encoders and projections change a, b and the centers, which stay secret; linear models
multiply their weights into a, so that a pipeline costs what its last step costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from protocols.errors import explain
from securemodel.errors import InputError
from securemodel.models.sources import Above, Equals, Number, Source, Sources, number_of

_MORE_BITS = 4
"""Numbers and weights have so many bits more each, so that what rounding them loses is small beside the result's."""


@dataclass(frozen=True)
class Taken:
    """A step that keeps the features at some places."""

    at: list[int]

    def transform(self, rows: np.ndarray) -> np.ndarray:
        return rows[:, self.at]


@dataclass
class Features:
    """The features after some steps, of `width` columns. `rows`: what the steps make of rows, for trees' thresholds.

    sources: K of them; center: float[K]; a: float[K, features]; b: float[features].
    """

    width: int
    sources: list[Source]
    center: np.ndarray
    a: np.ndarray
    b: np.ndarray
    steps: list[Any]

    @staticmethod
    def of_columns(width: int) -> Features:
        return Features(
            width, [Number(c) for c in range(width)], np.zeros(width), np.eye(width), np.zeros(width), []
        )  # fmt: skip

    @property
    def count(self) -> int:
        return self.a.shape[1]

    def after(self, step: Any) -> Features:
        """The features that a fitted step makes of these. Raises InputError for steps that are not read."""
        name = type(step).__name__
        if step == "passthrough" or step is None:
            return self
        if name not in _STEPS:
            raise InputError(
                explain(
                    f"no reader for the step {name}", where="securemodel.models.from_sklearn",
                    fix=f"steps that are read: {', '.join(sorted(_STEPS))}; others before the data are handed in",
                )
            )  # fmt: skip
        made = _STEPS[name](step, self)
        made.steps = [*self.steps, step]
        return made

    def times(self, weights: np.ndarray, bias: np.ndarray | float = 0.0) -> Features:
        """features @ weights + bias."""
        return Features(
            self.width, self.sources, self.center, self.a @ weights, self.b @ weights + bias, self.steps
        )  # fmt: skip

    def taken(self, at: Sequence[int]) -> Features:
        """Only the features at these places, in their order."""
        made = self.times(np.eye(self.count)[:, at])
        made.steps = [*self.steps, Taken(list(at))]
        return made

    def module(self, columns: Sequence[Sequence[int]]) -> Linear:
        """float[rows, features] of the columns of all owners."""
        if np.isnan(self.a).any():
            raise InputError(explain("an OrdinalEncoder that keeps missing values, before a model that has no place for them",
                                     fix="use its encoded_missing_value"))  # fmt: skip
        return Linear(self, columns)

    def bits(self, above: float | None) -> Features:
        """The features that say which columns are above a number."""
        if above is None:
            return self
        columns = _plain("binarize", self)
        return Features(
            self.width, [Above(c, above) for c in columns], np.zeros(len(columns)), np.eye(len(columns)),
            np.zeros(len(columns)), self.steps,
        )  # fmt: skip

    # ---- for trees
    def conditions(self, trees, nodes, features, thresholds, missing_left) -> dict[int, tuple[tuple, bool]]:
        """Conditions on columns for feature <= threshold, by what the steps themselves make of numbers and categories."""
        made: dict[int, tuple[tuple, bool]] = {}
        trees.single = False  # the steps see float64
        for feature in np.unique(features[nodes]):
            here = nodes[features[nodes] == feature]
            reads = sorted({self.sources[k].column for k in np.flatnonzero(self.a[:, feature])})
            if len(reads) > 1:
                raise InputError(
                    explain("a tree on features that mix columns", fix="give trees the columns themselves")
                )
            kinds = {type(self.sources[k]) for k in np.flatnonzero(self.a[:, feature])}
            if not reads:
                raise InputError(explain("a tree on a feature that is always the same", fix="leave that feature out"))
            find = self._by_number if Number in kinds else self._by_category
            for node, found in zip(
                here, find(trees, reads[0], feature, thresholds[here], missing_left[here]), strict=True
            ):
                made[int(node)] = found
        return made

    def _rows(self, column: int, values: np.ndarray, feature: int) -> np.ndarray:
        """One feature, as trees compare it, of rows that have these values in a column."""
        rows: Any = np.zeros((len(values), self.width))
        for source in self.sources:
            if isinstance(source, Equals) and source.column != column and not math.isnan(source.value):
                rows[:, source.column] = source.value
        rows[:, column] = values
        for step in self.steps:
            rows = step.transform(rows)
            rows = rows.toarray() if hasattr(rows, "toarray") else np.asarray(rows)
        return np.asarray(rows[:, feature], np.float64)

    def _by_number(self, trees, column, feature, thresholds, missing_left):
        """By bisection over codes: the steps are monotone in a column, and rounding in them is what it is."""
        at = next(k for k in np.flatnonzero(self.a[:, feature]) if isinstance(self.sources[k], Number))
        if self.a[at, feature] < 0:
            raise InputError(explain("a tree on a feature that falls where its column rises", fix="turn its sign"))
        compared = lambda values: self._rows(column, values, feature).astype(np.float32 if trees.float32 else float)
        low = np.full(len(thresholds), -(2**52) + 2**41)
        high = -low
        while (low < high).any():  # the least code of a value above the threshold
            middle = (low + high) // 2
            with np.errstate(over="ignore", invalid="ignore"):
                above = compared(number_of(middle)) > thresholds
            low, high = np.where(above, low, np.minimum(middle + 1, high)), np.where(above, middle, high)
        known = [s for s in self.sources if isinstance(s, Equals) and s.column == column and math.isnan(s.value)]
        number = cast(Number, self.sources[at])
        if known or number.missing is not None:
            instead = compared(np.full(1, math.nan))[0]
            lefts = [missing_left[i] if math.isnan(instead) else instead <= t for i, t in enumerate(thresholds)]
        else:
            lefts = list(missing_left)
        return [(trees.number(column, c, "low" if left else "high"), False) for c, left in zip(low, lefts, strict=True)]

    def _by_category(self, trees, column, feature, thresholds, missing_left):
        values = [s.value for s in self.sources if isinstance(s, Equals) and s.column == column]
        made = [self._rows(column, np.array([v]), feature)[0] for v in values]
        found = []
        for threshold, gone in zip(thresholds, missing_left, strict=True):
            left = [v for v, m in zip(values, made, strict=True) if (gone if math.isnan(m) else m <= threshold)]
            rest_left = self.b[feature] <= threshold
            right = [v for v in values if v not in left]
            found.append((trees.category(column, right), True) if rest_left else (trees.category(column, left), False))
        return found


class Linear(nn.Module):
    """(sources - center) @ weights + bias: float[rows, features]."""

    center: torch.Tensor
    weights: torch.Tensor
    other_weights: torch.Tensor
    bias: torch.Tensor

    def __init__(self, features: Features, columns: Sequence[Sequence[int]]) -> None:
        super().__init__()
        numbers = [k for k, s in enumerate(features.sources) if isinstance(s, Number) and features.a[k].any()]
        others = [k for k, s in enumerate(features.sources) if not isinstance(s, Number) and features.a[k].any()]
        finer = [_finer(cast(Number, features.sources[k])) for k in numbers]
        self.numbers = Sources(finer, columns) if numbers else None
        self.others = Sources([features.sources[k] for k in others], columns) if others else None
        more, a = 2.0**_MORE_BITS, torch.tensor(features.a)
        self.register_buffer("center", torch.tensor(features.center[numbers]) * more)
        self.register_buffer("weights", a[numbers] * more)
        self.register_buffer("other_weights", a[others])
        self.register_buffer("bias", torch.tensor(features.b))

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        made = self.bias
        if self.numbers is not None:
            made = made + ((self.numbers(*columns) - self.center) @ self.weights) * 2.0 ** (-2 * _MORE_BITS)
        if self.others is not None:
            made = made + self.others(*columns).double() @ self.other_weights
        return made if made.ndim > 1 else made.expand(len(columns[0]), len(made))


def _finer(source: Number) -> Number:
    return Number(source.column, source.exponent - _MORE_BITS, source.missing)


def _moved(step: Any, x: Features, shift: Any, scale: Any) -> Features:
    """(feature - shift) * scale; where a number makes one feature only, its center and its power of two follow."""
    shift, scale = np.broadcast_to(shift, x.count).astype(float), np.broadcast_to(scale, x.count).astype(float)
    sources, center, a, b = list(x.sources), x.center.copy(), x.a * scale, (x.b - shift) * scale
    for feature in np.flatnonzero(scale):
        numbers = [k for k in np.flatnonzero(a[:, feature]) if isinstance(sources[k], Number)]
        if len(numbers) == 1 and (a[numbers[0]] != 0).sum() == 1:
            k = numbers[0]
            source = cast(Number, sources[k])
            more = round(-math.log2(abs(a[k, feature])))
            sources[k] = Number(source.column, source.exponent + more, source.missing)
            center[k] = (center[k] - b[feature] / a[k, feature]) * 2.0**-more
            a[k, feature], b[feature] = a[k, feature] * 2.0**more, 0.0
    return Features(x.width, sources, center, a, b, x.steps)


def _standard(step: Any, x: Features) -> Features:
    return _moved(step, x, step.mean_ if step.with_mean else 0.0, 1 / step.scale_ if step.with_std else 1.0)


def _min_max(step: Any, x: Features) -> Features:
    if step.clip:
        raise InputError(explain("MinMaxScaler with clip=True", fix="clip before, or fit it without"))
    return _moved(step, x, -step.min_ / step.scale_, step.scale_)


def _max_abs(step: Any, x: Features) -> Features:
    return _moved(step, x, 0.0, 1 / step.scale_)


def _robust(step: Any, x: Features) -> Features:
    return _moved(step, x, step.center_ if step.with_centering else 0.0, 1 / step.scale_ if step.with_scaling else 1.0)


def _plain(step: Any, x: Features) -> list[int]:
    """The columns of features that are columns as they are; steps that look at values stand first."""
    if x.steps or not np.array_equal(x.a, np.eye(len(x.sources), x.count)[:, : x.count]) or x.b.any():
        chosen = [np.flatnonzero(x.a[:, f]) for f in range(x.count)]
        if any(len(c) != 1 or x.a[c[0], f] != 1 or x.b[f] for f, c in enumerate(chosen)):
            name = step if isinstance(step, str) else type(step).__name__
            raise InputError(explain(f"{name} after other steps", why="it looks at values", fix=f"put {name} first"))
        return [x.sources[c[0]].column for c in chosen]
    return [source.column for source in x.sources]


def _impute(step: Any, x: Features) -> Features:
    columns, count = _plain(step, x), x.count
    wanted = step.missing_values
    if not (isinstance(wanted, float) and math.isnan(wanted)):
        raise InputError(explain(f"SimpleImputer(missing_values={wanted!r})", fix="mark what is missing as NaN"))
    kept = [f for f in range(count) if not (isinstance(step.statistics_[f], float) and math.isnan(step.statistics_[f]))]
    sources: list[Source] = [Number(columns[f], 0, 0.0) for f in kept]
    sources += [Equals(columns[f], math.nan) for f in kept]
    a = np.vstack([np.eye(len(kept)), np.diag([float(step.statistics_[f]) for f in kept])])
    if step.add_indicator:
        marked = [columns[f] for f in step.indicator_.features_]
        place = {s.column: k for k, s in enumerate(sources) if isinstance(s, Equals)}
        a = np.hstack([a, np.array([[float(k == place[c]) for c in marked] for k in range(len(sources))])])
    return Features(x.width, sources, np.zeros(len(sources)), a, np.zeros(a.shape[1]), x.steps)


def _one_hot(step: Any, x: Features) -> Features:
    columns, sources, blocks = _plain(step, x), [], []
    if getattr(step, "_infrequent_enabled", False):
        raise InputError(
            explain("OneHotEncoder with infrequent categories", fix="encode all of them, or merge them before")
        )
    for column, known, dropped in zip(
        columns, step.categories_, step.drop_idx_ if step.drop_idx_ is not None else [None] * len(columns), strict=True
    ):
        values = category_numbers(known)
        sources += [Equals(column, value) for value in values]
        blocks.append(np.delete(np.eye(len(values)), [] if dropped is None else [dropped], axis=1))
    return _blocks(x, sources, blocks)


def _ordinal(step: Any, x: Features) -> Features:
    columns, sources, blocks = _plain(step, x), [], []
    if step.handle_unknown != "error" and not (
        isinstance(step.unknown_value, (int, float)) and step.unknown_value == step.unknown_value
    ):
        raise InputError(
            explain("OrdinalEncoder that makes NaN of unknown categories", fix="use another unknown_value")
        )
    unknown = 0.0 if step.handle_unknown == "error" else float(step.unknown_value)
    for column, known in zip(columns, step.categories_, strict=True):
        values = category_numbers(known)
        sources += [Equals(column, value) for value in values]
        codes = np.where(np.isnan(values), float(step.encoded_missing_value), np.arange(len(values)))
        blocks.append(codes[:, None] - unknown)
    made = _blocks(x, sources, blocks)
    made.b = made.b + unknown
    return made


def _blocks(x: Features, sources: list, blocks: list[np.ndarray]) -> Features:
    a, row, column = np.zeros((len(sources), sum(b.shape[1] for b in blocks))), 0, 0
    for block in blocks:
        a[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
    return Features(x.width, sources, np.zeros(len(sources)), a, np.zeros(a.shape[1]), x.steps)


def category_numbers(values: Any) -> list[float]:
    """Categories as a column has them: numbers as they are, other things by their place in the encoder's list."""
    values = np.asarray(values)
    if values.dtype.kind in "fiub":
        return [float(value) for value in values]
    return [
        math.nan if v is None or (isinstance(v, float) and math.isnan(v)) else float(at) for at, v in enumerate(values)
    ]


def _projection(step: Any, x: Features) -> Features:
    components = step.components_.T
    if getattr(step, "whiten", False):
        components = components / np.sqrt(step.explained_variance_)
    mean = getattr(step, "mean_", None)
    return x.times(components, 0.0 if mean is None else -(mean @ components))


def _chosen(step: Any, x: Features) -> Features:
    return x.times(np.eye(x.count)[:, step.get_support()])


def _identity(step: Any, x: Features) -> Features:
    if step.func is not None:
        raise InputError(explain("a FunctionTransformer with a function", fix="apply the function before"))
    return x


def _joined(step: Any, x: Features) -> Features:
    """ColumnTransformer: features of its parts side by side."""
    columns = _plain(step, x)
    parts = []
    for name, part, _ in step.transformers_:
        if part == "drop" or name == "drop":
            continue
        at = [int(c) for c in np.arange(x.count)[_positions(step, name)]]
        inner = Features.of_columns(x.width)
        inner = Features(
            x.width, [Number(columns[c]) for c in at], np.zeros(len(at)), np.eye(len(at)), np.zeros(len(at)), []
        )
        if len(at):
            for piece in part.named_steps.values() if type(part).__name__ == "Pipeline" else [part]:
                inner = inner.after(piece)
            parts.append((step.output_indices_[name], inner))
    parts.sort(key=lambda pair: pair[0].start)
    made = _blocks(x, [s for _, p in parts for s in p.sources], [p.a for _, p in parts])
    made.b = np.concatenate([p.b for _, p in parts])
    made.center = np.concatenate([p.center for _, p in parts])
    return made


def _positions(step: Any, name: str) -> Any:
    """Which columns a part of a ColumnTransformer reads."""
    return step._transformer_to_input_indices[name]


_STEPS = {
    "StandardScaler": _standard,
    "MinMaxScaler": _min_max,
    "MaxAbsScaler": _max_abs,
    "RobustScaler": _robust,
    "SimpleImputer": _impute,
    "OneHotEncoder": _one_hot,
    "OrdinalEncoder": _ordinal,
    "PCA": _projection,
    "TruncatedSVD": _projection,
    "IncrementalPCA": _projection,
    "GaussianRandomProjection": _projection,
    "SelectKBest": _chosen,
    "SelectPercentile": _chosen,
    "SelectFromModel": _chosen,
    "VarianceThreshold": _chosen,
    "RFE": _chosen,
    "RFECV": _chosen,
    "FunctionTransformer": _identity,
    "ColumnTransformer": _joined,
}
