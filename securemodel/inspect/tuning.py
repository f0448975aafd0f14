"""`tune`: how large the values get that a program compares, on one owner's data, and a program of no more bits than that.

For one owner's data only: inputs, weights and every value in between are in this process, in the clear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch

from protocols.errors import explain
from protocols.names import PUBLIC
from protocols.shares import RING_BITS
from securemodel.compiler.capture import Captured, model_state
from securemodel.compiler.ir import COMPARED, PHASES, Graph, Node, Phase, only_moves
from securemodel.compiler.lower.masks import SINK
from securemodel.compiler.ops import CUTS, cut_operand, mask_origin
from securemodel.compiler.passes.fit import measured_numbers
from securemodel.compiler.tuning import Halved, Limit, Magnitude, Tuning
from securemodel.engines.clear import ClearSide, revealed
from securemodel.engines.compiling import compile_again
from securemodel.engines.masked import compiling
from securemodel.errors import InputError, UnsupportedOperator
from securemodel.inspect.compare import model_in_the_clear
from securemodel.inspect.fixed import Both, FixedPoint
from securemodel.inspect.halving import halvings, tables_of
from securemodel.inspect.reference import reference
from securemodel.inspect.tuned import TunedProgram
from securemodel.planning.layer_names import layer_names
from securemodel.program import Program
from securemodel.sessions.rows import batches, filled, split_rows

MARGIN = 4.0
"""By which factor values may be larger than was seen."""
_WHERE = "tune()"


def tune(
    program: Program,
    *inputs: torch.Tensor,
    tolerance: float,
    margin: float = MARGIN,
    guard: bool = False,
    model: torch.nn.Module | None = None,
    tables: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> TunedProgram:
    """The same model, which looks at no more bits than its values have on these inputs, times `margin`.

    So are comparisons, truncations and results, and what they are made of is opened and dealt in as few bytes. Comparisons
    that came out the same throughout, and would if values lay `margin` times as far apart, are left out.
    Measured in the clear, in fixed point: for **data of one owner**, typical of later runs. A value that leaves its range
    in such a run makes a wrong result, and nothing says so. `tolerance` bounds the largest error of any result on this
    data against the model in float. `guard`: all parties are told where a value left its range, as one bit for a run,
    which then raises OutOfRange in place of a result; comparisons alone see fewer bits then, and none is left out. `model` gives the weights if the program
    was compiled without them. `tables`: whether tables may have fewer pieces where `tolerance` allows that; `progress` is told,
    line by line, what is tried. Inputs are as for `Session.run`.

    Raises InputError for inputs or weights of wrong shapes, out of range or not finite, a tolerance that is not met, for
    programs read from a file, tuned already, with state, or of a training, and for those with a `protocol`.
    """
    _check_numbers(tolerance, margin)
    for name, value in (("guard", guard), ("tables", tables)):
        if not isinstance(value, bool):
            raise InputError(explain(f"{name} = {value!r:.100}", where=_WHERE, fix="say True or False"))
    margin = float(margin)
    model = model_in_the_clear(program, model, _WHERE, "tuned")
    if program.header.tuned:
        raise InputError(explain("this program is tuned already", where=_WHERE, fix="give the one without tuned="))
    total = split_rows(inputs, program, [True] * len(program.header.inputs))
    _check_finite(inputs)
    seen = _measure(program, model, inputs, total)
    if not seen.error <= tolerance:
        raise InputError(
            explain(
                f"on this data a result is {seen.error:.3g} off the float model, more than the tolerance {tolerance:g}",
                where=_WHERE,
                why="fixed point and approximations alone make this error; tuning only takes bits away",
                fix="allow more, or compile with more frac_bits; compare() shows the layer where precision is lost",
            )
        )
    truncated = _as_compiled(program)

    def again(tuning: Tuning) -> Program:
        made = compile_again(program, compiling, truncate_outputs=truncated, tuned=tuning)
        made.__dict__["row_independent"] = program.row_independent  # found by running the model, which is the same
        return made

    def fitted(tuning: Tuning) -> tuple[Tuning, Program]:
        tuning = replace(tuning, limits=_measure(again(tuning), model, inputs, total).limits(margin))
        if not guard:  # values are numbered where comparisons that are left out are
            tuning = replace(tuning, values=_measure(again(tuning), model, inputs, total).magnitudes(margin))
        return tuning, again(tuning)

    tuning = Tuning("", margin, (), guard, whole_rows=seen.whole_rows is True)
    fewer = _fewer_pieces(tuning, again, model, inputs, total, tolerance, progress) if tables else ()
    tuning, made = fitted(tuning)
    if fewer:  # which may be read in more bytes: with tables as they were, other comparisons may have one outcome
        also = fitted(replace(tuning, tables=fewer, limits=(), values=()))
        tuning, made = min((tuning, made), also, key=lambda found: _bytes(found[1]))
    error = _measure(made, model, inputs, total).error
    if not error <= tolerance:
        what = f"on this data a result of the tuned program is {error:.3g} off, more than the tolerance {tolerance:g}"
        raise InputError(explain(what, where=_WHERE, fix="take more margin, or allow more"))
    of = made.header.tuned.of if made.header.tuned else ""
    return TunedProgram(made, program, replace(tuning, of=of), error, tolerance)


def _bytes(program: Program) -> int:
    """What all parties and the dealer send in a run."""
    cost = program.plan().total
    return cost.preprocessing_bytes + sum(cost.sent_bytes.values())


def _fewer_pieces(
    tuning: Tuning,
    again: Callable[[Tuning], Program],
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    total: int,
    tolerance: float,
    progress: Callable[[str], None],
) -> tuple[Halved, ...]:
    """The tables that can have fewer pieces."""
    before = again(tuning)
    graph, most = before.graph, _bytes(before)
    found = {table.number: table for table in tables_of(graph, layer_names(graph))}

    def halved(times: Mapping[int, int]) -> tuple[Halved, ...]:
        return tuple(Halved(at, n, found[at].function, found[at].layer) for at, n in sorted(times.items()))

    def error(times: Mapping[int, int]) -> float:
        try:
            made = again(replace(tuning, tables=halved(times)))
        except UnsupportedOperator:  # of this function there are no such tables
            return math.inf
        return _measure(made, model, inputs, total).error if _bytes(made) < most else math.inf

    return halved(halvings(tuple(found.values()), error, tolerance, progress))


def _check_numbers(tolerance: float, margin: float) -> None:
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 < tolerance < math.inf:
        fix = "give the largest error that a result may have, such as 1e-3"
        raise InputError(explain(f"{tolerance!r:.100} is no tolerance", where=_WHERE, fix=fix))
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 1 <= margin < 2.0**RING_BITS:
        fix = "give the factor by which values may be larger than on this data, 1 or more"
        raise InputError(explain(f"{margin!r:.100} is no margin", where=_WHERE, fix=fix))


def _check_finite(inputs: Sequence[torch.Tensor]) -> None:
    for index, x in enumerate(inputs):
        bad = ~torch.isfinite(x) if x.is_floating_point() or x.is_complex() else torch.zeros((), dtype=torch.bool)
        if bool(bad.any()):
            at = [int(place) for place in bad.nonzero()[0]]
            why, fix = f"the first of {int(bad.sum())} is at {at}", "leave such rows out, or put numbers in their place"
            raise InputError(explain(f"input {index} has numbers that are not finite", where=_WHERE, why=why, fix=fix))


def _as_compiled(program: Program) -> bool:
    """Whether the program truncates its outputs: as which of both it is compiled again. Raises InputError."""
    for truncated in (False, True):
        if compile_again(program, compiling, truncate_outputs=truncated).digest == program.digest:
            return truncated
    why, fix = "compiled again, it is another program", "compile the model with securemodel.compile(), and tune that"
    raise InputError(explain("this program cannot be tuned", where=_WHERE, why=why, fix=fix))


@dataclass
class _Seen:
    """What data showed: smallest and largest values that comparisons read, by number; the largest magnitudes of what is
    truncated or returned, by number; results, and their largest error."""

    ends: dict[int, tuple[float, float]] = field(default_factory=dict)
    wraps: set[int] = field(default_factory=set)
    layers: dict[int, str] = field(default_factory=dict)
    masked: dict[int, int] = field(default_factory=dict)
    values: dict[int, tuple[float, int, int, str]] = field(default_factory=dict)
    wraps_of_values: set[int] = field(default_factory=set)
    least: dict[int, float] = field(default_factory=dict)
    whole_rows: bool | None = None
    outputs: list[torch.Tensor] = field(default_factory=list)
    error: float = 0.0

    def note(self, graph: Graph, names: Sequence[str], node: Node, operands: Sequence[Both]) -> None:
        """A node in fixed point: of comparisons, truncations and results, how large what they read is."""
        if node.op in CUTS:
            at = cut_operand(node)
            self._note_value(graph, names[node.id], node.args[at], operands[at], node.attrs.get("offset", 0))
        elif node.op == "reveal":
            self._note_value(graph, names[node.id], node.id, operands[0], 0)
        elif node.op == "top_bit":
            self._note_comparison(graph, names, node, operands)
        self._note_choice(graph, node, operands)

    def _note_choice(self, graph: Graph, node: Node, operands: Sequence[Both]) -> None:
        """What is chosen may be chosen where no row of the data did: it counts as no smaller than what it is chosen from."""
        chosen = node.op.startswith("select")
        if chosen or node.op in ("mask", "to_additive", "truncate", "shift") or (node.op == "linear" and _keeps(node)):
            least = max((self.least.get(a, 0.0) for a in node.args), default=0.0)
            if chosen and not operands[1].wraps:
                added = abs(node.attrs.get("added", 0)) * 2.0 ** -(node.frac or 0)
                least = max(least, _most(operands[1]) * 2.0 ** -(graph[node.args[1]].frac or 0) + added)
            self.least[node.id] = least

    def _note_comparison(self, graph: Graph, names: Sequence[str], node: Node, operands: Sequence[Both]) -> None:
        for arg, offset, operand in zip(node.args, node.attrs["offset"], operands, strict=True):
            low, high = (end.item() for end in torch.aminmax(operand.number + offset))
            for number in (int(mark.source) for mark in graph[arg].marks if mark.name == COMPARED):
                before = self.ends.get(number, (low, high))
                self.ends[number] = min(low, before[0]), max(high, before[1])
                self.masked[number] = mask_origin(graph, arg)
                self.layers[number] = " ".join(names[node.id].split())
                if operand.wraps or not math.isfinite(low + high):
                    self.wraps.add(number)

    def note_masks(self, program: Program, clear: Mapping[str, ClearSide]) -> None:
        """Whether masks that are added to scores allow something in every row; None where there are none."""
        for node in program.graph.nodes:
            if node.op == "float" and node.attrs["target"] == SINK:
                owner = program.parties[0] if node.owner == PUBLIC else cast(str, node.owner)
                self.whole_rows = self.whole_rows is not False and bool((clear[owner].value(node.id) != 0).all())

    def _note_value(self, graph: Graph, layer: str, at: int, value: Both, offset: int) -> None:
        """The largest magnitude of a value in units of the ring, with what is added before it is truncated, and its margin."""
        for number in measured_numbers(graph[at].marks):
            least = self.least.get(graph[at].args[0] if graph[at].op == "reveal" else at, 0.0)
            most = max(_most(value), least * 2.0 ** (graph[at].frac or 0))
            if value.wraps or not math.isfinite(most):
                self.wraps_of_values.add(number)
                continue
            before = self.values.get(number, (0.0, 0, 0, ""))
            self.values[number] = (max(before[0], most), max(before[1], offset), graph[at].frac or 0, layer)

    def magnitudes(self, margin: float) -> tuple[Magnitude, ...]:
        """What each value that is truncated or returned stays below, `margin` times what was seen."""
        return tuple(
            Magnitude(number, (int(most * margin * _ROUNDED) + offset + 1).bit_length() - frac, " ".join(layer.split()))
            for number, (most, offset, frac, layer) in sorted(self.values.items())
            if number not in self.wraps_of_values
        )

    def limits(self, margin: float) -> tuple[Limit, ...]:
        """What each comparison reads stays below, `margin` times what was seen, and the sign that it keeps."""
        made, bits = [], self._widths(margin)
        for number, (low, high) in sorted(self.ends.items()):
            if number not in self.wraps and bits[number] < RING_BITS - 1:
                middle, room = (low + high) / 2, (high - low) / 2 * margin + 1
                sign = 1 if middle > room else -1 if middle < -room else 0
                made.append(Limit(number, bits[number], sign, self.layers[number]))
        return tuple(made)

    def _widths(self, margin: float) -> dict[int, int]:
        """Bits of each comparison: of one mask digits of as many bits are dealt once, so they take as many where that is few
        more."""
        least = {n: (int(max(-low, high) * margin * _ROUNDED) + 1).bit_length() for n, (low, high) in self.ends.items()}
        bits: dict[int, int] = {}
        last: dict[int, int] = {}
        for number in sorted(least, key=lambda n: -least[n]):
            mask = self.masked[number]
            if last.get(mask, RING_BITS + _ALIKE) > least[number] + _ALIKE:
                last[mask] = least[number]
            bits[number] = last[mask]
        return bits


def _most(value: Both) -> float:
    """The largest magnitude, in units of the ring."""
    return value.number.abs().max().item() if value.number.numel() else 0.0


def _keeps(node: Node) -> bool:
    """Whether a local operator moves elements, or adds them up one by one."""
    return only_moves(node) or node.attrs["kind"] in ("add", "sub", "neg")


_ROUNDED = 1 + 2.0**-40
"""Magnitudes are known to 53 bits."""
_ALIKE = 8
"""Comparisons of one mask that need so many bits less than another, or fewer, take its bits."""


def _measure(program: Program, model: torch.nn.Module, inputs: Sequence[torch.Tensor], total: int) -> _Seen:
    """Runs rows in float64 and in fixed point, also those that would fill up a batch. Raises InputError."""
    clear = {name: ClearSide(program, name) for name in program.parties}
    for side in clear.values():
        side.set_model(model)
    walker, state, found, names = FixedPoint(program, clear), model_state(model), _Seen(), layer_names(program.graph)
    phases: tuple[Phase, ...] = PHASES
    captured = cast(Captured, program.model_graph)
    for part, rows in batches(inputs, program, total):
        real = rows.now if total != program.header.rows else None
        made = _outputs(program, walker, clear, part, phases, found, names)
        given = cast(Sequence[torch.Tensor], part)
        _, right = reference(captured, state, given, ())
        for value, exact in zip(made, right, strict=True):
            value, exact = (x if real is None or not x.ndim else x[:real] for x in (value, exact))
            if not bool(exact.isfinite().all()):
                what = "on this data the model itself, in float64, gives results that are not finite"
                fix = "leave such rows out: compared with them, no result is right or wrong"
                raise InputError(explain(what, where=_WHERE, fix=fix))
            found.outputs.append(value)
            found.error = max(found.error, _apart(value, exact))
        phases = ("run",)
    if program.row_independent and all(x.ndim for x in inputs) and program.header.rows > 1:
        _outputs(program, walker, clear, [filled(x[:1], program) for x in inputs], phases, found, names)
    return found


def _outputs(
    program: Program,
    walker: FixedPoint,
    clear: dict,
    part: Sequence,
    phases: Sequence[Phase],
    found: _Seen,
    names: list,
) -> list[torch.Tensor]:
    for side in clear.values():
        side.set_inputs(part)
    found.note_masks(program, clear)
    made: dict[int, torch.Tensor] = {}
    for phase in phases:
        for node, value, operands in walker.walk(phase):
            found.note(program.graph, names, node, operands)
            if node.op == "reveal":
                made[node.attrs["index"]] = revealed(node, value.ring)
    return [made[index] for index in range(len(program.header.results))]


def _apart(value: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest difference; infinite where one of both is no number."""
    if not value.numel():
        return 0.0
    exact = torch.view_as_real(exact.resolve_conj()) if exact.is_complex() and not value.is_complex() else exact
    most = (value.to(torch.complex128) - exact.to(torch.complex128)).abs().max().item()
    return most if math.isfinite(most) else math.inf
