"""Fits of columns whose rows several parties have: each adds up its own rows in the clear, and totals are added in secret.

What a program reveals is a few numbers a column: counts, means of powers, bins of quantiles. Its cost does not depend on the
number of rows. Where nobody knows which rows count (hidden rows), features of rows take the place of totals, and the secret
weights are multiplied on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch

from protocols.errors import InputError, explain
from securemodel.data.asks import Ask, Fit, learnt
from securemodel.data.discretizing import Clip, KBinsDiscretizer
from securemodel.data.fields import Field
from securemodel.data.imputing import SimpleImputer
from securemodel.data.power import LAMBDAS, PowerTransformer, yeo_johnson
from securemodel.data.preprocess import Fields, Step
from securemodel.data.scaling import MinMaxScaler, RobustScaler, StandardScaler, moments
from securemodel.training.datasets import Owned

FINE_BITS = 24
"""Fractional bits of numbers that are only compared."""
MEAN_BITS = 40
"""Means of numbers from -0.5 to 0.5 are right to so many bits: owners round shares of them, which are added as whole numbers."""
FINE_BINS, COARSE_BINS = 1 << 16, 1 << 8
"""Bins within a column's public bounds, in which quantiles are found: of totals, and of hidden rows."""
_ROW = 256
_MOST_COMPARED = 1 << 20
"""Values of hidden rows that one program finds the largest of: at each party about 100 bytes of each."""


@dataclass(frozen=True, repr=False)
class Part:
    """Rows of one party: `x` gives them as float64[rows, features], NaN where missing, at their owner. `of`: what they are
    made of row by row."""

    of: Owned
    x: Callable[[], torch.Tensor]

    @property
    def party(self) -> str:
        return self.of.party

    @property
    def count(self) -> int:
        """How many rows there are in the joint table, in whose order queries read them; public."""
        return self.of.way.positions.shape[0] if self.of.way else self.of.shape[0]

    def features(self, make: Callable[[torch.Tensor], torch.Tensor], size: int) -> Owned:
        """What the owner makes of its rows, float64[rows, size], for a query."""
        return self.of.made(lambda: make(self.x()), (size,), torch.float64)


@dataclass(frozen=True, repr=False)
class Rows:
    """The rows of a feature. `weights`: 0/1 of each party, whose product is a row's weight; () if all count."""

    parts: tuple[Part, ...]
    weights: tuple[Owned, ...] = ()

    @property
    def hidden(self) -> bool:
        """Whether the owner does not know which of its rows count: then nobody can add up in the clear."""
        return bool(self.weights) or any(part.of.way for part in self.parts)

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts)

    def ask(
        self, what: str, size: int, features: Callable[[torch.Tensor], torch.Tensor],
        finish: Callable[[torch.Tensor], Mapping[str, torch.Tensor]], reveal: str, *,
        total: Callable[[torch.Tensor], torch.Tensor] | None = None, scale: torch.Tensor | float = 1.0,
    ) -> Ask:  # fmt: skip
        """Asks for the result `reveal` of what `finish` makes of the sum over all rows of `features` ([rows, size]).

        Of known rows the sum comes as whole numbers: `scale` times it, rounded by each party. Of hidden rows it is a real
        number, without the scale. `total`: the same sum over rows at once, where that is cheaper.
        """
        if not self.hidden:
            made = total or (lambda x: features(x).sum(0))
            source = lambda part: lambda: _halves((made(part.x()).double() * scale).round().long())
            once = {part.party: Owned(part.party, source(part), (2, size), torch.int64) for part in self.parts}
            return Ask(what, lambda **sent: finish(_whole(sum(sent.values()))), {reveal: "all"}, once=once)
        sums = lambda **rows: {"total": _weighed(**rows).sum(0)}
        return Ask(what, lambda total: finish(total), {reveal: "all"}, rows=self.secret(features, size), sums=sums)

    def ask_largest(self, what: str, size: int, features: Callable[[torch.Tensor], torch.Tensor], reveal: str) -> Ask:
        """Asks for the largest of `features` ([rows, size], not negative) of rows that count, or 0."""
        if not self.hidden:
            source = lambda part: lambda: features(part.x()).amax(0)
            once = {part.party: Owned(part.party, source(part), (size,), torch.float64) for part in self.parts}
            finish = lambda **sent: {reveal: torch.stack(list(sent.values())).amax(0)}
            return Ask(what, finish, {reveal: "all"}, once=once, frac_bits=FINE_BITS)
        sums, rows = lambda **rows: {"largest": _weighed(**rows).amax(0)}, self.secret(features, size)
        found = lambda largest: {reveal: largest}
        return Ask(what, found, {reveal: "all"}, rows=rows, sums=sums, frac_bits=FINE_BITS, whole=True)

    def secret(self, features: Callable[[torch.Tensor], torch.Tensor], size: int) -> dict[str, tuple[Owned, ...]]:
        """What `_weighed` takes of hidden rows."""
        (part,) = self.parts
        weights = {f"weight{at}": (owned,) for at, owned in enumerate(self.weights)}
        return {"features": (part.features(features, size),), **weights}


def _weighed(features: torch.Tensor, **weights: torch.Tensor) -> torch.Tensor:
    """Features [rows, size] times the product of the weights of their rows."""
    if not weights:
        return features
    return features * reduce(torch.mul, weights.values()).unsqueeze(1)


_LOW_BITS = 20
"""A program takes whole numbers of 30 bits each; larger ones come in two, and are put together before anything is revealed."""


def _halves(x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x >> _LOW_BITS, x & ((1 << _LOW_BITS) - 1)])


def _whole(halves: torch.Tensor) -> torch.Tensor:
    return halves[0] * (1 << _LOW_BITS) + halves[1]


def fit_together(step: Step, fields: Fields, rows: Rows, name: str) -> Fit:
    """The parameters of a step, known to all parties. Raises InputError for a feature without values, or out of bounds."""
    if not step.shapes(fields):
        return {}
    fit = _FITS.get(type(step))
    if fit is None:
        raise InputError(_cannot(step, name, "its fit needs all rows at one party"))
    return (yield from fit(step, fields, rows, name))


def _cannot(step: Step, name: str, why: str) -> str:
    return explain(
        f"{type(step).__name__} cannot be fitted to {name!r}", why=why, fix="use another step for this column"
    )


def _units(x: torch.Tensor, fields: Fields) -> torch.Tensor:
    """Values within the public bounds as 0..1; NaN stays NaN."""
    low = torch.tensor([f.low for f in fields], dtype=torch.float64)
    return (x - low) / torch.tensor([_width(f) for f in fields], dtype=torch.float64)


def _width(field: Field) -> float:
    return (field.high - field.low) or 1.0


def _counts(fields: Fields, rows: Rows, name: str) -> Fit:
    """How many rows have a value of each feature. Of features that cannot be missing in known rows it is known."""
    if not any(field.missing for field in fields) and not rows.hidden:
        return {"counts": torch.full((len(fields),), float(rows.count), dtype=torch.float64)}
    there = lambda x: (~x.isnan()).double()
    ask = rows.ask(f"count of {name}", len(fields), there, lambda total: {"counts": total}, "counts")
    counts = learnt((yield ask), "counts").double().round()
    if empty := [field.name for field, count in zip(fields, counts.tolist(), strict=True) if count < 1]:
        raise InputError(explain(f"no row has a value of {', '.join(map(repr, empty))}", where="fit()",
                                 fix="drop these columns, or fit on other rows"))  # fmt: skip
    return {"counts": counts}


def _moments(
    fields: Fields, rows: Rows, name: str, made: Callable[[torch.Tensor], torch.Tensor], ends: Sequence
) -> Fit:
    """Count, mean and variance of a function of the features with these public (low, high) ends."""
    counts = (yield from _counts(fields, rows, name))["counts"]
    low = torch.tensor([end[0] for end in ends], dtype=torch.float64)
    width = torch.tensor([(end[1] - end[0]) or 1.0 for end in ends], dtype=torch.float64)

    def features(x: torch.Tensor) -> torch.Tensor:
        units = ((made(x) - low) / width - 0.5).nan_to_num(0.0)
        units = torch.where(x.isnan(), 0.0, units)
        return torch.cat([units, units * units], 1)

    per = counts.repeat(2)
    means = (lambda total: total * (1 / per)) if rows.hidden else (lambda total: total)
    scale = 2.0**MEAN_BITS / per
    ask = rows.ask(f"mean and std of {name}", 2 * len(fields), features, lambda total: {"powers": means(total)}, "powers",
                   scale=scale)  # fmt: skip
    first, second = (learnt((yield ask), "powers").double() * (1.0 if rows.hidden else 2.0**-MEAN_BITS)).chunk(2)
    return {
        "count": counts,
        "mean": low + (first + 0.5) * width,
        "var": (second - first * first) * width * width,
        "width": width,
    }


def _standard(step: StandardScaler, fields: Fields, rows: Rows, name: str) -> Fit:
    found = yield from _moments(fields, rows, name, lambda x: x, [(f.low, f.high) for f in fields])
    return _scales(found, ("mean_", "var_", "scale_"), rows)


def _scales(found: Mapping[str, torch.Tensor], names: Sequence[str], rows: Rows) -> dict[str, torch.Tensor]:
    """Parameters of StandardScaler; a variance below what rounding leaves is a constant's."""
    rounding = 2.0 ** (-36 if not rows.hidden else -14)
    each = zip(*(found[key].tolist() for key in ("count", "mean", "var", "width")), strict=True)
    made = [moments(int(n), mean, var, rounding * width * width) for n, mean, var, width in each]
    return {key: torch.tensor([one[key] for one in made], dtype=torch.float64) for key in names}


def _min_max(step: MinMaxScaler, fields: Fields, rows: Rows, name: str) -> Fit:
    if rows.hidden and rows.count * 2 * len(fields) > _MOST_COMPARED:
        raise InputError(_cannot(step, name, f"of {rows.count} hidden rows too many would be compared in one program"))
    yield from _counts(fields, rows, name)

    def ends(x: torch.Tensor) -> torch.Tensor:
        units = _units(x, fields)
        return torch.cat([units, 1 - units], 1).nan_to_num(0.0)

    results = yield rows.ask_largest(f"min and max of {name}", 2 * len(fields), ends, "ends")
    high, low = learnt(results, "ends").double().chunk(2)
    found = [(f.low + (1 - least) * _width(f), f.low + most * _width(f))
             for f, least, most in zip(fields, low.tolist(), high.tolist(), strict=True)]  # fmt: skip
    found = [tuple(map(round, end)) if f.whole else end for f, end in zip(fields, found, strict=True)]
    return _tensors(step.of_ends(found))


# ---- quantiles
@dataclass(frozen=True)
class Grid:
    """Public bins of a feature: one for each whole number if these are few, else of equal width within its bounds."""

    field: Field
    most: int

    @property
    def exact(self) -> bool:
        return self.field.whole and self.field.high - self.field.low < self.most

    @property
    def size(self) -> int:
        return int(self.field.high - self.field.low) + 1 if self.exact else self.most

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """The bin of each value that is there."""
        x = x[~x.isnan()] - self.field.low
        return (x if self.exact else torch.floor(x / _width(self.field) * self.size)).long().clamp(0, self.size - 1)

    def middle(self, code: float) -> float:
        """The value of a bin, or its middle."""
        return self.field.low + (code if self.exact else (code + 0.5) * _width(self.field) / self.size)


def positions_of(levels: Sequence[float], count: int, method: str) -> list[tuple[int, int, float]]:
    """Of each quantile of so many numbers: the two places in their order, and the weight of the second.

    The methods of numpy.quantile "linear" and "averaged_inverted_cdf": R. Hyndman, Y. Fan, Sample quantiles in statistical
    packages, The American Statistician 50 (1996), definitions 7 and 2.
    """
    made = []
    for level in levels:
        virtual = level * (count - 1) if method == "linear" else count * level - 1
        first = int(np.floor(virtual))
        weight = virtual - first
        if method != "linear":
            weight = 0.5 if weight == 0 else 1.0
        made.append((min(max(first, 0), count - 1), min(max(first + 1, 0), count - 1), float(weight)))
    return made


def bins_at(histogram: torch.Tensor, places: Sequence[int]) -> torch.Tensor:
    """The bins of numbers at these places in their order, [places], from counts [bins]; also of secrets.

    Rows of bins first, then the bins of the row: comparisons of twice the root of their number.
    """
    width = min(_ROW, histogram.shape[0])
    rows = -(-histogram.shape[0] // width)
    table = torch.nn.functional.pad(histogram, (0, rows * width - histogram.shape[0])).reshape(rows, width)
    wanted = torch.tensor(places, dtype=histogram.dtype).unsqueeze(1) + 0.5  # between whole numbers
    sizes = table.sum(1)
    before = (sizes.cumsum(0) < wanted).to(histogram.dtype)  # [places, rows]: ones, then zeros
    unit = torch.cat([torch.ones(len(places), 1, dtype=histogram.dtype), before[:, :-1]], 1) - before
    counts = (before * sizes).sum(1, keepdim=True) + (unit @ table).cumsum(1)
    return before.sum(1) * width + (counts < wanted).to(histogram.dtype).sum(1)


def _quantiles(fields: Fields, rows: Rows, name: str, levels: Sequence[float], method: str = "linear") -> Fit:
    """float64[features, levels]: within half a bin of what numpy.quantile finds."""
    counts = (yield from _counts(fields, rows, name))["counts"].tolist()
    made = []
    for at, (field, count) in enumerate(zip(fields, counts, strict=True)):
        grid = Grid(field, COARSE_BINS if rows.hidden else FINE_BINS)
        places = positions_of(levels, int(count), method)
        asked = sorted({place for low, high, _ in places for place in (low, high)})
        total = lambda x, at=at, grid=grid: torch.bincount(grid.codes(x[:, at]), minlength=grid.size).double()
        each = lambda x, at=at, grid=grid: _one_hot(x[:, at], grid)
        finish = lambda total, asked=tuple(asked): {"bins": bins_at(total, asked)}
        found = yield rows.ask(f"quantiles of {field.name}", grid.size, each, finish, "bins", total=total)
        value = dict(zip(asked, map(grid.middle, learnt(found, "bins").double().round().tolist()), strict=True))
        made.append([value[low] + weight * (value[high] - value[low]) for low, high, weight in places])
    return {"quantiles": torch.tensor(made, dtype=torch.float64)}


def _one_hot(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    made = torch.zeros(len(x), grid.size, dtype=torch.float64)
    made[torch.arange(len(x))[~x.isnan()], grid.codes(x)] = 1.0
    return made


def _robust(step: RobustScaler, fields: Fields, rows: Rows, name: str) -> Fit:
    found = (yield from _quantiles(fields, rows, name, step.levels))["quantiles"]
    return _tensors(step.of_quantiles(list(found.numpy())))


def _clip(step: Clip, fields: Fields, rows: Rows, name: str) -> Fit:
    found = (yield from _quantiles(fields, rows, name, step.levels))["quantiles"]
    return _tensors(step.of_quantiles(list(found.numpy())))


def _k_bins(step: KBinsDiscretizer, fields: Fields, rows: Rows, name: str) -> Fit:
    if step.strategy == "uniform":
        found = yield from _min_max(MinMaxScaler(), fields, rows, name)
        ends = zip(found["data_min_"].tolist(), found["data_max_"].tolist(), strict=True)
        return _tensors(step.of_edges([np.linspace(low, high, step.n_bins + 1) for low, high in ends], fields))
    found = yield from _quantiles(fields, rows, name, step.levels.tolist(), step.quantile_method)
    return _tensors(step.of_edges(list(found["quantiles"].numpy()), fields))


def _tensors(made: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in made.items()}


# ---- what stands for missing values
def _impute(step: SimpleImputer, fields: Fields, rows: Rows, name: str) -> Fit:
    if step.strategy == "constant":
        values = step.constants(fields)
    elif step.strategy == "mean":
        values = (yield from _moments(fields, rows, name, lambda x: x, [(f.low, f.high) for f in fields]))[
            "mean"
        ].tolist()
    elif step.strategy == "median":
        values = (yield from _quantiles(fields, rows, name, [0.5]))["quantiles"][:, 0].tolist()
    else:
        values = yield from _most_frequent(step, fields, rows, name)
    return _tensors(step.of_values(values))


def _most_frequent(step: SimpleImputer, fields: Fields, rows: Rows, name: str):
    yield from _counts(fields, rows, name)
    values = []
    for at, field in enumerate(fields):
        grid = Grid(field, 4096)
        if not grid.exact:
            raise InputError(_cannot(step, field.name, "it has too many values to count each"))
        total = lambda x, at=at, grid=grid: torch.bincount(grid.codes(x[:, at]), minlength=grid.size).double()
        each = lambda x, at=at, grid=grid: _one_hot(x[:, at], grid)

        def finish(total: torch.Tensor, size: int = grid.size) -> dict[str, torch.Tensor]:
            # no two are alike: of those that are equally frequent the least value is greater
            return {"most": (total * size - torch.arange(size)).argmax(0, keepdim=True)}

        found = yield rows.ask(f"most frequent {field.name}", grid.size, each, finish, "most", total=total)
        values.append(grid.middle(round(learnt(found, "most").double().item())))
    return values


# ---- powers
def _power(step: PowerTransformer, fields: Fields, rows: Rows, name: str) -> Fit:
    """The best of the public LAMBDAS, of which nothing else is revealed; then the mean and variance for this one."""
    if rows.hidden:
        raise InputError(_cannot(step, name, "its likelihood needs totals that are right to many digits"))
    lambdas: list[float] = []
    counts = (yield from _counts(fields, rows, name))["counts"].tolist()
    for at, (field, count) in enumerate(zip(fields, counts, strict=True)):
        ends = [_ends(field, float(lam)) for lam in LAMBDAS]
        logs = max(np.log1p(abs(field.low)), np.log1p(abs(field.high))) or 1.0

        def features(x: torch.Tensor, at: int = at, ends=ends, logs: float = logs) -> torch.Tensor:
            column = x[:, at]
            made = []
            for lam, (low, high) in zip(LAMBDAS, ends, strict=True):
                units = (yeo_johnson(column, torch.tensor(lam)) - low) / ((high - low) or 1.0) - 0.5
                made += [units, units * units]
            made.append(column.sign() * torch.log1p(column.abs()) / logs)
            return torch.stack(made, 1).nan_to_num(0.0)

        def finish(total: torch.Tensor, ends=ends, logs: float = logs) -> dict[str, torch.Tensor]:
            powers = total[:-1].reshape(len(LAMBDAS), 2)
            whole = ((powers[:, 1] * 2**_VAR_BITS - powers[:, 0] * powers[:, 0]) >> _SPARE) >> _SPARE
            var = whole.double() * 2.0 ** (16 + 2 * _SPARE - 2 * _VAR_BITS)
            widths = torch.tensor([np.log((high - low) or 1.0) for low, high in ends], dtype=torch.float64)
            slopes = torch.tensor([(lam - 1) * logs for lam in LAMBDAS], dtype=torch.float64)
            likelihood = (
                -0.5 * torch.log(var.clamp(min=_LEAST)) - widths + slopes * (total[-1].double() * 2.0**-_VAR_BITS)
            )
            return {"best": torch.where(var > _LEAST, likelihood, -_NEVER).argmax(0, keepdim=True)}

        scale = 2.0**_VAR_BITS / count
        ask = rows.ask(f"lambda of {field.name}", 2 * len(LAMBDAS) + 1, features, finish, "best", scale=scale)
        lambdas.append(float(LAMBDAS[round(learnt((yield ask), "best").double().item())]))
    lam = torch.tensor(lambdas, dtype=torch.float64)
    ends = [_ends(field, one) for field, one in zip(fields, lambdas, strict=True)]
    found = yield from _moments(fields, rows, name, lambda x: yeo_johnson(x, lam), ends)
    return {"lambdas_": lam, **_scales(found, ("mean_", "scale_"), rows)}


_VAR_BITS, _SPARE = 26, 10
"""Of the means that λ follows from. Their variance has twice as many, of which so many are cut off twice; its logarithm is that of
2^16 times as much."""
_LEAST, _NEVER = 2.0**-6, 1000.0
"""A λ is left out where this variance is below _LEAST: what rounding the means leaves of it is 2^-11 at most."""


def _ends(field: Field, lam: float) -> tuple[float, float]:
    ends = yeo_johnson(
        torch.tensor([field.low, field.high], dtype=torch.float64), torch.tensor(lam, dtype=torch.float64)
    )
    return float(ends[0]), float(ends[1])


_FITS: Mapping[type[Step], Callable[..., Fit]] = {
    StandardScaler: _standard,
    MinMaxScaler: _min_max,
    RobustScaler: _robust,
    SimpleImputer: _impute,
    KBinsDiscretizer: _k_bins,
    Clip: _clip,
    PowerTransformer: _power,
}
