"""What `securemodel train` says where no terminal shows a bar."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from securemodel.cli import train
from securemodel.invocation import Progress


@pytest.fixture
def tell(monkeypatch, capsys):
    """Tells of steps, each of which takes ten seconds; what was said."""
    clock = itertools.count(1000.0, 10.0)
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    def tell(*steps: int) -> list[str]:
        lines = train._Lines()
        for step in steps:
            lines(Progress(step, 100, 1, {"loss": 0.5}))
        return capsys.readouterr().out.splitlines()

    return tell


def test_time_left_counts_from_the_first_step(tell):
    assert tell(1, 2, 3) == [
        "epoch 1, step 1 of 100: loss 0.5",
        "epoch 1, step 2 of 100: loss 0.5, 980 s left",
        "epoch 1, step 3 of 100: loss 0.5, 970 s left",
    ]


def test_a_resumed_training_counts_its_own_steps(tell):
    assert tell(91, 92)[-1] == "epoch 1, step 92 of 100: loss 0.5, 80 s left"
