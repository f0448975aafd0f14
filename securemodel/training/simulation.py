"""A training step in fixed point in the clear beside float, before anybody connects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from protocols.errors import InputError, explain
from securemodel.compiler.capture import tensors_in
from securemodel.engines.clear import ClearSide, revealed
from securemodel.inspect.differences import Limit
from securemodel.inspect.fixed import FixedPoint
from securemodel.inspect.ranges import Range, ranges
from securemodel.shown import Shown
from securemodel.training.compiling import TrainingProgram
from securemodel.training.datasets import Batches
from securemodel.training.noise import NoiseSource
from securemodel.training.reference import draws, run_in_float, start_states
from securemodel.training.steps import CapturedStep, Kind

_SHOWN = 5


@dataclass(frozen=True)
class Room:
    """How near the values of a line came to the end of a range (`what`): bits that were left, negative outside."""

    source: str
    what: str
    largest: float
    bits: float


@dataclass(frozen=True, repr=False)
class Simulation(Shown):
    """Losses by step; the largest differences of a weight and of a moment at the end, in units of 2^-16; ranges.

    `outside` has every range that values left, `tight` those inside with the least room. While nothing is outside, a
    secure run has the same weights, bit for bit: `weights`.
    """

    returned: tuple[tuple[float, float], ...]
    difference: float
    difference_of_moments: float
    weights: Mapping[str, torch.Tensor]
    tight: tuple[Room, ...] = field(default=())
    outside: tuple[Room, ...] = field(default=())

    @property
    def overflowed(self) -> bool:
        """Whether some value left its range."""
        return bool(self.outside)

    def __str__(self) -> str:
        lines = ["step   fixed point         float"]
        lines += [f"{step:>4} {fixed:>13.6f} {right:>13.6f}" for step, (fixed, right) in enumerate(self.returned, 1)]
        lines.append(f"weights differ by at most {self.difference:.1f} units of 2^-16")
        if self.outside:
            lines.append("values left their range, and a secure run would be wrong:")
            lines += [f"  {room.largest:10.4g}  {room.what:<12} {room.source}" for room in self.outside]
        else:
            lines.append("all values stayed in their ranges")
        lines.append("least room:")
        lines += [f"  {room.bits:5.1f} bits  {room.what:<12} {room.source}" for room in self.tight]
        return "\n".join(lines)


def simulate(
    program: TrainingProgram,
    captured: CapturedStep,
    rows: Batches,
    steps: int,
    batches: Callable[[int], Sequence[torch.Tensor]] | None = None,
) -> Simulation:
    """Runs steps in fixed point and in float from the same start, on the same batches: these, or all of `rows`."""
    program = program.with_inputs or program
    sides = {name: ClearSide(program, name) for name in (*program.parties, *program.contributors)}
    for side in sides.values():
        side.set_model(program.model)
    fixed, states, public = FixedPoint(program, sides), start_states(captured), captured.public_inputs()
    rooms: dict[tuple[str, str], Room] = {}
    list(fixed.walk("load"))
    losses, source = [], NoiseSource()
    for step in range(steps):
        batch = list(batches(step)) if batches else rows.whole(step)
        numbers = public.next()
        random = draws(captured, torch.Generator().manual_seed(step))
        random |= {noise.name: source.draw_for(noise) for noise in captured.noise}
        try:
            states, returned = run_in_float(captured, states, batch, numbers, random)
        except Exception as problem:
            raise _not_in_float(problem, step, batch, captured) from problem
        given = [*batch, *(numbers[name] for name in captured.numbers), *random.values()]
        for side in sides.values():
            side.set_inputs(given)
        outputs = {}
        for node, value, operands in fixed.walk("run"):
            if node.op == "reveal":
                outputs[node.attrs["index"]] = float(revealed(node, value.ring).double().mean())
            for within in ranges(program.graph, node, value, operands):
                blamed = program.graph[within.at]
                _note(rooms, blamed.source or blamed.attrs.get("name", ""), within)
        right = dict(zip(captured.returned.names, tensors_in(returned), strict=True))
        shown = [float(right[name].double().mean()) for name in captured.returned.names if name in program.result_names]
        losses.append((outputs.get(0, math.nan), shown[0] if shown else math.nan))
    by_room = sorted(rooms.values(), key=lambda room: room.bits)
    outside = tuple(room for room in by_room if room.bits < 0)
    tight = tuple(room for room in by_room if room.bits >= 0)[:_SHOWN]
    kept = {kinds: _kept(fixed, program, captured, kinds) for kinds in (_WEIGHTS, _MOMENTS)}
    weights, moments = (_difference(made, states) for made in kept.values())
    return Simulation(tuple(losses), weights, moments, kept[_WEIGHTS], tight, outside)


def _not_in_float(problem: Exception, step: int, batch: Sequence[torch.Tensor], captured: CapturedStep) -> InputError:
    """Says which tensor of a batch is not what the step takes, or what torch says."""
    given = [f"{tensor.dtype} {list(tensor.shape)}" for tensor in batch]
    taken = {part.name: f"{part.dtype} {list(part.shape)}" for part in captured.batch}
    why, fix = str(problem).strip().splitlines()[0], "run the step on these rows in ordinary PyTorch first"
    if given != list(taken.values()):
        why = f"it is {', '.join(given)}; the step takes {', '.join(f'{name} {is_}' for name, is_ in taken.items())}"
        fix = "give a tensor for each part of each column, of these types and shapes"
    return InputError(explain(f"batch {step} cannot be simulated in float", why=why, fix=fix))


_WEIGHTS: tuple[Kind, ...] = ("parameter", "buffer")
_MOMENTS: tuple[Kind, ...] = ("optimizer",)


def _note(rooms: dict[tuple[str, str], Room], source: str, within: Range) -> None:
    """Keeps the least room of a line; the lower end of a domain counts where it was left, as eps often lies on it."""
    if not within.values.numel():
        return
    smallest, largest = (float(x) for x in torch.aminmax(within.values))
    limit = Limit(within.what, within.low, within.high, smallest, largest)
    size = max(abs(smallest), abs(largest))
    bits = math.log2(within.high) - math.log2(size) if size else math.inf
    if limit.outside:
        size, bits = limit.nearest, min(limit.headroom, -_LEAST)
    if (key := (source, within.what)) not in rooms or bits < rooms[key].bits:
        rooms[key] = Room(source, within.what, size, bits)


_LEAST = 2.0**-20  # a value at the end itself is outside


def _kept(
    fixed: FixedPoint, program: TrainingProgram, captured: CapturedStep, kinds: Sequence[Kind]
) -> dict[str, torch.Tensor]:
    """What the steps left of these kinds of states for the next one, as float64."""
    return {
        name: fixed.kept[name].ring.double() / 2.0 ** (node.frac or 0)
        for name, node in program.graph.keeps("run").items()
        if captured.states[name].kind in kinds
    }


def _difference(kept: Mapping[str, torch.Tensor], states: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of a state, in units of 2^-16."""
    return max([float((made - states[name].double()).abs().max()) * 2**16 for name, made in kept.items()], default=0.0)
