"""Several rows of one id as one, by the rule of each column.

"first" is the first value that is there, as pandas' groupby().first(); "sum" and "mean" are of the values that are
there. Where none is, the value is missing: a sum of nothing is not 0 here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from securemodel.data.column import Column
from securemodel.data.problems import Problems
from securemodel.files.reader import counted

REPEATED = "ids that stand in several rows"
TOO_LARGE = "a sum beyond 64 bits"
_SAFE = 2**62

Arrays = dict[str, np.ndarray]


def merged(
    ids: Sequence[bytes],
    columns: Sequence[Column],
    values: Mapping[str, np.ndarray],
    missing: Mapping[str, np.ndarray],
    faulty: Mapping[str, np.ndarray],
    places: np.ndarray,
    rule: str,
    problems: Problems,
) -> tuple[tuple[bytes, ...], Arrays, Arrays, Arrays, np.ndarray, str] | None:
    """Ids, values, missing, faulty and places of the merged rows, and a note; None where every id is there once.

    Rows keep the order of their first ones. `rule` is that of a table without columns. Adds a problem where a column
    allows no merging; rows without a usable id (b"") are left alone, as they are a problem already.
    """
    if len(set(ids)) + max(ids.count(b"") - 1, 0) == len(ids):
        return None
    groups: dict[bytes, int] = {}
    group = np.empty(len(ids), np.int64)
    count = 0
    for row, name in enumerate(ids):
        group[row] = groups.get(name, count) if name else count
        if name:
            groups.setdefault(name, count)
        count = max(count, int(group[row]) + 1)
    first = np.full(count, -1, np.int64)
    first[group[::-1]] = np.arange(len(ids))[::-1]
    sizes = np.bincount(group, minlength=count)
    strict = [column.name for column in columns if column.duplicates == "error"]
    if strict or (not columns and rule == "error"):
        second = np.flatnonzero(sizes[group] > 1)
        fix = 'keep one row of each id, or say in the schema how rows become one: duplicates = "first", "sum" or "mean"'
        if len(strict) < len(columns):
            fix += f"; no rule have {', '.join(map(repr, strict))}"
        problems.add("", REPEATED, places[second].tolist(), fix)
        return None
    made = {c.name: _merge(c, values[c.name], ~missing[c.name], group, count, first, places, problems) for c in columns}
    absent = {name: np.bincount(group, ~missing[name], count) == 0 for name in values}
    wrong = {name: np.bincount(group, faulty[name], count) > 0 for name in values}
    order = [ids[row] for row in first.tolist()]
    repeated = sizes[sizes > 1]
    note = f"{counted(len(repeated), 'id')} in several rows, {int(repeated.sum())} in all: they were merged"
    return tuple(order), made, absent, wrong, places[first], note


def _merge(
    column: Column,
    values: np.ndarray,
    there: np.ndarray,
    group: np.ndarray,
    count: int,
    first: np.ndarray,
    places: np.ndarray,
    problems: Problems,
) -> np.ndarray:
    if column.duplicates == "first":
        made = np.zeros(count, values.dtype)
        made[group[there][::-1]] = values[there][::-1]
        return made
    if values.dtype == np.int64 and len(values) and int(np.abs(values.astype(np.float64)).max()) * len(values) >= _SAFE:
        return _exact_sums(column, values, group, count, first, places, problems)
    made = np.zeros(count, values.dtype)
    np.add.at(made, group[there], values[there])
    if column.duplicates == "mean":
        made /= np.maximum(np.bincount(group, there, count), 1)
    return made


def _exact_sums(
    column: Column, values: np.ndarray, group: np.ndarray, count: int, first: np.ndarray, places: np.ndarray,
    problems: Problems,
) -> np.ndarray:  # fmt: skip
    sums = [0] * count
    for at, value in zip(group.tolist(), values.tolist(), strict=True):
        sums[at] += value
    if beyond := [at for at, value in enumerate(sums) if not -(2**63) <= value < 2**63]:
        problems.add(column.name, TOO_LARGE, places[first[beyond]].tolist())
    return np.array([value if -(2**63) <= value < 2**63 else 0 for value in sums], np.int64)
