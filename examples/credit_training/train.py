"""A credit model on columns of a bank and a shop, trained by these two and nobody else.

    securemodel run examples/credit_training/train.py --local

The bank knows who paid back. Nobody deals, and neither learns a gradient, a residual or the other's weights; in the end
each has the weights of its own columns, and both together score a customer.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import securemodel

HERE, PARTIES, ROWS, BATCH, EPOCHS = Path(__file__).parent, ("bank", "shop"), 400, 40, 3


def read(name: str) -> torch.Tensor:
    """A party's table, its standardized columns first."""
    with (HERE / f"{name}.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    return torch.tensor([[float(cell) for cell in row] for row in rows])


def make_job(**options):
    """The training as both parties compile it; a source is called by its owner alone."""
    owned = securemodel.owned
    data = securemodel.dataset(
        bank=owned("bank", lambda: read("bank")[:, :4], shape=(ROWS, 4)),
        shop=owned("shop", lambda: read("shop"), shape=(ROWS, 3)),
        paid=owned("bank", lambda: read("bank")[:, 4:], shape=(ROWS, 1)),
    )
    model = nn.Linear(7, 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.001)

    def step(bank, shop, paid):
        loss = F.binary_cross_entropy_with_logits(model(torch.cat([bank, shop], 1)), paid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return securemodel.compile_training(
        step, model, optimizer, batch=data.batches(BATCH, seed=1), parties=PARTIES, protocol="paillier", **options
    )


def main() -> None:
    with make_job(key_bits=2048).connect() as run:
        for _ in run.epochs(EPOCHS):
            run.train_epoch()
        weights = run.export(to="each")
    print("weights of my columns:", [round(w, 2) for w in weights["weight"][0].tolist()])


if __name__ == "__main__":
    main()
