"""One party's walk of training with Paillier alone: a run is a step on a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from protocols.errors import InputError, explain
from securemodel.engines.paillier.linear_program import LinearProgram
from securemodel.engines.paillier.trainer import Trainer
from securemodel.engines.walk import Inputs, Rows, Steps, Walk


class TrainingWalk(Walk):
    """A party and what is public of the next step: the learning rate, its rows (None: not of the data set), its number."""

    def __init__(self, program: LinearProgram, party: Trainer) -> None:
        self.program, self.party = program, party
        self.public: Sequence[torch.Tensor | None] = ()

    def load(self, epoch: int, model: Any) -> Steps[None]:
        self.party.begin(self.program.start())
        yield from ()

    def run(self, epoch: int, inputs: Inputs, rows: Rows) -> Steps[tuple[list[Any], Rows]]:
        """One step; returns the guard's sum where this step has one, else None."""
        program, me, columns = self.program, self.party.me, list(inputs)
        lr, which, number = (cast(Any, value) for value in self.public)
        attrs = program.attrs
        rate, decay = float(lr) * attrs["factor"], float(lr) * attrs["decay"]
        if not 0 <= rate <= 1 or not 0 <= decay <= 1:
            raise InputError(
                explain(f"the learning rate {float(lr):g} is out of range", why="rate times gradients, and rate times "
                        "weight decay, must be from 0 to 1", fix="use a smaller rate")
            )  # fmt: skip
        mine = [x for x, owner in zip(columns, program.header.inputs, strict=True) if owner == me]
        wanted = [s for s, owner in zip(program.header.input_shapes, program.header.inputs, strict=True) if owner == me]
        if [None if x is None else tuple(x.shape) for x in mine] != [tuple(s) for s in wanted]:
            raise InputError(
                explain(f"party {me!r} gave a batch of other shapes", why=f"a step takes {[list(s) for s in wanted]}",
                        fix="give as many rows as the step was compiled for")
            )  # fmt: skip
        guard = bool(attrs["guard"]) and int(number) % attrs["guard"] == 0
        known = None if which is None else which.tolist()
        x, y = program.columns_of(me, columns), program.labels_of(me, columns)
        self.agreed(rows)
        seen = yield from self.party.step(epoch, x, y, rate, decay, known, guard)
        return [seen], rows
