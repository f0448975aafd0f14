"""Rows that a training cannot use: refused at their owner, with their place, before anything of them is sent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_joint import PARTIES, together
from torch import nn

from protocols.errors import InputError, PeerAborted
from securemodel import training
from securemodel.training.run import Run

ROWS, BAD = 24, 16  # of those that steps read


def changed(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """The same with another value in one row."""
    made = tensor.clone()
    made[(BAD, *[0] * (made.ndim - 1))] = value
    return made


def made(resident: bool | None = None, **columns: Any) -> training.Training:
    """Features of the bank, ids of the shop, labels of the registry; some rows are for an evaluation alone."""
    x, ids, y = torch.randn(ROWS, 4), torch.randint(0, 5, (ROWS, 2)), torch.randint(0, 3, (ROWS,))
    shapes: dict[str, Any] = {"x": ("bank", x), "ids": ("shop", ids), "y": ("registry", y)}
    parts = {name: training.owned(owner, columns.get(name, given), given.shape, given.dtype)
             for name, (owner, given) in shapes.items()}  # fmt: skip
    torch.manual_seed(0)
    layers = nn.ModuleDict({"x": nn.Linear(4, 3), "ids": nn.Embedding(5, 3)})
    optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)

    def scores(x, ids):
        return layers["x"](x) + layers["ids"](ids).sum(1)

    def step(x, ids, y):
        optimizer.zero_grad()
        F.cross_entropy(scores(x, ids), y).backward()
        optimizer.step()

    def right(x, ids, y):
        return (scores(x, ids).argmax(1) == y).sum()

    data, test = training.dataset(**parts).split(0.75, seed=1)
    return training.compile_training(
        step, layers, optimizer, batch=data.batches(6, seed=1, resident=resident), parties=PARTIES,
        evaluate={"right": (right, test, "all")},
    )  # fmt: skip


X, IDS, Y = torch.randn(ROWS, 4), torch.randint(0, 5, (ROWS, 2)), torch.randint(0, 3, (ROWS,))
MISTAKES: dict[str, tuple[str, str, Any, tuple[str, ...]]] = {
    "NaN": ("bank", "x", changed(X, float("nan")), ("'x', row 16", "NaN or infinite", "within")),
    "infinite": ("bank", "x", changed(X, float("inf")), ("'x', row 16", "NaN or infinite", "within")),
    "out of range": ("bank", "x", changed(X, 2.0**40), ("'x', row 16", "out of range", "within [-1.07374e+09")),
    "label too large": ("registry", "y", changed(Y, 3), ("'y', row 16", "from 0 to 2")),
    "label below 0": (
        "registry",
        "y",
        changed(Y, -100),
        ("'y', row 16", "from 0 to 2; if losses are", "ignore_index=3"),
    ),
    "id too large": ("shop", "ids", changed(IDS, 5), ("'ids', row 16", "from 0 to 4")),
    "fewer rows": ("bank", "x", lambda: X[:-1], ("column 'x'", "[23, 4] in place of", "[24, 4]")),
    "more columns": ("bank", "x", lambda: torch.randn(ROWS, 5), ("column 'x'", "[24, 5] in place of")),
    "another type": ("registry", "y", lambda: Y.float(), ("column 'y'", "torch.float32", "in place of torch.int64")),
    "no tensor": ("bank", "x", lambda: X.tolist(), ("column 'x'", "gave no tensor")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_rows_are_refused_at_their_owner(mistake: str):
    owner, name, given, parts = MISTAKES[mistake]
    results = together(dict.fromkeys(PARTIES, Run.step), lambda: made(**{name: given}))
    error = results.pop(owner)
    assert type(error) is InputError and f"'{owner}'" in str(error), error
    for part in parts:
        assert part in str(error), error
    for me, told in results.items():
        assert type(told) is PeerAborted and f"'{owner}'" in str(told), f"{me}: {told!r}"
        assert "an input or weights it cannot use" in str(told) and "16" not in str(told), told


@pytest.mark.parametrize("resident", [True, False])
def test_rows_of_an_evaluation_are_checked_before_the_first_step(resident: bool):
    ((batches, _),) = made().evaluations["right"].pieces
    row = int(batches.data.positions[0][2])
    ids = IDS.clone()
    ids[row] = -1
    with made(resident, ids=ids).local() as run:
        for _ in range(2):
            with pytest.raises(InputError, match=f"'ids', row {row}: .*outside of its table"):
                run.step()
        assert run._where.session.load_stats.seconds == 0, "nothing was sent"


def test_of_rows_of_several_parties_the_owner_counts_its_own():
    def step(x):
        loss = (x * scale).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    scale = nn.Parameter(torch.ones(4))
    holder = nn.Module()
    holder.scale = scale
    optimizer = torch.optim.SGD(holder.parameters(), lr=0.1)
    x = training.rows(a=training.owned("bank", torch.randn(30, 4)), b=training.owned("shop", changed(X, 2.0**40)))
    batch = training.dataset(x=x).batches(9)
    job = training.compile_training(step, holder, optimizer, batch=batch, parties=PARTIES)
    with job.local() as run, pytest.raises(InputError, match="'shop': column 'x', row 16 has values out of range"):
        run.step()
