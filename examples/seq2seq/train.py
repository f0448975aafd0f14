"""Trains both models in the clear and writes their weights.

    python examples/seq2seq/train.py

Random digits are the data: every batch is new, and the answer is known. Everything random comes from --seed; nothing
here is secret.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from model import DIGITS, KINDS, STEPS, Writer
from safetensors.torch import save_file

BATCH, STEPS_OF = 256, {"lstm": 2500, "transformer": 1000}
RATES = {"lstm": 1e-2, "transformer": 3e-3}


def digits(count: int, generator: torch.Generator) -> torch.Tensor:
    """Random digits, [count, 6]."""
    return torch.randint(DIGITS, (count, STEPS), generator=generator)


def fit(kind: str, seed: int, steps: int) -> Writer:
    """A trained model; the last weights are taken."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KINDS[kind]()
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATES[kind], total_steps=steps)
    for step in range(steps):
        given = digits(BATCH, generator)
        target = given.flip(1)
        loss = F.cross_entropy(model.taught(given, target).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 500 == 0:
            click.echo(f"{kind}, step {step + 1:5d} of {steps}: loss {loss.item():.4f}")
    return model.eval()


@click.command()
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path(__file__).parent, show_default=True
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--only", type=click.Choice(list(KINDS)), help="Train only one of the two.")
@click.option("--steps", type=click.IntRange(min=1), help="Steps of training, if others than the usual.")
def main(out: Path, seed: int, only: str | None, steps: int | None) -> None:
    """Train the LSTM and the Transformer, and count how many new numbers each writes in reverse."""
    held_out = digits(10_000, torch.Generator().manual_seed(seed + 1))
    out.mkdir(parents=True, exist_ok=True)
    for kind in [only] if only else KINDS:
        start = time.perf_counter()
        model = fit(kind, seed, steps or STEPS_OF[kind])
        with torch.no_grad():
            right = int((model(held_out) == held_out.flip(1)).all(1).sum())
        click.echo(f"{kind}: {right} of {len(held_out)} right after {time.perf_counter() - start:.0f} s")
        save_file(model.state_dict(), out / f"{kind}.safetensors")


if __name__ == "__main__":
    main()
