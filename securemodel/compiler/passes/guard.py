"""A guard for measured ranges: whether every value that is compared in fewer bits lies within its range, as one bit for all.

Sums of all such values show it (`protocols.gates.beyond`). Those of all comparisons are added up, and whether any is not
zero is all that is revealed, at the end of a run.
"""

from __future__ import annotations

from typing import Any

from protocols.gates.beyond import BITS
from protocols.names import EVERYBODY
from securemodel.compiler.ir import Graph, Node
from securemodel.compiler.passes.reach import is_width

CHECKS = 4
MOST_BITS = 63 - BITS
"""A range may have so many bits: above it are those that a guard reads."""
LAYER = "guard of tuned ranges"
_SUM_BITS = 3


def guard_ranges(graph: Graph, index: int) -> bool:
    """Adds a last output, which is true where a value of the run left its range; whether there is anything to guard."""
    live = _live(graph)
    guarded = [n for n in graph.nodes if n.id in live and n.op == "is_negative" and _is_tuned(graph[n.args[0]])]
    if not guarded:
        return False

    def add(op: str, args: list[Node], shape: tuple[int, ...], attrs: dict[str, Any], form: str = "secret") -> Node:
        return graph.add(op, [node.id for node in args], shape, form, frac=0, attrs=attrs, source=LAYER)

    sums = [add("beyond", [graph[n.args[0]], n], (CHECKS,), {"checks": CHECKS, "key": n.id}) for n in guarded]
    total = sums[0]
    for one in sums[1:]:
        total = add("linear", [total, one], (CHECKS,), {"kind": "add", "attrs": {}})
    unit = add("unit", [total], (CHECKS, 1 << BITS), {"size": 1 << BITS})
    first = {"dim": 1, "start": 0, "stop": 1, "step": 1}
    zeros = add("linear", [unit], (CHECKS, 1), {"kind": "slice", "attrs": first})
    count = add("linear", [zeros], (1,), {"kind": "sum", "attrs": {"dims": [0], "keepdim": False}})
    fewer = {"shift": 0, "low_bits": _SUM_BITS, "rounded": 0, "offset": -CHECKS}
    some = add("is_negative", [count], (1,), fewer, "bit")
    outside = add("bit_to_ring", [some], (1,), {"invert": False, "shape": [1]})
    add("reveal", [outside], (1,), {"index": index, "dtype": "bool"}, "float").owner = EVERYBODY
    return True


def _is_tuned(node: Node) -> bool:
    return any(map(is_width, node.marks))


def _live(graph: Graph) -> set[int]:
    live = {node.id for node in graph.nodes if node.op == "reveal"}
    for node in reversed(graph.nodes):
        if node.id in live:
            live.update(node.args)
    return live
