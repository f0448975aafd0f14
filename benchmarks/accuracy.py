"""`python -m benchmarks.accuracy [--mnist FILE] [CASE...]`: whole trainings in fixed point beside PyTorch's.

Both begin with the same weights and take the same batches. The training in fixed point is `job.simulate`, whose weights
are those of a secure run, bit for bit, while no value leaves its range; this program fails where one does. PyTorch runs
the step itself. Accuracy is that of the trained model in PyTorch on rows that no step saw.

FILE is an .npz with `images` uint8[rows, 28, 28] and `labels` uint8[rows].
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import securemodel
from benchmarks.models import lenet5

Rows = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Whole:
    """A training: models by name, their optimizers, a step on batches of columns, and what counts in the end."""

    columns: dict[str, tuple[str, torch.Tensor]]
    """By name: whose it is, and all rows."""
    models: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    step: Callable[..., Any]
    """Returns the loss, or a dictionary whose first value is drawn."""
    batch: int
    epochs: int
    right: Callable[[], int]
    """How many of `tested` cases the trained models get right."""
    tested: int


@dataclass(frozen=True)
class Outcome:
    """Losses by step and cases that are right, in fixed point and in PyTorch; the weights' largest difference."""

    case: str
    seed: int
    losses: tuple[list[float], list[float]]
    right: tuple[int, int]
    tested: int
    apart: float


# ---- cases
def classifier(
    train: Rows, test: Rows, model: nn.Module, optimizer: torch.optim.Optimizer, batch: int, epochs: int,
    split: int = 0, factor: float = 1.0,
) -> Whole:  # fmt: skip
    """Rows to train with and to test with. The first party has `split` columns; 0: all, and the second the labels.

    factor: what the loss is multiplied by before its gradients are taken.
    """
    x, y = train
    columns = {"x": ("alice", x)} if not split else {
        "left": ("alice", x[:, :split].contiguous()), "right": ("bob", x[:, split:].contiguous())
    }  # fmt: skip

    def step(*batch: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(model(torch.cat(batch[:-1], 1)), batch[-1])
        optimizer.zero_grad()
        (factor * loss).backward()
        optimizer.step()
        return loss

    def right() -> int:
        return int((model(test[0]).argmax(1) == test[1]).sum())

    columns["label"] = ("bob", y)
    return Whole(columns, {"model": model}, {"optimizer": optimizer}, step, batch, epochs, right, len(test[0]))


def breast_cancer(seed: int) -> Whole:
    """Standardized columns, 15 of each party."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    x, y = load_breast_cancer(return_X_y=True)
    parts = train_test_split(StandardScaler().fit_transform(x), y, test_size=0.2, random_state=seed, stratify=y)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in parts)
    model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rows = (train_x.float(), train_y.long()), (test_x.float(), test_y.long())
    return classifier(*rows, model, optimizer, 64, 10, split=15)


def mnist(seed: int, path: Path) -> Rows:
    """Images from 0 to 1 and labels of a file, in an order of the seed's."""
    with np.load(path, allow_pickle=False) as file:
        images, labels = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"]).long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order].float().div(255).unsqueeze(1), labels[order]


def digits(seed: int, path: Path) -> Whole:
    """MNIST: of the file's rows 1000 to test with."""
    images, labels = mnist(seed, path)
    model = lenet5()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return classifier((images[1000:], labels[1000:]), (images[:1000], labels[:1000]), model, optimizer, 128, 3)


class Recurrent(nn.Module):
    """An LSTM's last state, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 24, batch_first=True)
        self.head = nn.Linear(24, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def signals(seed: int, factor: float = 1.0) -> Whole:
    """Sequences of 12 steps: does the first channel have its peak before that of the second?"""
    x = torch.randn(1500, 12, 6, generator=torch.Generator().manual_seed(seed))
    y = (x[..., 0].argmax(1) < x[..., 1].argmax(1)).long()
    model = Recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return classifier((x[:1000], y[:1000]), (x[1000:], y[1000:]), model, optimizer, 50, 10, factor=factor)


class Encoder(nn.Module):
    """A layer of a Transformer over tokens, its mean classified."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(12, 32), nn.Parameter(torch.randn(10, 32) * 0.1)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.tokens(x) + self.places).mean(1))


def sentences(seed: int) -> Whole:
    """Ten tokens: are there more of the first two kinds, of the last two, or as many?"""
    x = torch.randint(12, (1500, 10), generator=torch.Generator().manual_seed(seed))
    y = ((x < 2).sum(1) - (x > 9).sum(1)).sign() + 1
    model = Encoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return classifier((x[:1000], y[:1000]), (x[1000:], y[1000:]), model, optimizer, 50, 8)


def drawings(seed: int, path: Path) -> Whole:
    """A DCGAN on 2,000 images of MNIST. A drawing is right if a LeNet-5 trained on the others is sure which digit it is."""
    images, labels = mnist(seed, path)
    judge = lenet5()
    rate = torch.optim.SGD(judge.parameters(), lr=0.05, momentum=0.9)
    for some, named in zip(images[2000:].split(128) * 3, labels[2000:].split(128) * 3, strict=True):
        rate.zero_grad()
        F.cross_entropy(judge(some), named).backward()
        rate.step()
    painter, critic = (
        nn.Sequential(
            nn.Unflatten(1, (16, 1, 1)), nn.ConvTranspose2d(16, 32, 7, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Sigmoid(),
        ),
        nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1, bias=False), nn.BatchNorm2d(32),
            nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 7), nn.Flatten(0),
        ),
    )  # fmt: skip
    models = {"painter": painter, "critic": critic}
    of = {f"of_{name}": torch.optim.Adam(m.parameters(), lr=2e-3, betas=(0.5, 0.999)) for name, m in models.items()}

    def step(real: torch.Tensor) -> dict[str, torch.Tensor]:
        drawn = painter(torch.randn(len(real), 16))
        judged = F.softplus(-critic(real)).mean() + F.softplus(critic(drawn.detach())).mean()
        of["of_critic"].zero_grad()
        judged.backward()
        of["of_critic"].step()
        painted = F.softplus(-critic(drawn)).mean()
        of["of_painter"].zero_grad()
        painted.backward()
        of["of_painter"].step()
        return {"critic": judged, "painter": painted}

    def right() -> int:
        painter.eval()
        drawn = painter(torch.randn(1000, 16, generator=torch.Generator().manual_seed(9)))
        painter.train()
        return int((judge(drawn).softmax(1).amax(1) > 0.9).sum())

    return Whole({"real": ("alice", images[:2000])}, models, of, step, 50, 6, right, 1000)


CASES: dict[str, Callable[..., Whole]] = {
    "breast cancer, MLP": breast_cancer,
    "MNIST, LeNet-5": digits,
    "sequences, LSTM": signals,
    "sequences, LSTM, 32 x loss": partial(signals, factor=32.0),
    "tokens, Transformer": sentences,
    "MNIST, DCGAN": drawings,
}


# ---- one training
def trained(case: str, seed: int, made: Whole) -> Outcome:
    """Trains in fixed point and in PyTorch. Raises ClickException where a value leaves its range."""
    data = securemodel.dataset(**{name: securemodel.owned(*column) for name, column in made.columns.items()})
    batches = data.batches(made.batch, seed=seed)
    job = securemodel.compile_training(
        made.step, made.models, made.optimizers, batch=batches, parties=("alice", "bob"), reveal="all"
    )
    steps = made.epochs * batches.steps_per_epoch
    said = job.simulate(steps)
    if said.overflowed:
        raise click.ClickException(f"{case}, seed {seed}: {said}")
    plain = []
    for at in range(steps):
        torch.manual_seed(at)
        returned = made.step(*batches.inputs(at, lambda name: True))
        plain.append((next(iter(returned.values())) if isinstance(returned, dict) else returned).item())
    after = {f"{name}.{key}": x.clone() for name, m in made.models.items() for key, x in m.state_dict().items()}
    right = _right(made)
    weights = {name: tensor.float() for name, tensor in said.weights.items()}
    apart = max(float((weights[name] - after[name]).abs().max()) for name in weights)
    for name, model in made.models.items():
        own = {key.removeprefix(f"{name}."): x for key, x in weights.items() if key.startswith(f"{name}.")}
        model.load_state_dict(own, strict=False)
    fixed = [fixed for fixed, _ in said.returned]
    return Outcome(case, seed, (fixed, plain), (_right(made), right), made.tested, apart)


def _right(made: Whole) -> int:
    with torch.no_grad():
        return made.right()


# ---- pictures
def draw(outcomes: list[Outcome], path: Path) -> None:
    """The losses of each case's first seed: fixed point over PyTorch's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    first = {outcome.case: outcome for outcome in reversed(outcomes)}
    cases = [case for case in CASES if case in first]
    figure, axes = pyplot.subplots(1, len(cases), figsize=(3.2 * len(cases), 2.8), squeeze=False)
    for axis, case in zip(axes[0], cases, strict=True):
        fixed, plain = first[case].losses
        axis.plot(plain, color="tab:orange", linewidth=2.5, label="PyTorch")
        axis.plot(fixed, color="tab:blue", linewidth=0.8, label="fixed point")
        axis.set(title=case, xlabel="step", ylabel="loss")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


@click.command()
@click.argument("cases", nargs=-1)
@click.option("--mnist", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="images and labels (.npz)")
@click.option("--seeds", default=3, show_default=True, help="trainings of each case")
@click.option("--json", "written", type=click.Path(dir_okay=False, path_type=Path), help="all losses, as JSON")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="the losses, drawn")
def main(cases: tuple[str, ...], mnist: Path | None, seeds: int, written: Path | None, picture: Path | None) -> None:
    """Trains the cases (all: those whose name has one of the words CASES) in fixed point and in PyTorch."""
    chosen = [case for case in CASES if not cases or any(word.lower() in case.lower() for word in cases)]
    outcomes: list[Outcome] = []
    for case in chosen:
        if case.startswith("MNIST") and mnist is None:
            click.echo(f"{case}: left out, as --mnist names no file")
            continue
        for seed in range(seeds):
            torch.manual_seed(seed)
            more: dict[str, Any] = {"path": mnist} if case.startswith("MNIST") else {}
            outcome = trained(case, seed, CASES[case](seed, **more))
            outcomes.append(outcome)
            (fixed, plain), tested = outcome.right, outcome.tested
            click.echo(
                f"{case}, seed {seed}: {fixed} and {plain} of {tested} right ({fixed / tested:.1%}, {plain / tested:.1%}), "
                f"weights {outcome.apart:.2g} apart, last loss {outcome.losses[0][-1]:.4f} and {outcome.losses[1][-1]:.4f}"
            )
    if written:
        written.write_text(json.dumps([vars(outcome) for outcome in outcomes]))
    if picture and outcomes:
        draw(outcomes, picture)


if __name__ == "__main__":
    main()
