"""A program of CrypTen calls, and its plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from protocols.names import PUBLIC
from securemodel.compiler.ir import Graph, Header, program_text
from securemodel.compiler.ops import ROWS, Case, Made, Row
from securemodel.compiler.reading import parse_program
from securemodel.program import Program
from securemodel.shown import Shown

KIND = "crypten-program"
_RESULT = {"index": ROWS["reveal"].attrs["index"]}


def _stated(case: Case) -> Made:
    """What CrypTen makes of its operands is not derived here."""
    return Made(case.node.shape)


def _giver(case: Case) -> str:
    return case.header.parties[0] if case.xs[0].owner == PUBLIC else case.xs[0].owner


def _in_a_run(case: Case) -> bool:
    return False


CALL_ROWS: dict[str, Row] = {
    "placeholder": ROWS["placeholder"],
    "float": ROWS["float"],
    "input": Row("float -> secret", lambda case: Made(case.xs[0].shape), owner=_giver, may_be_empty=True),
    "call": Row("(secret )*-> secret", _stated, ROWS["float"].attrs, load=_in_a_run, may_be_empty=True),
    "item": Row("secret -> secret", _stated, _RESULT, load=_in_a_run, may_be_empty=True),
    "reveal": Row(
        "secret -> secret", lambda case: Made(case.xs[0].shape),
        {**ROWS["reveal"].attrs, "to": lambda value: isinstance(value, str)}, load=_in_a_run, may_be_empty=True,
    ),
}  # fmt: skip
"""The operators of a program of CrypTen calls."""


def trust(first: str) -> str:
    """What CrypTen with its default provider (TFP) does not protect, where `first` is the first party."""
    return (
        f"the first party, {first}, makes and so knows all correlated randomness, and can read every secret; masks are "
        "from a generator that is not cryptographic; links are neither encrypted nor authenticated"
    )


@dataclass(frozen=True, repr=False)
class CryptenProgram(Program):
    """A program that CrypTen runs: the captured operators by name, and who shares and learns what.

    Operators of its graph besides `placeholder`, `float`, `input` and `reveal`
      call      an ATen operator of securemodel.backends.crypten.operators on secrets
      item      one of the results of a call that makes several
    """

    protocol: ClassVar[str] = "crypten"

    @cached_property
    def _text(self) -> str:
        return program_text(self.header, self.graph, KIND)

    def plan(self, network: Any = "lan") -> CryptenPlan:
        """What is known before a run; CrypTen itself counts nothing ahead, so the network does not matter."""
        return make_plan(self)

    @staticmethod
    def load(path: str | Path) -> CryptenProgram:
        """Reads a text written by `save`. Raises ProgramError."""
        return CryptenProgram(*parse(Path(path).read_text()))


def parse(text: str) -> tuple[Header, Graph]:
    """Header and graph of a program's text. Raises ProgramError."""
    return parse_program(text, KIND, CALL_ROWS)


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


def make_plan(program: CryptenProgram) -> CryptenPlan:
    """The plan of a program, compiled or read from a file."""
    calls: Counter[str] = Counter()
    shared: Counter[tuple[str, bool]] = Counter()
    revealed = []
    for node in program.graph.nodes:
        size = _size(node.shape)
        if node.op == "call":
            calls[node.attrs["target"]] += 1
        elif node.op == "input":
            shared[node.owner, node.load] += size
        elif node.op == "reveal":
            revealed.append((node.attrs["to"], size))
    owners = tuple((name, shared[name, True], shared[name, False]) for name in program.parties)
    return CryptenPlan(program.digest, program.parties, dict(calls), owners, tuple(revealed))


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for axis in shape:
        size *= axis
    return size
