"""A program of CrypTen calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from protocols.names import PUBLIC
from securemodel.compiler.ir import Graph, Header
from securemodel.compiler.ops import MAX_PROGRAM_BYTES, ROWS, Case, Made, Row, in_a_run
from securemodel.compiler.reading import parse_program
from securemodel.program import Program

KIND = "crypten-program"
_RESULT = {"index": ROWS["reveal"].attrs["index"]}


def _stated(case: Case) -> Made:
    """What CrypTen makes of its operands is not derived here."""
    return Made(case.node.shape)


def _giver(case: Case) -> str:
    return case.header.parties[0] if case.xs[0].owner == PUBLIC else cast(str, case.xs[0].owner)


CALL_ROWS: dict[str, Row] = {
    "placeholder": ROWS["placeholder"],
    "float": ROWS["float"],
    "input": Row("float -> secret", lambda case: Made(case.xs[0].shape), owner=_giver, may_be_empty=True),
    "call": Row("(secret )*-> secret", _stated, ROWS["float"].attrs, phase=in_a_run, may_be_empty=True),
    "item": Row("secret -> secret", _stated, _RESULT, phase=in_a_run, may_be_empty=True),
    "reveal": Row(
        "secret -> secret", lambda case: Made(case.xs[0].shape),
        {**ROWS["reveal"].attrs, "to": lambda value: isinstance(value, str)}, phase=in_a_run, may_be_empty=True,
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
      call      an ATen operator of securemodel.engines.crypten.operators on secrets
      item      one of the results of a call that makes several
    """

    protocol: ClassVar[str] = "crypten"

    kind: ClassVar[str] = KIND


def parse(text: str, max_bytes: int = MAX_PROGRAM_BYTES) -> tuple[Header, Graph]:
    """Header and graph of a program's text. Raises ProgramError."""
    return parse_program(text, (KIND,), CALL_ROWS, max_bytes)


def read_program(text: str, max_bytes: int = MAX_PROGRAM_BYTES) -> CryptenProgram:
    """The program in a text that `save` wrote. Raises ProgramError."""
    return CryptenProgram(*parse(text, max_bytes))
