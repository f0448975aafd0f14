"""A compiled model: the secure program every party runs, its text and its digest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from protocols.errors import explain
from protocols.files import write_atomically
from securemodel.compiler.builder import FloatCall
from securemodel.compiler.capture import Captured, Examples
from securemodel.compiler.ir import MASKED_KIND, Graph, Header, digest, program_text
from securemodel.compiler.lowering import pool_before_activation
from securemodel.compiler.ops import MAX_PROGRAM_BYTES
from securemodel.compiler.postprocess import Reveal, capture_revealing, result_names, revealing
from securemodel.compiler.reading import parse_program, read_text
from securemodel.compiler.rows import rows_are_independent
from securemodel.errors import InputError


@dataclass(frozen=True, repr=False)
class Program:
    """A secure program. Compiled ones can be run; those read from a file can be planned and dealt for."""

    protocol: ClassVar[str] = "masked"
    kind: ClassVar[str] = MASKED_KIND
    maker: ClassVar[str] = "compile"
    """The function of securemodel that makes such programs: what advice names."""
    planner: ClassVar[Callable[[Any, Any], Any]]
    """Makes the plan of a run from a program and a network; `securemodel.api` says it for each kind."""

    header: Header
    graph: Graph
    calls: dict[int, FloatCall] = field(default_factory=dict)
    model: torch.nn.Module | None = None
    examples: Examples = ()
    reveal: Reveal = "all"
    captured: Captured | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"Program({len(self.graph.nodes)} nodes, parties={list(self.header.parties)}, digest={self.digest[:12]})"

    @property
    def parties(self) -> tuple[str, ...]:
        """The online parties in rank order."""
        return self.header.parties

    @property
    def contributors(self) -> tuple[str, ...]:
        """Owners of rows who are no parties: they shared them before, and left."""
        return self.header.contributors

    @cached_property
    def _text(self) -> str:
        return program_text(self.header, self.graph, self.kind)

    def text(self) -> str:
        """The secure graph, one operation a line."""
        return self._text

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text: equal at all parties and the dealer before anything runs."""
        return digest(self._text)

    @cached_property
    def row_independent(self) -> bool:
        """Whether a run may be split along the first axis: each output row depends on one input row only."""
        if self.graph.keeps("run"):
            return False
        return self.model is not None and rows_are_independent(revealing(self.model, self.reveal), self.examples)

    def tables_of(self, me: str) -> Mapping[str, torch.Tensor]:
        """The rows that a party shares once, encoded, by the names of their placeholders. Raises InputError."""
        raise InputError(
            explain(
                "this program reads rows that are shared once, and they are not here",
                why="it was read from a file, or comes from another process",
                fix="run the program of the job that compile_training() returns",
            )
        )

    @cached_property
    def model_graph(self) -> Captured | None:
        """The captured model, captured again where the program came from another process; None without a model."""
        if self.captured is None and self.model is not None:
            captured = capture_revealing(self.model, self.examples, self.reveal)
            pool_before_activation(captured.graph)
            return captured
        return self.captured

    @property
    def input_names(self) -> tuple[str, ...]:
        """What each of the inputs is, for people."""
        return tuple(f"input {index}" for index in range(len(self.header.inputs)))

    @property
    def result_names(self) -> tuple[str, ...]:
        """What each of the outputs is, for files and ledgers."""
        names = result_names(self.reveal, len(self.header.results))
        return (*names, "a tuned range was left") if self.header.guarded else names

    def __reduce__(self):
        """Pickled and copied without the captured model, which is not needed to run."""
        return type(self), (self.header, self.graph, self.calls, self.model, self.examples, self.reveal)

    def plan(self, network: Any = "lan") -> Any:
        """What a run costs: rounds, bytes, preprocessing, memory and predicted time (securemodel.planning)."""
        return type(self).planner(self, network)

    def save(self, path: str | Path) -> None:
        """Writes the text; never leaves a half-written file."""
        write_atomically(Path(path), self._text.encode())

    @staticmethod
    def load(path: str | Path, max_bytes: int = MAX_PROGRAM_BYTES) -> Program:
        """Reads a text written by `save`, and checks every line of it. Raises ProgramError.

        `max_bytes` bounds the program's values with what is dealt for them.
        """
        text = read_text(Path(path))
        return READERS.get(text.partition(" ")[0], read_masked)(text, max_bytes)


@dataclass(frozen=True, repr=False)
class StepProgram(Program):
    """A program whose runs are steps of a training. `step` is the captured step; None in another process."""

    step: Any = field(default=None, compare=False)


def read_masked(text: str, max_bytes: int) -> Program:
    """The program of the masked engine in a text. Raises ProgramError."""
    return Program(*parse_program(text, max_bytes=max_bytes))


READERS: dict[str, Callable[[str, int], Program]] = {MASKED_KIND: read_masked}
"""What reads each kind of text, by its first word; `securemodel.api` adds those of the other engines."""


def checked(program: Program, where: str) -> Program:
    """The program. Raises InputError where it is something else."""
    if not isinstance(program, Program):
        what = f"a program is wanted, and this is of the type {type(program).__name__}"
        raise InputError(explain(what, where=where, fix="give what compile() returns"))
    return program


def receivers(outputs: str | Sequence[str], count: int) -> list[str]:
    """Who learns each of `count` outputs: a party, or "all" (also said as "public")."""
    names = [outputs] * count if isinstance(outputs, str) else list(outputs)
    return ["all" if name == "public" else name for name in names]
