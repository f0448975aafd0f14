"""A training step in fixed point in the clear beside float, before anybody connects."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from securemodel.compiler.capture import tensors_in
from securemodel.engines.clear import ClearSide, revealed
from securemodel.inspect.fixed import FixedPoint
from securemodel.shown import Shown
from securemodel.training.job import Job
from securemodel.training.reference import draws, run_in_float, start_states

_RING_BITS = 63
_LITTLE = 4  # bits of room from which on a value is named


@dataclass(frozen=True)
class Room:
    """How near the largest value of a line came to the end of the ring: bits that were left."""

    source: str
    operator: str
    largest: float
    bits: float


@dataclass(frozen=True, repr=False)
class Simulation(Shown):
    """Losses by step, the largest difference of any weight at the end (in units of 2^-16), and values with little room."""

    returned: tuple[tuple[float, float], ...]
    difference: float
    tight: tuple[Room, ...] = field(default=())
    overflowed: bool = False

    def __str__(self) -> str:
        lines = ["step   fixed point         float"]
        lines += [f"{step:>4} {fixed:>13.6f} {right:>13.6f}" for step, (fixed, right) in enumerate(self.returned, 1)]
        lines.append(f"weights differ by at most {self.difference:.1f} units of 2^-16")
        what = "left the ring" if self.overflowed else "all values stayed in the ring"
        lines.append(f"{what}; least room:")
        lines += [f"  {room.bits:5.1f} bits  {room.operator:<12} {room.source}" for room in self.tight]
        return "\n".join(lines)


def simulate(job: Job, steps: int, batches: Callable[[int], Sequence[torch.Tensor]] | None = None) -> Simulation:
    """Runs steps in fixed point and in float from the same start, on the same batches."""
    program, captured = job.program.with_inputs or job.program, job.program.step
    sides = {name: ClearSide(program, name) for name in program.parties}
    for side in sides.values():
        side.set_model(program.model)
    fixed, states, public = FixedPoint(program, sides), start_states(captured), captured.public_inputs()
    rooms: dict[tuple[str, str], Room] = {}
    list(fixed.walk("load"))
    losses = []
    for step in range(steps):
        batch = list(batches(step)) if batches else job.batches.inputs(step, lambda name: True)
        numbers = public.next()
        random = draws(captured, torch.Generator().manual_seed(step))
        states, returned = run_in_float(captured, states, batch, numbers, random)
        given = [*batch, *(numbers[name] for name in captured.numbers), *(random[r.name] for r in captured.random)]
        for side in sides.values():
            side.set_inputs(given)
        outputs = {}
        for node, value, _ in fixed.walk("run"):
            if node.op == "reveal":
                outputs[node.attrs["index"]] = float(revealed(node, value.ring).double().mean())
            elif node.frac is not None and value.wide is not None and value.wide.numel():
                _note(rooms, node, float(value.wide.abs().max()))
        right = dict(zip(captured.returned.names, tensors_in(returned), strict=True))
        shown = [float(right[name].double().mean()) for name in captured.returned.names if name in program.result_names]
        losses.append((outputs.get(0, math.nan), shown[0] if shown else math.nan))
    tight = sorted(rooms.values(), key=lambda room: room.bits)
    return Simulation(
        tuple(losses), _difference(fixed, program, states), tuple(tight[:5]), bool(tight and tight[0].bits < 0)
    )


def _note(rooms: dict[tuple[str, str], Room], node, largest: float) -> None:
    bits = _RING_BITS - math.log2(largest) if largest > 0 else float(_RING_BITS)
    key = (node.source, node.op)
    if key not in rooms or bits < rooms[key].bits:
        rooms[key] = Room(node.source, node.op, largest / 2.0**node.frac, bits)


def _difference(fixed: FixedPoint, program, states: dict[str, torch.Tensor]) -> float:
    worst = 0.0
    for node in program.graph.nodes:
        if node.op == "keep" and node.phase == "run":
            value = fixed.kept[node.attrs["name"]].ring.double() / 2.0**node.frac
            worst = max(worst, float((value - states[node.attrs["name"]].double()).abs().max()) * 2**16)
    return worst
