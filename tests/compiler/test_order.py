"""Sorting networks and secret positions: any length, equal values, permutations, 2 and 3 parties."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from running import IDLE_THIRD, TWO, Fn, check_agrees, run, veils
from torch import nn

import securemodel


class Plus(nn.Module):
    """A function of the sum of two parties' inputs."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x, y):
        return self.function(x + y)


def secure(function, x: torch.Tensor, settings_=TWO) -> list[torch.Tensor]:
    program = securemodel.compile(Plus(function), (x, x), **{**settings_, "inputs": ("a", "b")})
    return run(program, x, veils([x], "add")[0])


def compiled_sort(function, x: torch.Tensor) -> securemodel.Program:
    return securemodel.compile(Plus(function), (x, x), **{**TWO, "inputs": ("a", "b")})


def test_whole_numbers_of_a_narrow_type_are_sorted_with_fewer_bits():
    x = torch.tensor([0, 1, -1, 2**15, -(2**15), 2**30 - 1, -(2**30), 77])
    right = (x + x).sort()[0]
    dealt = []
    for dtype in (torch.int64, torch.int32):
        program = compiled_sort(lambda x, d=dtype: x.to(d).sort()[0], x)
        with securemodel.local(program) as session:
            assert torch.equal(session.run(x, x).long(), right)
        dealt.append(program.plan().preprocessing_bytes)
    assert (
        max(dealt) < 0.8 * compiled_sort(lambda x: (x.to(torch.int64) * 2**31).sort()[0], x).plan().preprocessing_bytes
    )


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 31, 33])
def test_any_number_of_values_is_sorted(count):
    """By the principle of zeros and ones: a network that sorts these sorts everything (Knuth, vol. 3, 5.3.4)."""
    columns = torch.arange(count + 1)
    x = (torch.arange(count).unsqueeze(1) >= columns).float().flip(0)
    mixed = x[torch.randperm(count, generator=torch.Generator().manual_seed(count))]
    made = secure(lambda x: (x.sort(0)[0], x.sort(0, descending=True)[0]), torch.cat([x, mixed], 1))
    right = torch.cat([x, mixed], 1).sort(0)[0]
    assert torch.equal(made[0], right) and torch.equal(made[1], right.flip(0))


@settings(deadline=None, max_examples=12)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
def test_places_name_the_values(values, data):
    x = torch.tensor(values).float()
    k = data.draw(st.integers(1, len(values)))
    ordered, places, top, at, low, low_at = secure(
        lambda x: (*x.sort(), *x.topk(k), *x.topk(k, largest=False)), x, data.draw(st.sampled_from([TWO, IDLE_THIRD]))
    )
    assert sorted(places.tolist()) == list(range(len(values))) and torch.equal(x[places], ordered)
    assert torch.equal(ordered, x.sort()[0])
    assert torch.equal(top, x.topk(k)[0]) and torch.equal(x[at], top) and len(set(at.tolist())) == k
    assert torch.equal(low, x.topk(k, largest=False)[0]) and torch.equal(x[low_at], low)


def test_extremes_take_the_first_of_equals():
    x = torch.tensor([[1.0, 3.0, 3.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0, 2.0]])
    check_agrees(lambda x: (*x.max(1), *x.min(1), x.argmin(0)), [x], tolerance=0.0)


def test_the_winner_of_a_match_is_among_the_largest_also_where_these_differ_by_less_than_a_unit():
    """Products have 32 fractional bits, of which a comparison sees 16: what it says of close ones is no order."""
    close = torch.zeros(8, 200)
    close[:3] = 16 + torch.tensor([[0.0], [6.0], [12.0]]) * 2.0**-16  # a sixteenth of it: 0.4 units apart
    inputs = (close, torch.full_like(close, 2.0**-4))
    program = securemodel.compile(Product(), inputs, **{**TWO, "inputs": ("a", "b")})
    largest, at = run(program, *inputs)
    assert (largest - 1).abs().max() < 2.0**-14 and at.max() < 3


class Product(nn.Module):
    """The largest of products, and its place."""

    def forward(self, x, y):
        return (x * y).amax(0), (x * y).argmax(0)


@pytest.mark.parametrize("settings_", [TWO, IDLE_THIRD], ids=["two", "three"])
def test_rows_at_positions_nobody_knows(settings_):
    scores, table = torch.randn(6, 11), torch.randn(11, 3)
    at = scores.argmax(1)
    made = secure(lambda x: (F.embedding(x.argmax(1), table), F.one_hot(x.argmax(1), 11)), scores, settings_)
    assert torch.allclose(made[0], table[at], atol=2.0**-12) and torch.equal(made[1], F.one_hot(at, 11))


@pytest.mark.parametrize("owner", ["b", "public"])
def test_a_table_is_read_at_the_positions_of_its_other_owner(owner):
    model, at = nn.Embedding(50, 4), torch.tensor([[0, 49, 7], [1, 1, 2]])
    made = run(securemodel.compile(model, at, weights="a", inputs=owner, outputs="b"), at)[0]
    assert (made - model(at)).abs().max() < 2.0**-12


def test_owner_and_table_of_one_party_need_no_secret():
    program = securemodel.compile(nn.Embedding(50, 4), torch.zeros(2, dtype=torch.long), weights="a", inputs="a",
                                  outputs="b", parties=("a", "b"))  # fmt: skip
    assert not [n for n in program.graph.nodes if n.op in ("unit", "bilinear")]


def test_the_plan_says_what_a_secret_position_costs():
    inputs = (torch.zeros(2, 300),)
    plan = securemodel.compile(Weighted(), inputs, weights="a", inputs="b", outputs="b").plan()
    assert plan.preprocessing_bytes > 2 * 512 * 8, "two unit vectors of 512"


class Weighted(nn.Module):
    """The row of a table that belongs to the largest score."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(300, 4))

    def forward(self, x):
        return F.embedding((x * self.table[:, 0]).argmax(1), self.table)


@pytest.mark.parametrize("settings_", [TWO, IDLE_THIRD], ids=["two", "three"])
def test_a_position_that_one_party_knows_may_count_from_the_end(settings_):
    table, at = torch.arange(44.0).reshape(11, 4), torch.tensor([-1, -11, 0, 10, -4])
    owners = {**settings_, "inputs": ("b", "a")}
    program = securemodel.compile(Fn(lambda at, table: (table[at], table.T[:, at])), (at, table), **owners)
    made = run(program, at, table)
    assert torch.equal(made[0], table[at]) and torch.equal(made[1], table.T[:, at])
