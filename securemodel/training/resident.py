"""Rows that their owners share once: a step's program reads them by public positions instead of taking each batch as input.

What an owner computes of its rows in the clear (one-hot labels, a frozen encoder) is computed before they are shared, where
it treats each row alone; a step takes everything else as input, as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from protocols.errors import explain
from protocols.gates import numel
from protocols.names import PUBLIC
from securemodel.compiler.builder import FloatCall
from securemodel.compiler.ir import Graph, Node
from securemodel.compiler.passes.schedule import order_nodes
from securemodel.compiler.positions import TABLE
from securemodel.compiler.rows import made_up_inputs
from securemodel.engines.clear import ClearSide
from securemodel.engines.masked.compiling import renamed
from securemodel.errors import CompileError, InputError
from securemodel.program import Program
from securemodel.training.datasets import Batches

MOST_BYTES = 1 << 30
"""Of rows that are shared once unless the user says so: every party keeps them masked, 8 bytes a number."""
Shape = tuple[int, ...]
_TRIALS = 4
_EXTREME = 2.0**14


@dataclass(frozen=True)
class Table:
    """Rows that are shared once in place of an input: which node of the program with inputs, whose, and where rows are.

    `view` is a shape of the input in which axis `dim` has the rows of a batch; `shape` is the same with all rows.
    """

    node: int
    name: str
    owner: str
    part: int
    dim: int
    view: Shape
    shape: Shape


def tables_of(program: Program, batches: Batches) -> tuple[Table, ...]:
    """What a program that takes each batch as input can read from rows that are shared once; () where nothing, or too much.

    `batches.resident` decides; where it is None, they are shared once unless they take more than MOST_BYTES. Those of
    contributors always are: CompileError where a step cannot read them so.
    """
    gone = program.contributors
    if batches.resident is False and not gone:
        return ()
    places = [part for _, part, _ in batches.parts()]
    found: list[Table] = []
    for node in program.graph.nodes:
        part = _part(program.graph, node, places) if node.op == "input" and node.phase == "run" else None
        if part is None:
            if node.op == "input" and node.phase == "run" and node.owner in gone:
                raise _mixed(program, node, batches)
            continue
        where = _where_rows_are(program, node, batches, part)
        if where is None and node.owner in gone:
            raise _mixed(program, node, batches)
        if where is not None:
            view, dim = where
            shape = (*view[:dim], len(batches.data.positions[part]), *view[dim + 1 :])
            found.append(Table(node.id, f"{TABLE}:{len(found)}", str(node.owner), part, dim, view, shape))
    size = sum(8 * numel(table.shape) for table in found)
    if batches.resident or (batches.resident is None and size <= MOST_BYTES):
        return tuple(found)
    return tuple(table for table in found if table.owner in gone)


def _mixed(program: Program, node: Node, batches: Batches) -> CompileError:
    columns = sorted({name for name, _, piece in batches.parts() if piece.party == node.owner})
    return CompileError(
        explain(
            f"{node.owner!r} cannot share its rows before the training and leave",
            where=program.graph[node.args[0]].source or node.source,
            why=f"of its {', '.join(columns)}, this computes in the clear what depends on which rows are in a batch",
            fix=f"name {node.owner!r} among the parties, or compute from each row alone what it has in the clear",
        )
    )


def reading(program: Program, batches: Batches, found: tuple[Table, ...]) -> tuple[Graph, dict[int, FloatCall]]:
    """The graph and the calls of a program with these tables in place of inputs."""
    graph = Graph()
    ids: dict[int, int] = {}
    at = {table.node: table for table in found}
    for node in program.graph.nodes:
        table = at.get(node.id)
        if table is None:
            copied = graph.again(node, [ids[a] for a in node.args])
        else:
            copied = _read(graph, node, table, batches)
        ids[node.id] = copied.id
    calls = renamed(graph, program.calls, ids)
    ordered, ids = order_nodes(graph)
    return ordered, renamed(ordered, calls, ids)


def _read(graph: Graph, node: Node, table: Table, batches: Batches) -> Node:
    whose = {"owner": table.owner, "phase": "load", "source": node.source}
    source = graph.add("placeholder", [], table.shape, "float", attrs={"name": table.name}, **whose)
    whole = graph.add("input", [source.id], table.shape, "masked", frac=node.frac, **whose)
    attrs = {
        "dim": table.dim, "size": batches.sizes[table.part], "steps": batches.steps_per_epoch, "seed": batches.seed,
        "part": table.part, "shuffle": batches.shuffle,
    }  # fmt: skip
    rest = {"frac": node.frac, "source": node.source, "marks": node.marks}
    taken = graph.add("rows", [whole.id], table.view, "masked", attrs=attrs, phase="run", **rest)
    if table.view == node.shape:
        return taken
    reshape = {"kind": "reshape", "attrs": {"shape": list(node.shape)}}
    return graph.add("linear", [taken.id], node.shape, "masked", attrs=reshape, phase="run", **rest)


def encoded_rows(program: Program, batches: Batches, found: tuple[Table, ...], me: str) -> Mapping[str, torch.Tensor]:
    """The rows that a party shares, encoded as the program with inputs does it, batch after batch."""
    mine = [table for table in found if table.owner == me]
    side = ClearSide(program, me)
    side.set_model(program.model)
    whole = {table.name: torch.empty(table.shape, dtype=torch.int64) for table in mine}
    for places in batches.in_turn():
        given = batches.rows_at(places, me)
        side.set_inputs([*given, *[None] * (len(program.header.inputs) - len(given))])
        for table in mine:
            at = torch.from_numpy(places[table.part])
            at = at[at < table.shape[table.dim]]
            rows = side.encoded(program.graph[table.node]).view(table.view)
            whole[table.name].index_copy_(table.dim, at, rows.narrow(table.dim, 0, len(at)))
    return whole


# ---- which inputs
def _part(graph: Graph, node: Node, places: list[int]) -> int | None:
    """The part of the rows that an input is computed from, if it is from these and from what is loaded alone."""
    parts, queue, seen = set(), list(node.args), set()
    while queue:
        source = graph[queue.pop()]
        if source.id in seen:
            continue
        seen.add(source.id)
        queue += source.args
        kind, _, name = source.attrs.get("name", "").partition(":") if source.op == "placeholder" else ("", "", "")
        if kind == "input":
            parts.add(places[int(name)] if int(name) < len(places) else None)
    (part,) = parts if len(parts) == 1 else (None,)
    return part


def _views(shape: Shape, size: int) -> Iterator[tuple[Shape, int]]:
    """The ways in which an axis of a shape may have rows of a batch: alone, or with parts of each row around them."""
    for axis, length in enumerate(shape):
        count = length // size if length % size == 0 else 0
        for outer in (n for n in range(1, count + 1) if count % n == 0):
            before, after = ([n] if n > 1 else [] for n in (outer, count // outer))
            yield (*shape[:axis], *before, size, *after, *shape[axis + 1 :]), axis + len(before)


def _where_rows_are(program: Program, node: Node, batches: Batches, part: int) -> tuple[Shape, int] | None:
    """A shape of an input and the axis on which it has the rows of the batch, each computed from its row alone; or None."""
    size = batches.sizes[part]
    if program.graph[node.args[0]].op == "placeholder":
        return node.shape, 0
    try:
        trials = list(_tried(program, node, batches, size))
    except (InputError, RuntimeError, IndexError):  # made-up rows are none that it takes
        return None

    def alone(view: Shape, dim: int) -> bool:
        moved = lambda value: value.reshape(view).movedim(dim, 0)
        return all(_same(moved(of), moved(before), rows) for of, before, rows in trials)

    return next((where for where in _views(node.shape, size) if alone(*where)), None)


def _tried(
    program: Program, node: Node, batches: Batches, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """What made-up rows give among others and in other places: (that, what they gave before, where they were then)."""
    generator = torch.Generator().manual_seed(0)  # hides nothing
    side = ClearSide(program, str(node.owner))
    side.set_model(_made_up(program, str(node.owner), generator))
    examples = batches.examples()

    def value(rows: list[torch.Tensor]) -> torch.Tensor:
        side.set_inputs([*rows, *[None] * (len(program.header.inputs) - len(rows))])
        return torch.as_tensor(side.value(node.args[0]))

    for trial in range(_TRIALS):
        usual = made_up_inputs(examples, generator)
        others = made_up_inputs(examples, generator)
        if trial >= _TRIALS // 2:  # others that are larger, or smaller, than everything
            limit = _EXTREME * (-1) ** trial
            others = [torch.full_like(x, limit) if x.is_floating_point() else x for x in others]
        kept = torch.rand(size, generator=generator) < 0.5
        mixed = [
            torch.where(kept.reshape(-1, *[1] * (x.ndim - 1)), x, y) if len(x) == size else x
            for x, y in zip(usual, others, strict=True)
        ]
        before, places = value(usual), torch.randperm(size, generator=generator)
        moved = [x[places] if len(x) == size else x for x in mixed]
        at = torch.arange(size)
        yield value(mixed), before, torch.where(kept, at, -1)
        yield value(moved), before, torch.where(kept[places], places, -1)


def _same(made: torch.Tensor, before: torch.Tensor, rows: torch.Tensor) -> bool:
    """Whether each row that was there before (its place; -1: another one) is as it was."""
    kept = rows >= 0
    return torch.allclose(made[kept].double(), before[rows[kept]].double(), rtol=1e-4, atol=1e-6)


def _made_up(program: Program, owner: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Weights of the shapes that the program reads, the same at every party."""
    state = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.attrs["name"].startswith("state:") and node.owner in (owner, PUBLIC):
            whole = node.attrs.get("integer")
            made = torch.zeros(node.shape, dtype=torch.int64) if whole else torch.rand(node.shape, generator=generator)
            state[node.attrs["name"].removeprefix("state:")] = made
    return state
