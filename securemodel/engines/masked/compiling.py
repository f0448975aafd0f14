"""The masked engine's part of compiling: lowering to its secure graph, and the passes over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from protocols.names import EVERYBODY
from protocols.shares import RING_BITS
from securemodel.compiler.builder import Builder, FloatCall, Value, mapped
from securemodel.compiler.ir import Graph, Header, Tuned, digest
from securemodel.compiler.lowering import Lowered, lower_model
from securemodel.compiler.passes.added import add_in_selections
from securemodel.compiler.passes.fit import fit_values
from securemodel.compiler.passes.fold import fold_into_layers_after, fold_owner_scales
from securemodel.compiler.passes.guard import MOST_BITS, guard_ranges
from securemodel.compiler.passes.masks import narrow_masks, place_masks
from securemodel.compiler.passes.reach import fit_comparisons, tuned_limits
from securemodel.compiler.passes.reuse import reuse_openings
from securemodel.compiler.passes.scales import place_truncations
from securemodel.compiler.passes.schedule import order_nodes
from securemodel.compiler.passes.settle import number_comparisons, settle
from securemodel.compiler.passes.together import compare_together
from securemodel.compiler.postprocess import Source
from securemodel.compiler.tuning import Tuning
from securemodel.program import Program

lower = lower_model


def assemble(
    header: Header, lowered: Lowered, source: Source, truncate_outputs: bool = False, tuned: Tuning | None = None
) -> Program:
    """The program of a lowered model; `tuned`, with measured ranges. Raises CompileError for ranges of another model."""
    builder, outputs = lowered.builder, lowered.outputs
    number_comparisons(builder)
    if tuned is None:
        return Program(header, *run_passes(header, lowered, truncate_outputs), source.model, source.examples)
    of = digest(f"{header.text()} {truncate_outputs}\n{builder.graph.text()}")
    tuned.check(of, {node.id for node in builder.graph.nodes if node.op == "is_negative"}, builder.tables)
    outputs, settled = settle(builder, outputs, tuned.signs)
    bits = {number: most for number, most in tuned.bits.items() if number not in settled}
    draft = _made(header, replace(lowered, outputs=outputs), truncate_outputs, bits, tuned.magnitudes, tuned.guard)
    tuned.check_values(draft.numbers)
    graph, guarded = draft.graph, any(node.op == "beyond" for node in draft.graph.nodes)
    to = (*header.outputs, EVERYBODY) if guarded else header.outputs
    header = replace(
        header, outputs=to, tuned=Tuned(of, tuned.margin, tuned_limits(graph), len(settled), len(tuned.tables), guarded)
    )
    return Program(header, graph, draft.calls, source.model, source.examples)


@dataclass
class Draft:
    """A program on its way: what a pass reads and leaves. `numbers`: of the values that may be measured."""

    header: Header
    builder: Builder
    outputs: tuple[Value, ...]
    dtypes: tuple[str, ...]
    mark: Callable[[Graph], None]
    measured: Mapping[int, int]
    magnitudes: Mapping[int, int]
    guard: bool
    graph: Graph
    calls: dict[int, FloatCall]
    replaced: dict[int, int] = field(default_factory=dict)
    numbers: set[int] = field(default_factory=set)

    def fold_owner_scales(self) -> None:
        self.replaced = fold_owner_scales(self.builder)
        fold_into_layers_after(self.builder, self.replaced)

    def place_truncations(self) -> None:
        outputs = [self.replaced.get(v.id, v.id) for v in self.outputs]
        self.graph = place_truncations(self.graph, outputs, self.dtypes, self.replaced, self.header)

    def fit_comparisons(self) -> None:
        most = MOST_BITS if self.guard else RING_BITS
        fit_comparisons(self.graph, self.header, self.builder, self.measured, most)

    def fit_values(self) -> None:
        self.numbers = fit_values(self.graph, self.magnitudes)

    def guard_ranges(self) -> None:
        if self.guard and guard_ranges(self.graph, len(self.outputs)):
            self.header = replace(self.header, outputs=(*self.header.outputs, EVERYBODY))

    def add_in_selections(self) -> None:
        add_in_selections(self.graph, self.header, self.builder)

    def mark_layers(self) -> None:
        self.mark(self.graph)

    def place_masks(self) -> None:
        floats, ids = _copy_floats(self.builder.graph)
        header = self.header
        self.graph = place_masks(
            self.graph, floats, ids, len(header.parties), header.contributors, serves=header.serves
        )
        self._rename(ids)

    def reuse_openings(self) -> None:
        self.graph = reuse_openings(self.graph, self.header)

    def compare_together(self) -> None:
        self.graph = compare_together(self.graph)

    def narrow_masks(self) -> None:
        narrow_masks(self.graph)

    def order_nodes(self) -> None:
        self.graph, ids = order_nodes(self.graph)
        self._rename(ids)

    def _rename(self, ids: dict[int, int]) -> None:
        self.calls = renamed(self.graph, self.calls, ids)


def renamed(graph: Graph, calls: Mapping[int, FloatCall], ids: Mapping[int, int]) -> dict[int, FloatCall]:
    """Float nodes have other numbers: their calls, and what the text says of these, name operands by them."""
    text = lambda name: f"%{ids[int(name[1:])]}" if name.startswith("%") else name
    renamed_calls = {}
    for old, call in calls.items():
        if old in ids:
            args, kwargs = mapped((call.args, call.kwargs), Value, lambda v: replace(v, id=ids[v.id]))
            renamed_calls[ids[old]] = FloatCall(call.target, args, kwargs)
            node = graph[ids[old]]
            node.attrs = node.attrs | {name: mapped(node.attrs[name], str, text) for name in ("args", "kwargs")}
    return renamed_calls


PASSES: tuple[Callable[[Draft], None], ...] = (
    Draft.fold_owner_scales,
    Draft.place_truncations,
    Draft.fit_comparisons,
    Draft.fit_values,
    Draft.guard_ranges,
    Draft.add_in_selections,
    Draft.mark_layers,
    Draft.place_masks,
    Draft.reuse_openings,
    Draft.compare_together,
    Draft.narrow_masks,
    Draft.order_nodes,
)


def run_passes(
    header: Header, lowered: Lowered, truncate_outputs: bool, mark: Callable[[Graph], None] = lambda graph: None
) -> tuple[Graph, dict[int, FloatCall]]:
    """The runnable graph of a lowered model, and the calls of its float nodes.

    `mark` may turn nodes, before masks are placed, into gates whose parts another source than the dealer makes.
    """
    draft = _made(header, lowered, truncate_outputs, {}, {}, False, mark)
    return draft.graph, draft.calls


def _made(
    header: Header,
    lowered: Lowered,
    truncate_outputs: bool,
    measured: Mapping[int, int],
    magnitudes: Mapping[int, int],
    guard: bool,
    mark: Callable[[Graph], None] = lambda graph: None,
) -> Draft:
    """What the passes leave. `measured`: see `fit_comparisons`; `magnitudes`: see `fit_values`; `guard`: whether a last output
    tells that a value left its range."""
    outputs, builder = lowered.outputs, lowered.builder
    if truncate_outputs:
        outputs = tuple(builder.rescale(v) if v.secret and not v.integer else v for v in outputs)
    draft = Draft(
        header, builder, outputs, lowered.dtypes, mark, measured, magnitudes, guard, builder.graph, builder.calls
    )
    for make in PASSES:
        make(draft)
    return draft


def _copy_floats(graph: Graph) -> tuple[Graph, dict[int, int]]:
    """The float nodes alone, in a graph of their own."""
    floats, ids = Graph(), dict[int, int]()
    for node in graph.nodes:
        if node.form == "float":
            copied = floats.again(node, [ids[a] for a in node.args])
            copied.attrs = {key: value for key, value in node.attrs.items() if key != "small"}
            ids[node.id] = copied.id
    return floats, ids
