"""A clinic and a laboratory fine-tune a public encoder with small secret adapters.

    securemodel train examples/finetune_lora/train.py --local

The encoder's weights are public and frozen: products with them are local. Only the adapters (Hu et al., ICLR 2022) and the
head are trained, and stay in shares; the clinic gets them at the end.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import nn

import securemodel

PARTIES = ("clinic", "laboratory")
WIDTH, TOKENS, RANK, CLASSES = 16, 6, 2, 2


class Adapted(nn.Module):
    """A frozen linear layer plus a trained change of low rank. float [..., width] -> float [..., out]."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + F.linear(F.linear(x, self.down), self.up)


class Encoder(nn.Module):
    """One block of attention over a few tokens, and a head. float [rows, tokens, width] -> float [rows, classes]."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (Adapted(nn.Linear(WIDTH, WIDTH), RANK) for _ in range(3))
        self.mix = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)).requires_grad_(
            False
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.query(x) @ self.key(x).transpose(1, 2) / WIDTH**0.5
        x = x + scores.softmax(-1) @ self.value(x)
        return self.head((x + self.mix(x)).mean(1))


def made_up(which: str, rows: int) -> torch.Tensor:
    """What a party would read from its own files."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randn(rows, TOKENS, WIDTH, generator=generator)
    label = (tokens[:, 0, :4] * tokens[:, 1, :4]).sum(1) + tokens[:, :, 0].mean(1) > 0
    return tokens if which == "clinic" else label.long()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--out", default="adapters.safetensors")
    given = parser.parse_args()

    torch.manual_seed(0)  # stands for weights that everybody downloads
    model = Encoder()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)

    def step(tokens: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = F.cross_entropy(model(tokens), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    own = securemodel.owned
    data = securemodel.dataset(
        tokens=own("clinic", lambda: made_up("clinic", given.rows), (given.rows, TOKENS, WIDTH)),
        label=own("laboratory", lambda: made_up("laboratory", given.rows), (given.rows,), torch.int64),
    )
    job = securemodel.compile_training(
        step, model, optimizer, batch=data.batches(24, seed=2), parties=PARTIES, reveal={"loss": "all"}
    )
    with job.connect() as run:
        for epoch in run.epochs(given.epochs):
            losses = [float(returned["loss"]) for returned in run.train_epoch()]
            print(f"epoch {epoch + 1}: mean loss {sum(losses) / len(losses):.4f}", flush=True)
        if run.export(given.out, to="clinic") is not None:
            print(f"the clinic has the adapted encoder: {given.out}", flush=True)


if __name__ == "__main__":
    main()
