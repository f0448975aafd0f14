"""Second moments are squares of sums over the batch: roots of them are right from the floor to the format's end."""

from __future__ import annotations

import pytest
import torch
from test_secure_steps import assert_parties_get_the_same, in_fixed_point

import securemodel
from securemodel.training import capture_step, run_in_float, start_states
from securemodel.training.compiling import compile_step

KINDS = [torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop]
SUMS = torch.tensor([1e-6, 0.02, 1.0, 30.0, 200.0, 5000.0, 20000.0])
ROWS, RATE = 128, 2.0**-4


def one_step(kind, parties=("a", "b"), rows=ROWS):
    """(program, inputs, weights before, those after in float): the gradients' sums over the batch are SUMS."""
    weights = torch.nn.Linear(len(SUMS), 1, bias=False)
    torch.nn.init.ones_(weights.weight)
    optimizer = kind(weights.parameters(), lr=RATE)
    x = (SUMS / rows).expand(rows, -1).clone()

    def step(x):
        loss = weights(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    captured = capture_step(step, weights, optimizer, (x,))
    program = compile_step(captured, "step", parties, ["a"], "public", [])
    numbers = captured.public_inputs().next()
    right, _ = run_in_float(captured, start_states(captured), [x], numbers, {})
    return program, [x, *(numbers[key] for key in captured.numbers)], right["model.weight"].double()


@pytest.mark.parametrize("kind", KINDS)
def test_updates_are_those_of_float_for_all_sizes_of_gradients(kind):
    """To 2^-11 of the update from a sum of 0.02 on; below, a sum has few digits, and 1e-6 none."""
    program, given, right = one_step(kind)
    made = in_fixed_point(program, given).kept["model.weight"].ring.double() / 2.0**32
    update, expected = 1.0 - made, 1.0 - right
    known = SUMS >= 0.02
    assert (expected[0, known] > RATE / 4).all(), "a step that changes nothing would be right by doing nothing"
    allowed = 2.0**-11 * expected[0] + RATE * 2.0**-14
    allowed[~known] = RATE * 2.0**-10  # a unit over the floor's root
    assert ((update - expected)[0].abs() <= allowed).all(), (update / expected).tolist()


@pytest.mark.parametrize("parties", [("a", "b"), ("idle", "b", "a")], ids=["two", "three"])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adagrad])
def test_the_parties_get_the_same(kind, parties):
    program, given, _ = one_step(kind, parties)
    assert_parties_get_the_same(program, given)


def test_the_sum_is_over_the_rows_of_all_parties():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(model.parameters())

    def step(x):
        loss = model(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    parts = {name: securemodel.owned(name, torch.randn(count, 2)) for name, count in (("a", 12), ("b", 6))}
    batch = securemodel.dataset(x=securemodel.rows(**parts)).batches(6)
    job = securemodel.compile_training(step, model, optimizer, batch=batch, parties=["a", "b"])
    assert job.captured.roots.scale == 6
