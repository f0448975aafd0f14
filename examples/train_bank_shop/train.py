"""A bank and a shop train a credit model on columns of the same people; a registry knows who paid back.

    securemodel train examples/train_bank_shop/train.py --local

Nobody shows a row. The loss of each step and the accuracy after each epoch are known to all; the bank gets the weights.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import securemodel
from securemodel.training import Dataset, Training

PARTIES = ("bank", "shop", "registry")
PEOPLE, BANK_COLUMNS, SHOP_COLUMNS = 2000, 8, 5


def made_up(which: str, people: int) -> torch.Tensor:
    """What a party would read from its own files: columns of the same people in the same order."""
    generator = torch.Generator().manual_seed(7)
    bank = torch.randn(people, BANK_COLUMNS, generator=generator)
    shop = torch.randn(people, SHOP_COLUMNS, generator=generator)
    score = bank[:, 0] - 0.8 * bank[:, 1] * shop[:, 0] + 0.7 * shop[:, 1].abs() - 0.3
    return {"bank": bank, "shop": shop, "registry": (score > 0).float()}[which]


def tables(people: int) -> tuple[Dataset, Dataset]:
    """The columns of all three, nine rows of ten to train with, and the rest to test."""
    own = securemodel.owned
    data = securemodel.dataset(
        bank=own("bank", lambda: made_up("bank", people), (people, BANK_COLUMNS)),
        shop=own("shop", lambda: made_up("shop", people), (people, SHOP_COLUMNS)),
        paid=own("registry", lambda: made_up("registry", people), (people,)),
    )
    return data.split(0.9, seed=1)


torch.manual_seed(0)  # everybody starts with the same weights
model = nn.Sequential(nn.Linear(BANK_COLUMNS + SHOP_COLUMNS, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def score(bank: torch.Tensor, shop: torch.Tensor) -> torch.Tensor:
    return model(torch.cat([bank, shop], 1)).squeeze(1)


def step(bank: torch.Tensor, shop: torch.Tensor, paid: torch.Tensor) -> dict[str, torch.Tensor]:
    loss = F.binary_cross_entropy_with_logits(score(bank, shop), paid)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {"loss": loss}


def right(bank: torch.Tensor, shop: torch.Tensor, paid: torch.Tensor) -> torch.Tensor:
    return ((score(bank, shop) > 0) == (paid > 0.5)).sum()


def make_job(people: int = PEOPLE) -> Training:
    """What `securemodel plan` and its kin look at, and main() runs."""
    train, test = tables(people)
    return securemodel.compile_training(
        step, model, optimizer, batch=train.batches(100, seed=2), parties=PARTIES,
        reveal={"loss": "all"}, evaluate={"right": (right, test, "all")},
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--people", type=int, default=PEOPLE)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", default="credit.safetensors")
    given = parser.parse_args()

    job, tested = make_job(given.people), len(tables(given.people)[1])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    with job.connect() as run:
        for epoch in run.epochs(given.epochs, schedule):
            losses = run.train_epoch()
            accuracy = float(run.evaluate()["right"]) / tested
            print(
                f"epoch {epoch + 1}: loss {float(losses[-1]['loss']):.4f}, {accuracy:.1%} of the test set right",
                flush=True,
            )
        if run.export(given.out, to="bank") is not None:
            print(f"the bank has the weights: {given.out}", flush=True)


if __name__ == "__main__":
    main()
