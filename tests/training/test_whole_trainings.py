"""The measurement of whole trainings: fixed point and PyTorch begin alike, take the same batches and end alike."""

import click
import pytest
import torch
from torch import nn

from benchmarks.accuracy import Outcome, Whole, classifier, draw, trained


def whole(split: int = 0, lr: float = 0.5) -> Whole:
    torch.manual_seed(3)
    x = torch.randn(60, 6)
    y = (x[:, 0] > x[:, 4]).long()
    model = nn.Linear(6, 2)
    return classifier(
        (x[:40], y[:40]), (x[40:], y[40:]), model, torch.optim.SGD(model.parameters(), lr=lr), 10, 3, split
    )


@pytest.mark.parametrize("split", [0, 4])
def test_both_trainings_end_alike(split, tmp_path):
    made = whole(split)
    outcome = trained("lines", 1, made)
    fixed, plain = outcome.losses
    assert len(fixed) == len(plain) == 12 and fixed == pytest.approx(plain, abs=1e-3) and plain[-1] < plain[0]
    assert outcome.right[0] == outcome.right[1] > 12 and outcome.tested == 20 and outcome.apart < 2**-12
    draw([Outcome("MNIST, LeNet-5", **{k: v for k, v in vars(outcome).items() if k != "case"})], tmp_path / "made.png")
    assert (tmp_path / "made.png").read_bytes().startswith(b"\x89PNG")


def test_a_training_that_leaves_its_range_is_no_measurement():
    with pytest.raises(click.ClickException, match="left their range"):
        trained("lines", 1, whole(lr=1e4))
