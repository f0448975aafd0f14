"""Trains the digit network in the clear and writes the two files that the example runs on.

    python examples/lenet_mnist/train.py --data mnist.npz

`lenet5.safetensors`: the weights, float32. `images.npz`: held-out test images that training never saw, `images` uint8
[N, 28, 28] and `labels` uint8 [N]. Everything random comes from --seed, so a run can be repeated;
nothing here is secret.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from data import Digits, load
from model import LeNet5
from safetensors.torch import save_file

HERE = Path(__file__).parent
BATCH = 128


def pixels(digits: Digits) -> torch.Tensor:
    """Images as the model takes them: float [N, 1, 28, 28] between 0 and 1."""
    return torch.from_numpy(digits.images.copy()).float().div(255).unsqueeze(1)


def distorted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The images [N, 1, H, W], each turned, scaled, sheared and moved a little, by its own random amounts."""

    def between(bound: float) -> torch.Tensor:
        return (torch.rand(len(images), generator=generator) * 2 - 1) * bound

    angle, shear = between(math.radians(12)), between(0.15)
    scale_x, scale_y = 1 + between(0.12), 1 + between(0.12)
    move_x, move_y = between(2.5 / 14), between(2.5 / 14)  # 14 pixels are 1 in these coordinates
    cos, sin = angle.cos(), angle.sin()
    rows = (cos * scale_x, (shear - sin) * scale_y, move_x, sin * scale_x, cos * scale_y, move_y)
    grid = F.affine_grid(torch.stack(rows, 1).reshape(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def fit(train: Digits, epochs: int, seed: int) -> LeNet5:
    """A network trained for a fixed number of epochs; the last weights are taken, chosen by nothing held out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LeNet5()
    images, labels = pixels(train), torch.from_numpy(train.labels.astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    steps = epochs * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for epoch in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = F.cross_entropy(model(distorted(images[batch], generator)), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        click.echo(f"epoch {epoch + 1:3d} of {epochs}: training loss {total / len(images):.4f}")
    return model.eval()


@torch.no_grad()
def correct(model: LeNet5, digits: Digits) -> int:
    """How many of the images the model reads right."""
    answers = model(pixels(digits)).argmax(1).numpy()
    return int((answers == digits.labels).sum())


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="An .npz file with `images` and `labels`, or a folder with MNIST's four idx files (gzipped or not).",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=HERE, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), default=40, show_default=True)
@click.option(
    "--images",
    "kept",
    type=click.IntRange(min=1, max=1000),
    default=500,
    show_default=True,
    help="How many held-out images to write.",
)
@click.option("--seed", type=int, default=1, show_default=True)
def main(data: Path, out: Path, epochs: int, kept: int, seed: int) -> None:
    """Train LeNet-5 on MNIST and write its weights and some held-out images."""
    try:
        train, held_out = load(data, np.random.default_rng(seed))
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise click.BadParameter(str(error), param_hint="--data") from error
    click.echo(f"{len(train)} training images, {len(held_out)} held out")
    model = fit(train, epochs, seed)
    shown = held_out.take(np.arange(min(kept, len(held_out))))
    for name, digits in (("all held-out", held_out), ("the written", shown)):
        right = correct(model, digits)
        click.echo(f"{right} of {name} {len(digits)} images right: {100 * right / len(digits):.2f} %")
    out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), out / "lenet5.safetensors")
    np.savez_compressed(out / "images.npz", images=shown.images, labels=shown.labels)
    for name in ("lenet5.safetensors", "images.npz"):
        click.echo(f"wrote {out / name} ({(out / name).stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
