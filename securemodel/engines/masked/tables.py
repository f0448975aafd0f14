"""Rows that are shared once: what a party has of them, in all sessions of a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from protocols.prg import Stream, new_key
from protocols.shares import Masked
from securemodel.compiler.ir import Graph
from securemodel.compiler.positions import table_nodes

TABLE_EPOCH = 0
"""Of the masks of tables: their key is used for them alone, and once, so that later sessions find the same masks."""


@dataclass(frozen=True, repr=False)
class Contributed:
    """What a party has of the rows of an owner who shared them and left: the key of its share of their masks, which no other
    party has, and the rows under the sum of all shares, by node. `sharing` is the same at all parties, and of this time
    alone that the owner shared them.
    """

    key: bytes
    rows: Mapping[int, torch.Tensor]
    sharing: str = ""


@dataclass(repr=False)
class Tables:
    """A party's part of the rows that are shared once for one program.

    It outlives sessions: a later one finds in `shared` what was sent in an earlier one, and nothing is sent again. `key` is
    that of the masks of this party's own rows, which a dealer gets at the start of each session. `first` is the step
    (from 0) that the first run after a load makes. `contributed` is what owners gave who left, by their names.
    """

    key: bytes = field(default_factory=new_key)
    first: int = 0
    shared: dict[int, Masked] = field(default_factory=dict)
    contributed: Mapping[str, Contributed] = field(default_factory=dict)

    def under(self, key: bytes) -> Tables:
        """The same with masks of this key; what was shared under another one is shared again."""
        return self if key == self.key else Tables(key, self.first)

    def key_of(self, owner: str) -> bytes:
        """The key of this party's share of the masks of an owner's rows: of its own, or of an owner who left."""
        return self.contributed[owner].key if owner in self.contributed else self.key


def keys_to_hand(graph: Graph, parties: Sequence[str], me: str) -> list[str]:
    """The owners of the rows whose masks need a key of this party: itself, and those who left, in the order of their names."""
    return [owner for owner in owners_of(graph) if owner == me or owner not in parties]


def owners_of(graph: Graph) -> list[str]:
    """Whose rows are shared once, in the order of their names."""
    return sorted({str(node.owner) for node in table_nodes(graph)})


def table_streams(
    graph: Graph, parties: Sequence[str], stream_of: Callable[[str, str], Stream]
) -> dict[str, list[Stream]]:
    """The streams of the masks by owner, for whoever knows all: `stream_of(party, owner)` is that of a party's share."""
    found: dict[str, list[Stream]] = {owner: [] for owner in owners_of(graph)}
    for me in parties:
        for owner in keys_to_hand(graph, parties, me):
            found[owner].append(stream_of(me, owner))
    return found


@dataclass(frozen=True)
class TableMasks:
    """What the masks of tables follow from: their streams by owner, as far as they are known here, and the step.

    An owner that is a party has one; of one who left, every party has one.
    """

    streams: Mapping[str, Sequence[Stream]] = field(default_factory=dict)
    step: int = 0


NO_TABLES = TableMasks()
