"""Runs the digit example with all its parties on this machine, and checks what comes out against plain torch.

    python examples/lenet_mnist/demo.py

Bank, hospital and dealer are three processes joined by mutual TLS; `infer.py` is what bank and hospital run. This
script then plays the auditor: it alone opens the weights and the images together. Ends with 1 if one secure
prediction differs from the plain one.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
import matplotlib
import numpy as np
import torch
from infer import BATCH, HERE, PARTIES
from model import load_trained
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from securemodel.cli.launch import run_local

TRUST = (
    "No party learns anything but the outputs the program names, as long as the dealer colludes with nobody and "
    "everybody follows the protocol (semi-honest); up to n-1 online parties may collude."
)
SHOWN = 8


@dataclass(frozen=True)
class Results:
    """What the parties wrote, and the plain results; logits float [N, 10], predictions and labels [N]."""

    images: np.ndarray
    labels: np.ndarray
    secure_logits: np.ndarray
    plain_logits: np.ndarray
    stats: dict[str, list[dict]]

    @property
    def secure(self) -> np.ndarray:
        return self.secure_logits.argmax(1)

    @property
    def plain(self) -> np.ndarray:
        return self.plain_logits.argmax(1)

    def total(self, party: str, name: str) -> float:
        """A count of one party, over all batches."""
        return sum(batch[name] for batch in self.stats[party])

    def sent(self, party: str) -> int:
        """Bytes one party sent, over all batches."""
        return sum(batch["sent_bytes"][party] for batch in self.stats[party])


def run_parties(out: Path, images: int, console: Console) -> None:
    """Runs the three processes behind a progress bar; the parties write their results into `out`. Exits on failure."""
    batches = math.ceil(images / BATCH)
    bar = BarColumn(), MofNCompleteColumn(), TextColumn("images"), TimeElapsedColumn()
    with Progress(TextColumn("{task.description}"), *bar, console=console) as progress:
        task = progress.add_task("starting bank, hospital and dealer", total=images)

        def say(party: str, text: str, error: bool) -> None:
            done = re.fullmatch(r"(\d+) of \d+ batches", text)
            if done and party == "hospital":
                count = min(int(done[1]) * BATCH, images)
                progress.update(task, completed=count, description="reading images nobody else sees")
            elif error:
                progress.console.print(f"{party}: {text}", markup=False, highlight=False)

        outcome = run_local(HERE / "infer.py", [str(out), str(batches)], PARTIES, say)
    if outcome.code:
        console.print(f"[red]{outcome.cause} ended with exit code {outcome.code}")
        sys.exit(outcome.code)


def audit(out: Path, images: np.ndarray, labels: np.ndarray) -> Results:
    """Reads what the parties wrote and computes the same in plain torch."""
    pixels = torch.from_numpy(images).float().div(255).unsqueeze(1)
    with torch.no_grad():
        plain = load_trained(HERE / "lenet5.safetensors")(pixels).numpy()
    stats = {party: json.loads((out / f"{party}.json").read_text()) for party in PARTIES}
    return Results(images, labels, np.load(out / "hospital.npz")["logits"], plain, stats)


def predictions_table(results: Results) -> Table:
    """The first few images."""
    table = Table(title=f"The first {SHOWN} images", title_justify="left")
    for heading in ("image", "label", "secure", "plain torch", "largest logit difference"):
        table.add_column(heading, justify="right")
    for i in range(min(SHOWN, len(results.labels))):
        difference = np.abs(results.secure_logits[i] - results.plain_logits[i]).max()
        digits = (results.labels[i], results.secure[i], results.plain[i])
        table.add_row(str(i), *map(str, digits), f"{difference:.5f}")
    return table


def summary_table(results: Results, wall_s: float) -> Table:
    """Accuracy, agreement and cost over all images."""
    count, seconds = len(results.labels), results.total("hospital", "seconds")
    rounds, per_batch = results.total("hospital", "rounds"), results.stats["hospital"][0]["rounds"]
    rows = [
        ("secure accuracy", _share(results.secure == results.labels)),
        ("plain accuracy", _share(results.plain == results.labels)),
        ("same prediction", _share(results.secure == results.plain)),
        ("largest logit difference", f"{np.abs(results.secure_logits - results.plain_logits).max():.5f}"),
        ("time of the secure runs", f"{seconds:.2f} s ({count / seconds:,.0f} images/s)"),
        ("time in all, with start and compilation", f"{wall_s:.1f} s"),
        ("rounds", f"{rounds} ({per_batch} per batch of {BATCH})"),
        *((f"sent by the {party}", _bytes(results.sent(party), count)) for party in PARTIES),
        ("preprocessing, from the dealer", _bytes(int(results.total("hospital", "preprocessing_bytes")), count)),
    ]
    table = Table(title=f"All {count} images", title_justify="left", show_header=False)
    for row in rows:
        table.add_row(*row)
    return table


def _share(right: np.ndarray) -> str:
    return f"{int(right.sum())} of {len(right)} ({100 * right.mean():.1f} %)"


def _bytes(total: int, count: int) -> str:
    return f"{total / 1e6:.1f} MB ({total / count / 1e3:.1f} kB per image)"


def draw(results: Results, path: Path) -> None:
    """A picture of some images with their secure predictions; wrong ones in red."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(4, 8, figsize=(8, 4.8))
    for i, axis in enumerate(axes.flat):
        axis.axis("off")
        if i < len(results.labels):
            axis.imshow(255 - results.images[i], cmap="gray", vmin=0, vmax=255)
            right = results.secure[i] == results.labels[i]
            axis.set_title(str(results.secure[i]), color="black" if right else "red", fontsize=11)
    figure.suptitle("Read without being seen: predictions of the secure run", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("out"), show_default=True)
@click.option("--batches", type=click.IntRange(min=1), help=f"Read only so many batches of {BATCH}.  [default: all]")
def main(out: Path, batches: int | None) -> None:
    """Read handwritten digits securely: bank, hospital and dealer as three processes on this machine."""
    console, start = Console(highlight=False), time.perf_counter()
    with np.load(HERE / "images.npz") as file:
        limit = batches * BATCH if batches else None
        images, labels = file["images"][:limit], file["labels"][:limit]
    console.print("The bank has the weights of a network, the hospital has images and alone gets the answers.")
    run_parties(out / "digits", len(images), console)
    results = audit(out / "digits", images, labels)
    wall_s = time.perf_counter() - start
    draw(results, out / "demo.png")
    console.print(predictions_table(results), summary_table(results, wall_s), TRUST, sep="\n")
    console.print(f"Picture: {out / 'demo.png'}")
    if not (results.secure == results.plain).all():
        console.print("[red]Secure and plain predictions differ.")
        sys.exit(1)


if __name__ == "__main__":
    main()
