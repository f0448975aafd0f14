"""Trains generator and discriminator in the clear and writes their weights.

    python examples/gan/train.py

The data are the 500 handwritten digits of the example lenet_mnist, each moved by up to two pixels; another .npz file
with `images`, uint8 [N, 28, 28], does as well. Everything random comes from --seed; nothing here is secret.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from model import LATENT, Gan
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent
BATCH, MOVE = 64, 2


def digits(path: Path) -> torch.Tensor:
    """Images, float [N, 1, 28, 28], from -1 to 1."""
    with np.load(path, allow_pickle=False) as file:
        return torch.from_numpy(file["images"]).float().div(127.5).sub(1).unsqueeze(1)


def batch_of(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Some of the images, all moved by the same small step."""
    chosen = images[torch.randint(len(images), (BATCH,), generator=generator)]
    right, down = torch.randint(-MOVE, MOVE + 1, (2,), generator=generator).tolist()
    return F.pad(chosen, (right, -right, down, -down), value=-1.0)


def start(module: nn.Module) -> None:
    """Weights as the paper has them at the beginning."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def fit(images: torch.Tensor, steps: int, seed: int) -> Gan:
    """Both networks, each trained against the other for a number of steps."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Gan().apply(start).train()
    settings = {"lr": 4e-4, "betas": (0.5, 0.999)}
    painter = torch.optim.Adam(model.generator.parameters(), **settings)
    judge = torch.optim.Adam(model.discriminator.parameters(), **settings)
    for step in range(steps):
        drawn = model.draw(torch.randn(BATCH, LATENT, generator=generator))
        real, fake = model.judge(batch_of(images, generator)), model.judge(drawn.detach())
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        judge.zero_grad()
        loss.backward()
        judge.step()
        painted = F.softplus(-model.judge(drawn)).mean()
        painter.zero_grad()
        painted.backward()
        painter.step()
        if (step + 1) % 250 == 0:
            click.echo(f"step {step + 1} of {steps}: losses {loss.item():.3f} and {painted.item():.3f}")
    return model.eval()


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=HERE.parent / "lenet_mnist" / "images.npz",
    show_default=True,
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=HERE, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=2000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
def main(data: Path, out: Path, steps: int, seed: int) -> None:
    """Train a DCGAN on handwritten digits and write its weights."""
    model = fit(digits(data), steps, seed)
    out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), out / "gan.safetensors")
    click.echo(f"wrote {out / 'gan.safetensors'} ({(out / 'gan.safetensors').stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
