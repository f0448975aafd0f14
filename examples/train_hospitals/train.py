"""Two hospitals train one model on the rows of both.

    securemodel train examples/train_hospitals/train.py --local

Each has patients of its own, with the same columns. No row leaves a hospital; both learn the loss and get nothing else
until the weights are exported.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import securemodel

PARTIES = ("north", "south")
PATIENTS = {"north": 1200, "south": 800}
COLUMNS, CLASSES = 12, 3


def made_up(hospital: str, patients: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a hospital would read from its own files; the two do not see the same kinds of patients."""
    generator = torch.Generator().manual_seed(PARTIES.index(hospital))
    x = torch.randn(patients, COLUMNS, generator=generator) + (0.5 if hospital == "south" else 0.0)
    return x, torch.stack([x[:, 0] + x[:, 1], x[:, 2] - x[:, 3], 0.5 * x[:, 4] * x[:, 5]], 1).argmax(1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0, help="of the hospitals' numbers of patients")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--checkpoints", default="", help="a folder to write them into, and to go on from")
    given = parser.parse_args()
    counts = {name: int(count * given.scale) for name, count in PATIENTS.items()}

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(COLUMNS, 24), nn.ReLU(), nn.Linear(24, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)

    def step(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    def right(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (model(x).argmax(1) == y).sum()

    own = securemodel.owned
    data = securemodel.dataset(
        x=securemodel.rows(**{n: own(n, lambda n=n: made_up(n, counts[n])[0], (counts[n], COLUMNS)) for n in PARTIES}),
        y=securemodel.rows(
            **{n: own(n, lambda n=n: made_up(n, counts[n])[1], (counts[n],), torch.int64) for n in PARTIES}
        ),
    )
    train, test = data.split(0.85, seed=1)
    job = securemodel.compile_training(
        step, model, optimizer, batch=train.batches(100, seed=2), parties=PARTIES,
        reveal={"loss": "all"}, evaluate={"right": (right, test, "all")},
    )  # fmt: skip
    with job.connect() as run:
        if given.checkpoints:
            print(f"resumed at step {run.resume(given.checkpoints)}", flush=True)
        for epoch in run.epochs(given.epochs):
            losses = run.train_epoch()
            accuracy = float(run.evaluate()["right"]) / len(test)
            print(
                f"epoch {epoch + 1}: loss {float(losses[-1]['loss']):.4f}, {accuracy:.1%} of the test set right",
                flush=True,
            )
            if given.checkpoints:
                run.checkpoint(given.checkpoints)


if __name__ == "__main__":
    main()
