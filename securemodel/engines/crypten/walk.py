"""One party's walk of CrypTen programs: what it owns, in the clear, goes to its process, which does the rest."""

from __future__ import annotations

import torch

from securemodel.compiler.capture import ModelState
from securemodel.compiler.ir import Phase
from securemodel.engines.clear import ClearSide
from securemodel.engines.crypten.program import CryptenProgram
from securemodel.engines.labels import LOAD, RUN
from securemodel.engines.walk import Inputs, Rows, Steps, Talk, Walk
from securemodel.errors import InputError


class CryptenWalk(Walk):
    """A party, which talks to its process alone: the answer is what that party may learn."""

    def __init__(self, program: CryptenProgram, me: str) -> None:
        self.program, self.me = program, me
        self._clear = ClearSide(program, me)

    def load(self, epoch: int, model: ModelState | None) -> Steps[None]:
        self._clear.set_model(model)
        yield Talk(LOAD, self.owned("load"), {})

    def run(self, epoch: int, inputs: Inputs, rows: Rows) -> Steps[tuple[list[torch.Tensor | None], Rows]]:
        self._clear.set_inputs(inputs)
        outputs = yield Talk(RUN, self.owned("run"), {})
        return [outputs.get(str(index)) for index in range(len(self.program.header.outputs))], rows

    def owned(self, phase: Phase) -> dict[str, list[torch.Tensor]]:
        """What this party shares in a phase, by node. Raises InputError for what CrypTen cannot represent."""
        owned = {}
        limit = 2.0 ** (62 - 2 * self.program.header.frac_bits)
        for node in self.program.graph.nodes:
            if node.op != "input" or node.phase != phase or node.owner != self.me:
                continue
            value = self._clear.value(node.args[0]).detach().to(torch.float64).cpu().clone().contiguous()
            if not bool((value.abs() <= limit).all()):
                raise InputError(
                    f"{self._clear.describe(node.args[0])} has NaN, infinite or large values; CrypTen needs every value "
                    f"within [-{limit:.6g}, {limit:.6g}]. Clean or rescale it, or compile with fewer frac_bits."
                )
            owned[str(node.id)] = [value]
        return owned
