"""The largest value along an axis and its place, whatever number of players meet in a match."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Fn

import securemodel


def made(shape, rounding="exact", dtype=torch.float32):
    """Of numbers that nobody has: a part of each is the bank's."""
    both = Fn(lambda x, y: ((x + y).amax(1), (x + y).argmax(1)))
    examples = (torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))
    return securemodel.compile(
        both, examples, weights="bank", inputs=("client", "bank"), outputs="client", rounding=rounding
    )


@pytest.mark.parametrize("rounding", ["exact", "fast"])
@pytest.mark.parametrize("players", [2, 3, 8, 9, 10, 12, 13, 17, 18, 40])
def test_winners_and_their_places(players, rounding):
    program = made((5, players), rounding)
    with securemodel.local(program) as session:
        generator = torch.Generator().manual_seed(players)
        for values in (6, 1, 2**20):  # few values, so that there are ties; all the same; nearly none
            x = torch.randint(-values, values + 1, (5, players), generator=generator) / 2.0**10
            largest, place = session.run(x, torch.zeros_like(x))
            assert torch.equal(largest, x.amax(1)) and torch.equal(place, x.argmax(1))


@settings(max_examples=4, deadline=None)
@given(st.data())
def test_values_next_to_each_other(data):
    players = data.draw(st.integers(9, 17))
    base = data.draw(st.integers(-(2**29), 2**29))
    steps = data.draw(st.lists(st.integers(0, 2), min_size=players, max_size=players))
    x = (base + torch.tensor([steps], dtype=torch.float64)) / 2.0**16
    program = made((1, players), dtype=torch.float64)
    with securemodel.local(program) as session:
        largest, place = session.run(x, torch.zeros_like(x))
    assert torch.equal(largest, x.amax(1)) and torch.equal(place, x.argmax(1))


@pytest.mark.parametrize("players, rounds", [(8, 7), (10, 8), (17, 8), (32, 12), (128, 13)])
def test_rounds(players, rounds):
    """Up to seventeen meet in one match; 128 in matches of eight, whose winners meet in one."""
    only = Fn(lambda x, y: (x + y).argmax(1))
    examples = (torch.zeros(1, players), torch.zeros(1, players))
    program = securemodel.compile(only, examples, weights="bank", inputs=("client", "bank"), outputs="client")
    assert program.plan("lan").rounds == rounds
