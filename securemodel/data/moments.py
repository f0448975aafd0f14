"""Correlation and covariance of columns of several owners, as pandas has them: of the rows in which both have values.

Columns of one owner, where it knows all rows, it correlates by itself. Of two owners, who know all rows and miss none, each
standardizes its own, and the product of their columns is the correlation: nothing else is told. Where values are missing,
or nobody knows the rows, and where rows are split, sums of numbers and squares over the rows of each pair are told, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations_with_replacement

import numpy as np
import torch

from protocols.errors import InputError, explain
from securemodel.data.answers import answered, asked_columns, check_rows, warn_of_leak
from securemodel.data.binning import pandas
from securemodel.data.describing import in_units, powers, units
from securemodel.data.query import Query
from securemodel.data.sides import Given, Own, Rows, Side, Sums, Total, column_of, owner_of
from securemodel.data.whole import ROOM_BITS, WITHHELD, from_floats, to_floats
from securemodel.data.withholding import enough, kept
from securemodel.shown import Shown

LEAKS_ABOVE = 0.95
"""A correlation with the label that is hardly ever honest."""
_MOMENTS = 6  # of a pair: count, both sums, both sums of squares, the sum of products


@dataclass(frozen=True, repr=False)
class Matrix(Shown):
    """Correlations or covariances. `frame`: a pandas.DataFrame, NaN where too few rows have both values.

    left_out: columns without a correlation, and why. withheld: pairs of columns with fewer rows than `minimum`.
    """

    columns: tuple[str, ...]
    numbers: np.ndarray
    minimum: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    withheld: tuple[tuple[str, str], ...] = ()

    @property
    def frame(self):
        """The matrix as a pandas.DataFrame."""
        return pandas().DataFrame(self.numbers, index=list(self.columns), columns=list(self.columns))

    def __getitem__(self, column: str):
        return self.frame[column]

    def __str__(self) -> str:
        said = [self.frame.to_string()]
        said += (
            [f"left out: {'; '.join(f'{name}, {why}' for name, why in self.left_out.items())}"] if self.left_out else []
        )
        pairs = "; ".join(f"{a} and {b}" for a, b in self.withheld)
        said += [f"withheld, of fewer than {self.minimum} rows: {pairs}"] if pairs else []
        return "\n".join(said)


def correlation(
    joint: Rows, columns: str | Sequence[str] | None = None, *, label: str | None = None, reveal: str = "all"
) -> Matrix | None:
    """Pearson's correlations of columns, as pandas.DataFrame.corr gives them, at whoever `reveal` names; None elsewhere.

    Constant columns are left out, and named. Warns of columns that correlate with `label` above 0.95. Raises InputError.
    """
    pairs = _asked(joint, columns, False, reveal)
    if pairs is None:
        return None
    made = _matrix(joint, pairs, _correlation)
    for name in made.columns if label in made.columns else ():
        r = float(made.frame.loc[name, label])
        if name != label and abs(r) > LEAKS_ABOVE:
            warn_of_leak(name, str(label), f"their correlation is {r:.3f}")
    return made


def covariance(joint: Rows, columns: str | Sequence[str] | None = None, *, reveal: str = "all") -> Matrix | None:
    """Covariances of columns, as pandas.DataFrame.cov gives them, at whoever `reveal` names; None elsewhere.

    Raises InputError.
    """
    pairs = _asked(joint, columns, True, reveal)
    return None if pairs is None else _matrix(joint, pairs, _covariance, constant=False)


def vif(joint: Rows, columns: str | Sequence[str] | None = None, *, reveal: str = "all") -> Vif | None:
    """Variance inflation factors 1 / (1 - R^2) of each column explained by the others with a constant.

    They are the diagonal of the inverse of the correlation matrix, which is told, too. Raises InputError.
    """
    found = correlation(joint, columns, reveal=reveal)
    if found is None:
        return None
    undefined = dict(found.left_out)
    if not np.isfinite(found.numbers).all():
        undefined |= {name: "correlations are withheld" for name in found.columns}
        return Vif({}, undefined)
    values, vectors = np.linalg.eigh(found.numbers)
    if values.min(initial=1.0) < 1e-6:  # a column is a sum of others
        part = np.abs(vectors[:, values < 1e-6]).max(1) > 1e-3
        undefined |= {name: "others give it exactly" for name, in_it in zip(found.columns, part, strict=True) if in_it}
    inverse = np.linalg.pinv(found.numbers, hermitian=True)
    made = zip(found.columns, np.diag(inverse), strict=True)
    return Vif({name: float(x) for name, x in made if name not in undefined}, undefined)


@dataclass(frozen=True, repr=False)
class Vif(Shown):
    """Variance inflation factors by column; `undefined` names those that have none, and why."""

    factors: Mapping[str, float]
    undefined: Mapping[str, str]

    def __getitem__(self, column: str) -> float:
        return self.factors[column]

    def __str__(self) -> str:
        lines = [f"{name}  {factor:.4g}" for name, factor in self.factors.items()]
        return "\n".join([*lines, *(f"{name}  undefined: {why}" for name, why in self.undefined.items())])


@dataclass(frozen=True)
class _Pair:
    """What is known of two columns: the moments, in these units; or else the numbers themselves."""

    n: int
    sums: tuple[int, ...] = ()
    factors: tuple[float, float] = (1.0, 1.0)
    r: float = math.nan
    covariance: float = math.nan


_Pairs = Mapping[tuple[str, str], _Pair]


def _asked(joint: Rows, columns: str | Sequence[str] | None, covariances: bool, reveal: str) -> _Pairs | None:
    what = _what(covariances)
    names = asked_columns(joint, columns)
    for name in names:
        if column_of(joint, name).kind == "category":
            fix = "leave it out, or ask chi_square of two categories"
            raise InputError(explain(f"the column {name!r} has categories, and no {what}", fix=fix))
    if len(names) < 2:
        raise InputError(explain(f"a {what} is of two different columns or more", fix="name them: columns=[...]"))
    check_rows(joint)
    by_owner: dict[str, tuple[str, ...]] = {}
    for name in names:
        party = owner_of(joint, name) or ""
        by_owner[party] = (*by_owner.get(party, ()), name)
    answer = answered(joint, question(joint, list(by_owner.values()), covariances, reveal))
    if answer is None:
        return None
    found = _pairs(joint, list(by_owner.values()), answer)
    found |= {(b, a): _turned(pair) for (a, b), pair in found.items()}
    return {(a, b): found[a, b] for a in names for b in names}


def question(joint: Rows, groups: Sequence[tuple[str, ...]], covariances: bool, reveal: str) -> Query:
    """What the parties run, for groups of columns, each of one owner."""
    sums, told = Sums(joint), 2 if covariances else 1
    for at, names in enumerate(groups):
        if _by_itself(joint, sums, names):
            (own,) = sums.owners(names)
            given = sums.give(
                own.party, partial(_own_matrix, own, joint.schema.minimum, told), (told, len(names), len(names), 2)
            )
            sums.tell(_own_key(names), sums.given(given))
    standard = [Side(names, len(names), prepare=partial(_standard, joint.rows)) for names in groups]
    general = [Side(names, 3 * len(names), powers, partial(in_units, units(joint, names))) for names in groups]
    for first, second in combinations_with_replacement(range(len(groups)), 2):
        left, right = groups[first], groups[second]
        if first == second and _by_itself(joint, sums, left):
            continue
        if _standardized(joint, sums, left, right):
            sums.tell(_r_key(left, right), sums.add(standard[first], standard[second]))
        else:
            products = sums.add(general[first], general[second])
            sums.tell(_moments_key(left, right), partial(_told, products, joint.schema.minimum))
    named = ", ".join(name for names in groups for name in names)
    return sums.query(f"{_what(covariances)} of {named}", reveal)


def _what(covariances: bool) -> str:
    return "covariance" if covariances else "correlation"


def _own_key(names: Sequence[str]) -> str:
    return f"{', '.join(names)} among each other"


def _r_key(left: Sequence[str], right: Sequence[str]) -> str:
    return f"correlations of {', '.join(left)} with {', '.join(right)}"


def _moments_key(left: Sequence[str], right: Sequence[str]) -> str:
    return f"counts, sums and sums of products of {', '.join(left)} with {', '.join(right)}"


def _by_itself(joint: Rows, sums: Sums, names: tuple[str, ...]) -> bool:
    return joint.schema.split == "columns" and sums.alone(names)


def _standardized(joint: Rows, sums: Sums, *groups: tuple[str, ...]) -> bool:
    complete = not any(column_of(joint, name).missing for names in groups for name in names)
    return complete and not joint.hidden and all(_by_itself(joint, sums, names) for names in groups)


def _bits(rows: int) -> int:
    return (ROOM_BITS - math.ceil(math.log2(rows + 1))) // 2


def _standard(rows: int, own: Own) -> np.ndarray:
    """An owner's columns with mean 0 and variance 1, as whole multiples of a power of two; 0 for constant ones."""
    x = own.values
    deviation = x.std(0)
    constant = x.min(0) == x.max(0)
    return np.round((x - x.mean(0)) / np.where(constant, 1.0, deviation) * 2.0 ** _bits(rows)) * ~constant


def _own_matrix(own: Own, minimum: int, told: int) -> torch.Tensor:
    """An owner's correlations and, if told, covariances, [told, columns, columns, 2], as `from_floats` has them."""
    frame = pandas().DataFrame(np.where(own.valid, own.values, math.nan))
    made = np.stack([frame.corr().to_numpy(), frame.cov().to_numpy()])
    constant = (frame.min() == frame.max()).to_numpy() & (own.valid.sum(0) > 1)
    made[0, constant], made[0, :, constant] = math.nan, math.nan
    made[1, constant], made[1, :, constant] = 0.0, 0.0
    made[0, np.diag(made[1]) > 0, np.diag(made[1]) > 0] = 1.0
    there = own.valid.astype(np.float64)
    made[:, there.T @ there < minimum] = WITHHELD
    return from_floats(made[:told])


def _told(product: Total, minimum: int, given: Given) -> torch.Tensor:
    """The moments of each pair, [6, left, right]; zero where too few rows have both values."""
    made = product(given)
    left, right = made.shape[0] // 3, made.shape[1] // 3
    at = lambda i, j: made[i * left : (i + 1) * left, j * right : (j + 1) * right]
    moments = torch.stack([at(0, 0), at(1, 0), at(0, 1), at(2, 0), at(0, 2), at(1, 1)])
    return kept(enough(moments[:1], minimum), moments)


def _pairs(
    joint: Rows, groups: Sequence[tuple[str, ...]], answer: Mapping[str, torch.Tensor]
) -> dict[tuple[str, str], _Pair]:
    found: dict[tuple[str, str], _Pair] = {}
    deviations: dict[str, float] = {}
    for at, names in enumerate(groups):
        key = _own_key(names)
        if key in answer:
            rs, *covariances = to_floats(answer[key])
            varies = np.where(np.diag(rs) == 1.0, 1.0, 0.0)
            deviations |= dict(zip(names, np.sqrt(np.diag(covariances[0])) if covariances else varies, strict=True))
            for i, a in enumerate(names):
                for j, b in enumerate(names):
                    known = joint.rows if rs[i, j] != WITHHELD else 0
                    found[a, b] = _Pair(
                        known, r=float(rs[i, j]), covariance=float(covariances[0][i, j]) if covariances else math.nan
                    )
    for first, second in combinations_with_replacement(range(len(groups)), 2):
        left, right = groups[first], groups[second]
        if (key := _r_key(left, right)) in answer:
            r = answer[key].double().numpy() / (joint.rows * 4.0 ** _bits(joint.rows))
            for i, a in enumerate(left):
                for j, b in enumerate(right):
                    both = float(deviations[a] * deviations[b])
                    made = float(r[i, j]) if both else math.nan
                    found[a, b] = _Pair(joint.rows, r=made, covariance=float(r[i, j]) * both)
        elif (key := _moments_key(left, right)) in answer:
            moments = answer[key].reshape(_MOMENTS, len(left), len(right)).tolist()
            scales = [[unit.factor for unit in units(joint, names)] for names in (left, right)]
            for i, a in enumerate(left):
                for j, b in enumerate(right):
                    n, *sums = (of[i][j] for of in moments)
                    found[a, b] = _Pair(n, tuple(sums), (scales[0][i], scales[1][j]))
    return found


def _turned(pair: _Pair) -> _Pair:
    sums = pair.sums
    turned = (sums[1], sums[0], sums[3], sums[2], sums[4]) if sums else ()
    return _Pair(pair.n, turned, pair.factors[::-1], pair.r, pair.covariance)


def _correlation(pair: _Pair) -> float:
    if not pair.sums:
        return pair.r
    n, (x, y, xx, yy, xy) = pair.n, pair.sums
    below = math.sqrt(float(n * xx - x * x)) * math.sqrt(float(n * yy - y * y))
    return (n * xy - x * y) / below if below else math.nan


def _covariance(pair: _Pair) -> float:
    if not pair.sums:
        return pair.covariance
    n, (x, y, _, _, xy) = pair.n, pair.sums
    return (n * xy - x * y) / (n * (n - 1)) / (pair.factors[0] * pair.factors[1]) if n > 1 else math.nan


def _matrix(joint: Rows, pairs: _Pairs, number, constant: bool = True) -> Matrix:
    names = tuple(dict.fromkeys(a for a, _ in pairs))
    few = {pair for pair, of in pairs.items() if of.n < joint.schema.minimum}
    out = {
        name: "it is constant"
        for name in names
        if constant and (name, name) not in few and _is_constant(pairs[name, name])
    }
    kept_names = tuple(name for name in names if name not in out)
    numbers = np.array([[math.nan if (a, b) in few else number(pairs[a, b]) for b in kept_names] for a in kept_names])
    at = {name: place for place, name in enumerate(names)}
    withheld = tuple(pair for pair in pairs if pair in few and at[pair[0]] <= at[pair[1]])
    return Matrix(kept_names, numbers.reshape(len(kept_names), len(kept_names)), joint.schema.minimum, out, withheld)


def _is_constant(pair: _Pair) -> bool:
    return pair.n * pair.sums[2] == pair.sums[0] ** 2 if pair.sums else math.isnan(pair.r)
