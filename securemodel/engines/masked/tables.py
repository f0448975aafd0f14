"""Rows that are shared once: what a party has of them, in all sessions of a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from protocols.prg import Stream, new_key
from protocols.shares import Masked

TABLE_EPOCH = 0
"""Of the masks of tables: their key is used for them alone, and once, so that later sessions find the same masks."""


@dataclass(repr=False)
class Tables:
    """A party's part of the rows that are shared once for one program.

    It outlives sessions: a later one finds in `shared` what was sent in an earlier one, and nothing is sent again. `key` is
    that of the masks of this party's own rows, which a dealer gets at the start of each session. `first` is the step
    (from 0) that the first run after a load makes.
    """

    key: bytes = field(default_factory=new_key)
    first: int = 0
    shared: dict[int, Masked] = field(default_factory=dict)

    def under(self, key: bytes) -> Tables:
        """The same with masks of this key; what was shared under another one is shared again."""
        return self if key == self.key else Tables(key, self.first)


@dataclass(frozen=True)
class TableMasks:
    """What the masks of tables follow from: the streams of their owners, as far as they are known here, and the step."""

    streams: Mapping[str, Stream] = field(default_factory=dict)
    step: int = 0


NO_TABLES = TableMasks()
