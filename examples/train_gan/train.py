"""Two archives train a generator of handwritten digits on images that neither shows.

    securemodel train examples/train_gan/train.py --local

Two models and two optimizers take turns in one step. Both archives learn the losses; in the end the first gets the generator
and draws with it. The critic, which has seen the images, is revealed to nobody.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from model import LATENT, critic, generator, latent
from safetensors.torch import save_file
from torch import nn

import securemodel

PARTIES = ("archive", "museum")
IMAGES = Path(__file__).parents[1] / "lenet_mnist" / "images.npz"
BATCH = 24


def read(party: str, count: int) -> torch.Tensor:
    """A party's images, [count, 1, 28, 28] from -1 to 1. Here each takes a part of one file; it would have its own."""
    with np.load(IMAGES, allow_pickle=False) as file:
        images = file["images"][PARTIES.index(party) :: 2][:count]
    return torch.from_numpy(images).float().div(127.5).sub(1).unsqueeze(1)


def draw(painter: nn.Module, path: Path) -> None:
    """A picture of 32 images by a generator."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    with torch.no_grad():
        images = painter.eval()(latent(32, seed=1))[:, 0]
    sheet = torch.cat([torch.cat(list(line), 1) for line in images.split(8)])
    sheet = sheet.repeat_interleave(3, 0).repeat_interleave(3, 1)
    pyplot.imsave(path, -sheet, cmap="gray", vmin=-1, vmax=1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=250, help="that each party has")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("out/train_gan"), help="a folder for weights and picture")
    given = parser.parse_args()

    torch.manual_seed(0)  # everybody starts with the same weights
    models = {"generator": generator(), "critic": critic()}
    painter, judge = models.values()
    settings = {"lr": 6e-3, "betas": (0.5, 0.999)}
    optimizers = {
        "of_generator": torch.optim.Adam(painter.parameters(), **settings),
        "of_critic": torch.optim.Adam(judge.parameters(), **settings),
    }

    def step(real: torch.Tensor) -> dict[str, torch.Tensor]:
        drawn = painter(torch.randn(len(real), LATENT))
        judged = F.softplus(-judge(real)).mean() + F.softplus(judge(drawn.detach())).mean()
        optimizers["of_critic"].zero_grad()
        judged.backward()
        optimizers["of_critic"].step()
        painted = F.softplus(-judge(drawn)).mean()
        optimizers["of_generator"].zero_grad()
        painted.backward()
        optimizers["of_generator"].step()
        return {"critic": judged, "generator": painted}

    shape = (given.images, 1, 28, 28)
    parts = {name: securemodel.owned(name, lambda name=name: read(name, given.images), shape) for name in PARTIES}
    data = securemodel.dataset(real=securemodel.rows(**parts))
    job = securemodel.compile_training(
        step, models, optimizers, batch=data.batches(BATCH, seed=2), parties=PARTIES, reveal="all"
    )
    with job.connect() as run:
        for epoch in run.epochs(given.epochs):
            losses = run.train_epoch()
            means = {name: sum(float(loss[name]) for loss in losses) / len(losses) for name in losses[0]}
            print(f"epoch {epoch + 1}: " + ", ".join(f"{n} {mean:.3f}" for n, mean in means.items()), flush=True)
        weights = run.export(to="archive", only="generator")
    if weights is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        save_file(weights, given.out / "generator.safetensors")
        painter.load_state_dict(weights)
        draw(painter, given.out / "digits.png")
        print(f"the archive has the generator, and drew with it: {given.out / 'digits.png'}", flush=True)


if __name__ == "__main__":
    main()
