"""Draws digits with a lab's generator from a client's random vectors: the lab sees neither vectors nor images.

    securemodel run examples/gan/generate.py --local
    securemodel run examples/gan/generate.py --local -- out/gan 7

The same file runs at both parties. Arguments: a folder for the images, and the seed of the client's vectors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import torch
from model import LATENT, Gan, load_trained

import securemodel

PARTIES = ("lab", "client")
COUNT, COLUMNS = 16, 8


def make_program() -> securemodel.Program:
    """Generator and discriminator as a secure program. The model on the meta device holds no numbers."""
    with torch.device("meta"):
        model = Gan().eval()
    return securemodel.compile(model, torch.zeros(COUNT, LATENT), weights="lab", inputs="client", outputs="client")


def latent(seed: int) -> torch.Tensor:
    """The client's vectors, [16, 16]."""
    return torch.randn(COUNT, LATENT, generator=torch.Generator().manual_seed(seed))


def draw(images: torch.Tensor, scores: torch.Tensor, path: Path) -> None:
    """One picture of all images, each with the discriminator's score."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(COUNT // COLUMNS, COLUMNS, figsize=(COLUMNS, 2.6))
    for image, score, axis in zip(images, scores, axes.flat, strict=True):
        axis.axis("off")
        axis.imshow(-image[0], cmap="gray", vmin=-1, vmax=1)
        axis.set_title(f"{score:.1f}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def main(out: Path, seed: int) -> None:
    with securemodel.connect(make_program()) as session:
        client = session.me == "client"
        session.load(session.program, None if client else load_trained())
        images, scores = session.run(latent(seed) if client else None)  # the client's; None at the lab
        stats = session.stats
    if client:
        out.mkdir(parents=True, exist_ok=True)
        draw(images, scores, out / "digits.png")
        sent = sum(stats.sent_bytes.values())
        print(f"{COUNT} images: {stats.seconds:.2f} s, {stats.rounds} rounds, {sent / 1e6:.1f} MB sent by the client")
        print(f"Picture: {out / 'digits.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/gan"), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
