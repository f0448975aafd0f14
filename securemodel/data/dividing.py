"""Splits and folds of a joint table: every party finds the same positions, or hears them from the owner of a column.

Without a column, positions follow from a public seed and nothing is sent. By a column, its owner finds them and publishes
in which part each row is, a byte a row: by `groups` which rows may be of one group, `by` a column which are on the same side
of a cut, stratified by a label nothing of a row (`securemodel.data.splits`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from protocols.errors import InputError, explain
from securemodel.data import splits
from securemodel.data.splits import Fold, Public
from securemodel.engines.labels import POSITIONS
from securemodel.training.datasets import Owned

MOST_FOLDS = 255


class Divided(Protocol):
    """What a joint table tells about itself here."""

    @property
    def schema(self) -> Any: ...

    @property
    def parties(self) -> tuple[str, ...]: ...

    @property
    def place(self) -> Any: ...

    @property
    def positions(self) -> tuple[np.ndarray, ...]: ...

    @property
    def hidden(self) -> bool: ...

    def parts(self, name: str) -> tuple[Owned, ...]: ...

    def missing(self, name: str) -> tuple[Owned, ...] | None: ...


def split_parts(
    joint: Divided, fraction: float, seed: int, stratify: str | None, by: str | None, groups: str | None
) -> list[Fold]:
    """For each part of the rows, its places to train and to test with. Raises InputError; PeerError."""
    splits.fraction_of(fraction)
    splits.check_seed(seed)
    column = _one(joint, {"stratify": stratify, "by": by, "groups": groups})
    if column is None:
        return [splits.split_rows(Public(len(at), seed + part), fraction) for part, at in enumerate(joint.positions)]

    def numbers(values: np.ndarray) -> np.ndarray:
        if stratify:
            train, _ = splits.split_stratified(values, fraction, joint.schema.minimum)
        elif by:
            train, _ = splits.split_by(values, fraction)
        else:
            train, _ = splits.split_groups(values, fraction, seed)
        return (~np.isin(np.arange(len(values)), train)).astype(np.uint8)

    return [(np.flatnonzero(at == 0), np.flatnonzero(at == 1)) for at in _published(joint, column, numbers, 2)]


def fold_parts(joint: Divided, count: int, seed: int, stratify: str | None, groups: str | None) -> list[list[Fold]]:
    """Folds, each with the places of each part to train and to test with. Raises InputError; PeerError."""
    column = _one(joint, {"stratify": stratify, "groups": groups})
    splits.check_seed(seed)
    splits.check_count(count, min(MOST_FOLDS, *(len(at) for at in joint.positions)))
    if column is None:
        made = [splits.fold_numbers(Public(len(at), seed + part), count) for part, at in enumerate(joint.positions)]
    else:

        def numbers(values: np.ndarray) -> np.ndarray:
            if stratify:
                return splits.fold_stratified(values, count, joint.schema.minimum).astype(np.uint8)
            found = np.empty(len(values), np.uint8)
            for fold, (_, test) in enumerate(splits.fold_groups(values, count, seed)):
                found[test] = fold
            return found

        made = _published(joint, column, numbers, count)
    return [[splits.folds_of(part, count)[fold] for part in made] for fold in range(count)]


def _one(joint: Divided, given: Mapping[str, str | None]) -> str | None:
    """The column that is named, of which every row has a value that its owner knows. Raises InputError."""
    named = {how: name for how, name in given.items() if name is not None}
    if len(named) > 1:
        raise InputError(explain(f"a split by {' and '.join(named)} at once", fix="give one of them"))
    for how, name in named.items():
        where = f"{how}={name!r}"
        parts = joint.parts(name)  # an unknown column is an InputError
        if joint.missing(name) is not None:
            fix = "use a column that cannot be missing"
            raise InputError(explain(f"{name!r} may be missing, and a row without it is nowhere", where=where, fix=fix))
        if joint.hidden or any(part.way for part in parts):
            fix = f'split without {how}=, or align with learns="all"'
            raise InputError(
                explain(f"the owner of {name!r} does not know which of its rows are joint", where=where, fix=fix)
            )
        if how == "stratify" and joint.schema.columns[name].kind == "number":
            raise InputError(
                explain(f"{name!r} has numbers, not classes", where=where, fix="use a boolean or category")
            )
        return name
    return None


def _published(
    joint: Divided, column: str, numbers: Callable[[np.ndarray], np.ndarray], count: int
) -> list[np.ndarray]:
    """For each part of the rows, the number of each row's part or fold, as the owner of the part finds it."""
    parts, place = joint.parts(column), joint.place
    try:
        mine = {part.party: numbers(part.tensor.numpy()).tobytes() for part in parts if part.party in place.here}
    except InputError as error:
        place.fail(error)  # the others wait for it
        raise
    rows = {part.party: part.shape[0] for part in parts}
    sizes = {party: rows.get(party, 1) for party in joint.parties}
    sends = {party: mine.get(party, b"\0") for party in place.here}
    heard = place.swap(POSITIONS, sends, sizes)
    ((_, got), *_) = heard.items()
    found = {**got, **sends}
    return [_checked(found[part.party], part.party, count) for part in parts]


def _checked(said: bytes, party: str, count: int) -> np.ndarray:
    numbers = np.frombuffer(said, np.uint8).astype(np.int64)
    if sorted(set(numbers.tolist())) != list(range(count)):
        raise InputError(
            explain(f"party {party!r} published positions that are none", why=f"they do not fill {count} parts",
                    fix="let all parties run the same version and the same calls")
        )  # fmt: skip
    return numbers
