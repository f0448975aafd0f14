"""Grades the effort of runners with operators of one's own: the coach's model, a runner's data.

securemodel run examples/custom_operator/grade.py --local
"""

from __future__ import annotations

import operators  # registers them, with their secure versions
import torch
from torch import nn

import securemodel

PARTIES = ("coach", "runner")
RUNS = torch.tensor([[5.0, 0.4, 1.2], [10.0, 0.9, 0.3], [21.1, 0.2, 0.0]])  # km, climb in hm, heat


class Effort(nn.Module):
    """float[N, 3] to int64[N]: a grade from 0 to 4."""

    def __init__(self) -> None:
        super().__init__()
        self.weigh = nn.Linear(3, 4)
        self.total = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        effort = self.total(operators.squareplus(self.weigh(x / 10), 4.0)).squeeze(-1)
        return operators.bucket(effort, 0.0, 0.5, 4)


def trained() -> Effort:
    """The coach's model; a real one would be read from a file."""
    torch.manual_seed(7)
    return Effort().eval()


def make_program() -> securemodel.Program:
    """The same program at both parties; the model on the meta device holds no numbers."""
    with torch.device("meta"):
        model = Effort().eval()
    return securemodel.compile(model, torch.zeros(len(RUNS), 3), weights="coach", inputs="runner", outputs="runner")


def main() -> None:
    with securemodel.connect(make_program()) as session:
        runner = session.me == "runner"
        session.load(session.program, None if runner else trained())
        grades = session.run(RUNS if runner else None)
    if runner:
        print("grades", grades.tolist())


if __name__ == "__main__":
    main()
