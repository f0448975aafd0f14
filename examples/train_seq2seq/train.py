"""Two offices write dates in different ways; together they train one model that reads both.

    securemodel train examples/train_seq2seq/train.py --local

One writes 31.12.26, the other 12/31/26, and the model writes 261231. No office shows a date; both learn the loss, and in the
end the first gets the weights and counts how many new dates the model writes without a mistake.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from model import READ, SYMBOLS, WRITTEN, Dates

import securemodel

PARTIES = ("berlin", "boston")
ORDERS = {"berlin": ("dmy", "."), "boston": ("mdy", "/")}


def made_up(office: str, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """What an office would read from its own files: dates as it writes them, [count, 8], and as they should be, [count, 6]."""
    generator = torch.Generator().manual_seed(2 * seed + PARTIES.index(office))
    numbers = {
        name: torch.randint(low, high, (count,), generator=generator).tolist()
        for name, low, high in (("d", 1, 29), ("m", 1, 13), ("y", 0, 100))
    }
    order, between = ORDERS[office]
    written = [between.join(f"{numbers[name][row]:02}" for name in order) for row in range(count)]
    wanted = ["".join(f"{numbers[name][row]:02}" for name in "ymd") for row in range(count)]
    return tuple(torch.tensor([[SYMBOLS.index(s) for s in text] for text in texts]) for texts in (written, wanted))


def text_of(row: torch.Tensor) -> str:
    """The symbols of a row."""
    return "".join(SYMBOLS[symbol] for symbol in row.tolist())


def right_of(model: Dates, count: int) -> int:
    """How many dates of both offices that nobody trained on the model writes without a mistake."""
    tests = [made_up(office, count // 2, seed=1) for office in PARTIES]
    with torch.no_grad():
        for given, _ in tests:
            print(f"{text_of(given[0])} -> {text_of(model(given[:1])[0])}", flush=True)
        return sum(int((model(given) == wanted).all(1).sum()) for given, wanted in tests)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1500, help="that each office has")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", default="dates.safetensors")
    given = parser.parse_args()

    torch.manual_seed(0)  # everybody starts with the same weights
    model = Dates()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)

    def step(date: torch.Tensor, digits: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = F.cross_entropy(model.taught(date, digits).flatten(0, 1), digits.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    def column(which: int, size: int) -> tuple[securemodel.training.Owned, ...]:
        return securemodel.rows(**{
            office: securemodel.owned(
                office, lambda office=office: made_up(office, given.rows)[which], (given.rows, size), torch.int64
            )
            for office in PARTIES
        })  # fmt: skip

    data = securemodel.dataset(date=column(0, READ), digits=column(1, WRITTEN))
    job = securemodel.compile_training(
        step, model, optimizer, batch=data.batches(50, seed=2), parties=PARTIES, reveal={"loss": "all"}
    )
    with job.connect() as run:
        for epoch in run.epochs(given.epochs):
            losses = [float(returned["loss"]) for returned in run.train_epoch()]
            print(f"epoch {epoch + 1}: mean loss {sum(losses) / len(losses):.4f}", flush=True)
        weights = run.export(given.out, to="berlin")
    if weights is not None:
        model.load_state_dict(weights)
        print(f"{right_of(model.eval(), 1000)} of 1000 new dates right; the weights are in {given.out}", flush=True)


if __name__ == "__main__":
    main()
