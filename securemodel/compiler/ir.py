"""The secure graph: a list of nodes of a closed operator set, typed and printable as text.

securemodel.compiler.reading reads a text back.

Forms of a node's value
  float         computed in the clear by its owner (a party, or "public": everybody)
  public        a ring constant everybody knows
  secret        before masks are placed: some shared form, not yet chosen
  bit           before masks are placed: a secret bit per element
  additive, masked, window, bits, masked_bits, order   the forms of protocols.shares

The operators of a program are the rows of securemodel.compiler.ops (docs/architecture.md, "The secure graph", says what
each computes); before masks are placed, those of the rules of securemodel.compiler.passes.scales and .masks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch

from protocols.linear import LAYOUT
from protocols.names import PUBLIC
from securemodel.compiler.owners import Weights

TEXT_VERSION = 2
MASKED_KIND, DEEP_KIND = "secure-program", "deep-program"
"""First words of texts with the masked engine's graph; in the second one, some layers are its owner's (`owned_layer`)."""
CLIENT = "client"
"""The owner of inputs and outputs who is no party: a stranger who hands each party a share, and gets one from each."""


@dataclass(frozen=True)
class Stranger:
    """How the real inputs of a client are taken: each number within [low, high] by `clamp`, or (None) as it comes.

    `other`: the captured model with another number of rows, where what it makes of its weights must not depend on that.
    `all_in_run`: the model's numbers are public values of each run, so that programs of different models have one load.
    """

    clamp: tuple[float, float] | None = None
    other: torch.fx.Graph | None = None
    all_in_run: bool = False


Rounding = Literal["exact", "fast"]
Phase = Literal["load", "run"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""When a node is computed: once with the weights, or in each run."""
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)


def plain_json(value: Any) -> str:
    """The one way a program's text has a value. Raises ValueError for numbers that are not finite."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


WRAPS, AMONG = "wraps", "among"
"""Names of marks: see `Builder.wraps` and `Builder.among`."""
COMPARED = "compared"
"""The name of a mark on a comparison, and on what it reads; its source is the comparison's number when it was lowered."""
MEASURED = "measured"
"""The name of a mark on what is truncated or revealed; its source is the value's number (`passes.fit`)."""
TABLED = "table"
"""The name of a mark on what is read of a table; its source are the table's number and its function."""
TUNED = "tuned range"
"""The name of a mark with the range that a value must stay in because its owner measured it: see `Tuned`."""


@dataclass(frozen=True)
class Mark:
    """What a node's value means to the model, for those who look at values in the clear; no part of the program.

    With a range, `name` is a function that needs its argument in [low, high), or 0 where `or_zero`. Without one it is
    the captured operator that computes this value. `frac`: the value's fractional bits, known after scales are placed.
    """

    name: str
    source: str
    low: float | None = None
    high: float | None = None
    or_zero: bool = False
    frac: int = 0


@dataclass
class Node:
    """One operation. `args` are ids of earlier nodes; `attrs` hold plain JSON values only."""

    id: int
    op: str
    args: tuple[int, ...]
    attrs: dict[str, Any]
    shape: tuple[int, ...]
    form: str
    frac: int | None = None
    owner: str | None = None
    phase: Phase = "run"
    source: str = field(default="", compare=False)
    marks: tuple[Mark, ...] = field(default=(), compare=False)

    def text(self) -> str:
        """One line, without the source position (which differs between hosts)."""
        left = f"%{self.id} = {self.op}" + (f"@{self.owner}" if self.owner else "")
        args = "".join(f" %{a}" for a in self.args)
        attrs = f" {plain_json(self.attrs)}" if self.attrs else ""
        frac = f" f{self.frac}" if self.frac is not None else ""
        shape = "[" + ",".join(map(str, self.shape)) + "]"
        return f"{left}{args}{attrs} : {self.form}{frac} {shape}" + (" load" if self.phase == "load" else "")


def phase_of(operands: Iterable[Node], attrs: Mapping[str, Any] = MappingProxyType({})) -> Phase:
    """When what is computed from these nodes is computed: with the weights, unless a run gives one of them, or its
    attribute "run" says that the result has the rows of a run."""
    return "run" if attrs.get("run") or any(node.phase == "run" for node in operands) else "load"


def only_moves(node: Node) -> bool:
    """Whether each element is one of the operand's, or zero."""
    return node.op == "linear" and node.attrs["kind"] in LAYOUT


def is_check(node: Node) -> bool:
    """Whether an owner checks its values with this: the model's assertions. Nothing reads it."""
    return node.op == "float" and str(node.attrs.get("target")).startswith(_CHECKS)


_CHECKS = ("_linalg_check_errors.", "_assert_scalar.", "_assert_async.", "sym_constrain_range", "_allow_every_row")


@dataclass
class Graph:
    """Nodes in topological order; ids are positions."""

    nodes: list[Node] = field(default_factory=list)

    def add(self, op: str, args: Iterable[int] = (), shape: Iterable[int] = (), form: str = "secret", **rest) -> Node:
        """Appends a node and returns it."""
        attrs = rest.pop("attrs", {})
        node = Node(len(self.nodes), op, tuple(args), attrs, tuple(int(s) for s in shape), form, **rest)
        self.nodes.append(node)
        return node

    def again(self, node: Node, args: Iterable[int]) -> Node:
        """Appends a node of another graph, with operands of this one, and returns it."""
        self.nodes.append(replace(node, id=len(self.nodes), args=tuple(args)))
        return self.nodes[-1]

    def __getitem__(self, node_id: int) -> Node:
        return self.nodes[node_id]

    def users(self) -> list[list[int]]:
        """For each node, the ids of the nodes that read it."""
        users: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for arg in node.args:
                users[arg].append(node.id)
        return users

    def keeps(self, *phases: Phase) -> dict[str, Node]:
        """What is kept for the next run, by name; in these phases alone, or by default in both, where a run's comes last."""
        wanted = phases or PHASES
        return {node.attrs["name"]: node for node in self.nodes if node.op == "keep" and node.phase in wanted}

    def text(self) -> str:
        return "\n".join(node.text() for node in self.nodes)


@dataclass(frozen=True)
class Tuned:
    """Ranges that an owner measured on data of its own, and that the program takes for granted.

    of: digest of what the ranges were measured for; margin: by which factor values may be larger than was seen.
    limits: (node, bits), for values that are compared, truncated or revealed, and with what rounding adds stay below 2^bits
    in units of the ring. settled: how many comparisons are left out, because what they read never changed its sign. tables: how many tables have fewer pieces. guard: whether the program's last output
    tells all parties that a value left its range.
    """

    of: str
    margin: float
    limits: tuple[tuple[int, int], ...]
    settled: int = 0
    tables: int = 0
    guard: bool = False

    def text(self) -> dict[str, Any]:
        """Its fields as a program's first line has them."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class Header:
    """What a program states besides its nodes. `tuned`: None where every range is proven."""

    parties: tuple[str, ...]
    frac_bits: int
    width: int
    weights: Weights
    inputs: tuple[str, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[str, ...]
    rounding: Rounding = "exact"
    tuned: Tuned | None = None

    @property
    def contributors(self) -> tuple[str, ...]:
        """Owners of inputs who are no parties: their rows were shared before, and they have left."""
        return tuple(dict.fromkeys(name for name in self.inputs if name not in (*self.parties, PUBLIC, CLIENT)))

    def is_stranger(self, name: str) -> bool:
        """Whether an owner of inputs or outputs is a client who takes no part in the runs."""
        return name == CLIENT and CLIENT not in self.parties

    @property
    def serves(self) -> bool:
        """Whether a stranger gives inputs: weights then enter as shares, too, so that parties may keep shares of them."""
        return any(map(self.is_stranger, self.inputs))

    @property
    def tuning(self) -> str:
        """Names the measured ranges that the program takes for granted; nothing where every range is proven."""
        return digest(plain_json(self.tuned.text()))[:16] if self.tuned else ""

    @property
    def guarded(self) -> bool:
        """Whether the last output is a guard's."""
        return self.tuned is not None and self.tuned.guard

    @property
    def results(self) -> tuple[str, ...]:
        """Who learns what the model returns: the outputs but for a guard's."""
        return self.outputs[:-1] if self.guarded else self.outputs

    @property
    def rows(self) -> int:
        """How many rows the program takes at a time: the first axis of its first input that has one."""
        return next((shape[0] for shape in self.input_shapes if shape), 1)

    def text(self, kind: str = MASKED_KIND) -> str:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "tuned"}
        if self.tuned is not None:
            fields["tuned"] = self.tuned.text()
        return f"{kind} {TEXT_VERSION} {plain_json(fields)}"


def program_text(header: Header, graph: Graph, kind: str = MASKED_KIND) -> str:
    """The canonical text of a program; its digest is what parties and dealer compare."""
    return header.text(kind) + "\n" + graph.text() + "\n"


def digest(text: str) -> str:
    """SHA-256 of a program's text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
