"""Reads handwritten digits with a network the bank owns, in images the hospital owns; neither shows the other anything.

    securemodel run examples/lenet_mnist/infer.py --local -- out/digits 5

The same file runs at both parties. Arguments: a folder for results, and how many batches of 100 images to read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from model import LeNet5, load_trained
from rich.progress import track

import securemodel

PARTIES = ("bank", "hospital")
HERE, BATCH = Path(__file__).parent, 100


def make_program() -> securemodel.Program:
    """The network as a secure program. Its architecture is enough: tensors on the meta device hold no numbers."""
    with torch.device("meta"):
        model = LeNet5().eval()
    example = torch.zeros(BATCH, 1, 28, 28)
    return securemodel.compile(model, (example,), weights="bank", inputs="hospital", outputs="hospital")


def load_model(party: str) -> LeNet5 | None:
    """The network with its weights. Only the bank has this file."""
    return load_trained(HERE / "lenet5.safetensors") if party == "bank" else None


def hospital_batches(count: int) -> list[torch.Tensor]:
    """Images between 0 and 1. Only the hospital has this file."""
    images = torch.from_numpy(np.load(HERE / "images.npz")["images"]).float().div(255).unsqueeze(1)
    return list(images.split(BATCH)[:count])


def shown(batches: list) -> Iterator[torch.Tensor | None]:
    """The batches, with a progress bar on a terminal and a line for each elsewhere."""
    if sys.stdout.isatty():
        yield from track(batches, "reading digits")
        return
    for number, batch in enumerate(batches, 1):
        yield batch
        print(f"{number} of {len(batches)} batches")


def main(out: Path, count: int) -> None:
    with securemodel.connect(make_program()) as session:
        bank = session.me == "bank"
        session.load(session.program, load_model(session.me))
        logits, stats = [], []
        for batch in shown([None] * count if bank else hospital_batches(count)):
            logits.append(session.run(batch))  # the hospital's result; None at the bank
            stats.append(session.stats)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{session.me}.json").write_text(json.dumps([asdict(s) for s in stats]))
    if not bank:
        scores = torch.cat(logits).numpy()
        np.savez(out / "hospital.npz", logits=scores, predictions=scores.argmax(1))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/digits"), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
