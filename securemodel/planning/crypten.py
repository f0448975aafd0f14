"""What a program of CrypTen calls does, as far as it is known before a run."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

from securemodel.engines.crypten.program import CryptenProgram, trust
from securemodel.shown import Shown


@dataclass(frozen=True, repr=False)
class CryptenPlan(Shown):
    """What a program of CrypTen calls does; print it. `shared` has (owner, numbers at loading, numbers in a run)."""

    digest: str
    parties: tuple[str, ...]
    calls: dict[str, int]
    shared: tuple[tuple[str, int, int], ...]
    revealed: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        width = max(map(len, self.calls), default=0)
        return "\n".join(
            [
                f"program {self.digest[:12]} for CrypTen, parties {', '.join(self.parties)}",
                *(f"  {name:<{width}}  {count}" for name, count in self.calls.items()),
                *(f"{who} shares {load} numbers at loading, {run} in a run" for who, load, run in self.shared),
                *(f"output {index}: {to} learns {n} numbers" for index, (to, n) in enumerate(self.revealed)),
                "not counted: rounds, bytes, memory and time; session.stats has rounds and bytes after a run",
                f"trust: {trust(self.parties[0])}",
            ]
        )


def make_plan(program: CryptenProgram, network: Any = "lan") -> CryptenPlan:
    """What is known before a run; CrypTen itself counts nothing ahead, so the network does not matter."""
    calls: Counter[str] = Counter()
    shared: Counter[tuple[str, str]] = Counter()
    revealed = []
    for node in program.graph.nodes:
        size = math.prod(node.shape)
        if node.op == "call":
            calls[node.attrs["target"]] += 1
        elif node.op == "input":
            shared[cast(str, node.owner), node.phase] += size
        elif node.op == "reveal":
            revealed.append((node.attrs["to"], size))
    owners = tuple((name, shared[name, "load"], shared[name, "run"]) for name in program.parties)
    return CryptenPlan(program.digest, program.parties, dict(calls), owners, tuple(revealed))
