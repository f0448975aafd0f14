"""What `tune` found: the tuned program, what it saves layer by layer, and what happens when a value leaves its range."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from securemodel.compiler.ir import Node
from securemodel.compiler.ops import CUTS, cut_operand
from securemodel.compiler.tuning import Tuning
from securemodel.inspect.tables import table_text
from securemodel.planning.costs import Cost
from securemodel.planning.layer_names import layer_names
from securemodel.planning.units import bytes_text
from securemodel.program import Program
from securemodel.shown import Shown

_HEADINGS = ("layer", "range", "sent", "tuned", "dealt", "tuned ", "rounds", "tuned  ")


_UNGUARDED = (
    "if a value leaves its range in a later run, the result is wrong and nothing says so: measure typical rows and",
    "extremes, or take a guard",
)
_GUARDED = ("a run in which a value leaves its range has no result: all parties are told, by one bit, and no more",)


@dataclass(frozen=True)
class Gain:
    """A layer, or the whole run: bytes that the busiest party sends and that are dealt, and rounds; before and after.

    `range`: the largest magnitude that a value of the layer may have which is compared, truncated or returned, as a real
    number, and the smallest of these; None where no range was measured, or it saves nothing.
    """

    layer: str
    range: float | None
    sent: tuple[int, int]
    dealt: tuple[int, int]
    rounds: tuple[int, int]


@dataclass(frozen=True, repr=False)
class TunedProgram(Shown):
    """What `tune` returns; print it. `program` runs like any other, `tuning` is what all parties compile with.

    `before` is the program without it. `error`: the largest one of any result on the data, against the model in float.
    """

    program: Program
    before: Program
    tuning: Tuning
    error: float
    tolerance: float

    def save(self, path: str | Path) -> None:
        """Writes the tuning: `compile(..., tuned=path)` reads it. Raises FileError."""
        self.tuning.save(path)

    @cached_property
    def layers(self) -> tuple[Gain, ...]:
        """What each layer costs before and after, in the order of the model."""
        plans = [program.plan() for program in (self.before, self.program)]
        found: list[dict[str, Cost]] = [{layer.name: layer.cost for layer in plan.layers} for plan in plans]
        ranges = _ranges(self.program)
        return tuple(
            _gain(name, ranges.get(name), *(costs.get(name) for costs in found))
            for name in dict.fromkeys([*found[0], *found[1]])
        )

    @cached_property
    def total(self) -> Gain:
        """What a run costs before and after."""
        return _gain("a run", None, self.before.plan().total, self.program.plan().total)

    def __str__(self) -> str:
        return _text(self)


def _ranges(program: Program) -> dict[str, float]:
    """The smallest of the largest magnitudes that values of each layer may have."""
    names, graph, out = layer_names(program.graph), program.graph, dict[str, float]()
    limits = dict(program.header.tuned.limits) if program.header.tuned else {}
    for node in graph.nodes:
        for at in _looked_at(node):
            if at in limits:
                most = 2.0 ** (limits[at] - (graph[at].frac or 0))
                out[names[node.id]] = min(out.get(names[node.id], math.inf), most)
    return out


def _looked_at(node: Node) -> tuple[int, ...]:
    """What a measured range may be of, where this node takes it for granted."""
    if node.op in CUTS:
        return (node.args[cut_operand(node)],)
    return node.args if node.op == "top_bit" else (node.id,) if node.op == "reveal" else ()


def _gain(name: str, most: float | None, before: Cost | None, after: Cost | None) -> Gain:
    sent, dealt, rounds = (
        (0 if before is None else count(before), 0 if after is None else count(after))
        for count in (_sent, lambda cost: cost.preprocessing_bytes, lambda cost: cost.rounds)
    )
    return Gain(name, most, sent, dealt, rounds)


def _sent(cost: Cost) -> int:
    return max(cost.sent_bytes.values())


def _text(found: TunedProgram) -> str:
    rows = [_cells(gain) for gain in (*found.layers, found.total)]
    tuned = found.program.header.tuned
    limits, settled = (len(tuned.limits), tuned.settled) if tuned else (0, 0)
    few = f"{limits} values are looked at in fewer bits"
    lines = [
        "measured on data of one owner, all in the clear: not a secure run",
        table_text(_HEADINGS, rows, _HEADINGS[1:]),
        f"largest error of a result on this data: {found.error:.1e}, allowed is {found.tolerance:.1e}",
        f"of {len(found.tuning.limits)} comparisons, {settled} had one outcome and are left out; {few}",
        f"ranges are {found.tuning.margin:g} times what was seen, or more where that costs the same",
        *_tables(found),
        *(_GUARDED if tuned and tuned.guard else _UNGUARDED),
        "the ranges are in the program's text, which all parties and the dealer see",
    ]
    return "\n".join(lines)


def _tables(found: TunedProgram) -> list[str]:
    """How many tables have fewer pieces, by function."""
    of: dict[str, int] = {}
    for each in found.tuning.tables:
        named = f"{each.function} {'half' if each.times == 1 else 'a quarter'}"
        of[named] = of.get(named, 0) + 1
    if not of:
        return []
    return textwrap.wrap("tables of fewer pieces: " + ", ".join(f"{n} of {name}" for name, n in of.items()), 110)


def _cells(gain: Gain) -> tuple[str, ...]:
    most = "" if gain.range is None else f"±{gain.range:.4g}"
    sizes = [bytes_text(count) for count in (*gain.sent, *gain.dealt)]
    return (" ".join(gain.layer.split()), most, *sizes, *map(str, gain.rounds))
