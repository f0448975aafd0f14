"""Which tables have fewer pieces than a model was compiled with: as few as the accuracy asked for allows, on an owner's data.

Halving a table makes pieces twice as wide and errors eight times as large, and halves what is dealt for an index.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from securemodel.compiler.approximations import MOST_HALVED, TABLE_SIZE
from securemodel.compiler.ir import TABLED, Graph

MOST_TRIALS = 12
"""A trial compiles the model and runs all rows."""


@dataclass(frozen=True)
class Read:
    """A table: its number, its function, how many elements are looked up in it, and the layer."""

    number: int
    function: str
    count: int
    layer: str


def tables_of(graph: Graph, names: Sequence[str]) -> tuple[Read, ...]:
    """The tables that a program reads; names: the layer of each node."""
    found: dict[int, Read] = {}
    for node in graph.nodes:
        for mark in (mark for mark in node.marks if mark.name == TABLED and node.op == "spline"):
            number, _, function = mark.source.partition(" ")
            before = found.get(int(number))
            count = torch.Size(node.shape).numel() + (before.count if before else 0)
            found[int(number)] = Read(int(number), function, count, " ".join(names[node.id].split()))
    return tuple(found.values())


def halvings(
    tables: Sequence[Read], error: Callable[[Mapping[int, int]], float], tolerance: float, tell: Callable[[str], None]
) -> dict[int, int]:
    """How often each table is halved, by its number.

    Greedy: functions by how much is looked up in them, all tables of one at a time, and parts of these where they cost too
    much accuracy together. `error`: the largest error with such tables, infinite where there are none or they save nothing; `tell` is told what
    each trial found.
    """
    found: dict[int, int] = {}
    waiting = _by_function(tables)
    for trial in range(1, MOST_TRIALS + 1):
        if not waiting:
            break
        part = waiting.pop(0)
        tried = found | {table.number: found.get(table.number, 0) + 1 for table in part}
        made = error(tried)
        kept, what = (
            made <= tolerance,
            f"{len(part)} of {part[0].function}, {TABLE_SIZE >> tried[part[0].number]} entries",
        )
        off = f"largest error {made:.2g}" if made < math.inf else "no such tables, or no fewer bytes"
        tell(f"trial {trial} of at most {MOST_TRIALS}: {what}: {off}, {'kept' if kept else 'not kept'}")
        if kept:
            found = tried
            if tried[part[0].number] < MOST_HALVED:
                waiting.insert(0, part)
        elif len(part) > 1:
            middle = len(part) // 2
            waiting += [part[:middle], part[middle:]]
    return found


def _by_function(tables: Sequence[Read]) -> list[list[Read]]:
    """All tables of a function together, the largest first."""
    groups: dict[str, list[Read]] = {}
    for table in sorted(tables, key=lambda table: -table.count):
        groups.setdefault(table.function, []).append(table)
    return sorted(groups.values(), key=lambda group: -sum(table.count for table in group))
