"""What `simulate` promises: while no range is left, the parties have its weights, bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

import securemodel
from securemodel.errors import InputError

KINDS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad}


def job(kind: str, size: float, seed: int = 0):
    """Two columns that are `size` large and labels as large, in batches of 4."""
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(model.weight, 0.25)
    torch.nn.init.zeros_(model.bias)
    optimizer = KINDS[kind](model.parameters(), lr=2.0**-6)

    def step(x, y):
        loss = F.mse_loss(model(x).squeeze(1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    data = securemodel.dataset(
        x=securemodel.owned("a", size * torch.randn(8, 2, generator=generator)),
        y=securemodel.owned("b", size * torch.randn(8, generator=generator)),
    )
    return securemodel.compile_training(step, model, optimizer, batch=data.batches(4), parties=["a", "b"])


def weights_after(made, steps: int) -> dict[str, torch.Tensor]:
    """Of a secure run, exactly."""
    with made.local() as run:
        for _ in range(steps):
            run.step()
        held = [party.kept for party in run._where.parties.values()]
    return {
        name: sum(kept[name] for kept in held if kept[name] is not None).double() / 2.0**32
        for name in ("model.weight", "model.bias")
    }


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(KINDS)), st.floats(-2.0, 18.0), st.integers(0, 3), st.integers(1, 2))
@example("sgd", 7.0, 1, 1)  # in the ring, and beyond what a truncation takes
def test_weights_are_those_of_a_secure_run_or_a_range_is_named(kind, exponent, seed, steps):
    made = job(kind, 2.0**exponent, seed)
    said = made.simulate(steps)
    if not said.outside:
        secure = weights_after(made, steps)
        assert all(torch.equal(said.weights[name], value) for name, value in secure.items())


def test_every_range_that_is_left_is_named_with_its_line():
    said = job("adam", 2.0**14).simulate(2)
    assert {"rsqrt", "truncation"} <= {room.what for room in said.outside}
    assert all(room.bits < 0 and room.source for room in said.outside)
    assert "values left their range" in str(said)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ([torch.zeros(4, 2)], "the step takes x torch.float32 \\[4, 2\\], y torch.float32 \\[4\\]"),
        ([torch.zeros(4, 2).double(), torch.zeros(4)], "it is torch.float64 \\[4, 2\\]"),
    ],
)
def test_batches_that_the_step_does_not_take(batch, words):
    with pytest.raises(InputError, match=words):
        job("sgd", 1.0).simulate(1, batches=lambda step: batch)


def test_rows_are_checked_before_they_are_simulated():
    with pytest.raises(InputError, match="party 'a': column 'x', row 0"):
        job("sgd", math.nan).simulate(1)


def test_moments_are_no_weights():
    said = job("adam", 2.0**5).simulate(2)
    assert not said.outside and said.weights.keys() == {"model.weight", "model.bias"}
    assert said.difference < 32 < said.difference_of_moments
