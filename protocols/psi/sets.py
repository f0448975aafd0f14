"""A party's own ids, before anything is done with them: checked, put into a secret order, committed to."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from protocols.errors import InputError, explain
from protocols.prg import KEY_BYTES, Stream, new_key

_SHOWN = 3
_MOST_ID_BYTES = 1 << 20


@dataclass(frozen=True, repr=False)
class OwnSet:
    """Ids that differ, one for each row of a party's file; made by `own_set`."""

    ids: Sequence[bytes]
    digest: bytes

    def commitment(self, owner: str, salt: bytes) -> str:
        """Hexadecimal; with the same secret salt, of 32 bytes, it is the same for the same set in any order.

        It tells nobody who lacks the salt anything of the set, and the owner can show later which set it was.
        """
        return hashlib.sha256(b"set of ids" + salt + owner.encode() + b"\0" + self.digest).hexdigest()

    def ordered(self, rows: np.ndarray) -> list[bytes]:
        """The ids of some rows, in their order."""
        return [self.ids[row] for row in rows.tolist()]


def own_set(ids: Sequence[bytes | None]) -> OwnSet:
    """Checks the ids of a party's rows, one for each, as canonical bytes. Raises InputError for missing or equal ones.

    The error names rows, counted from 0, for their owner; peers are told its kind alone.
    """
    if isinstance(ids, np.ndarray) and ids.dtype.kind != "O":
        fix = "give a list of bytes, or an array of objects: other arrays drop zeros at the end of an id"
        raise InputError(explain(f"ids are an array of {ids.dtype}", fix=fix))
    problems = []
    missing = [row for row, item in enumerate(ids) if not item]
    if missing:
        problems.append(f"{len(missing)} of {len(ids)} rows have no id: {_rows(missing)}")
    if any(len(item) > _MOST_ID_BYTES for item in ids if item):
        problems.append(f"an id has more than {_MOST_ID_BYTES} bytes")
    order = sorted((row for row, item in enumerate(ids) if item), key=ids.__getitem__)  # type: ignore[arg-type]
    again = [row for before, row in itertools.pairwise(order) if ids[before] == ids[row]]
    if again:
        problems.append(f"{len(again)} of {len(ids)} rows have the id of an earlier row: {_rows(sorted(again))}")
    if problems:
        fix = "leave these rows out, or make one row of those of one id, before the alignment"
        raise InputError(explain("the ids of the rows cannot be aligned", why="; ".join(problems), fix=fix))
    digest = hashlib.sha256()
    for row in order:
        item = ids[row] or b""
        digest.update(len(item).to_bytes(4, "little") + item)
    return OwnSet(ids, digest.digest())  # type: ignore[arg-type]


def shuffled(count: int) -> np.ndarray:
    """int64[count]: the numbers below count in an order that follows from a fresh key, and that nobody else knows."""
    words = Stream(new_key()).draw((count,), 0, 0, 0, torch.int64).numpy()
    return np.argsort(words, kind="stable")


def new_salt() -> bytes:
    """A salt for commitments that are compared with no others."""
    return new_key()


SALT_BYTES = KEY_BYTES


def _rows(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:_SHOWN]))}{more}"
