"""Comparisons see as many bits as their operand can have, and are right up to its last number."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Fn
from torch import nn

import securemodel
from securemodel.compiler.ir import Graph

UNIT, LIMIT, SIZE = 2.0**-16, 2.0**30, 16
EDGES = [0.0, UNIT, -UNIT, 1.0, -1.0, 15.75, 2.0**16, LIMIT, -LIMIT, LIMIT - UNIT, UNIT - LIMIT]
FUNCTIONS = {
    "relu": (lambda x, y: torch.relu(x + y), {48}),
    "sign": (lambda x, y: x + y < 0, {48}),
    "maximum": (lambda x, y: torch.maximum(x + y, y - x), {49}),
    "many": (lambda x, y: (x + y).sum() > 0, {52}),
    "small": (lambda x, y: torch.sigmoid(x + y) > 0.75, {48, 18}),
    "counts": (lambda x, y: (x + y > 0).sum() > 8, {48, 5}),
}
"""With the bits that their comparisons see."""


@cache
def program_of(name: str, rounding: str, parties: int) -> securemodel.Program:
    names = ("a", "b", "c")[:parties]
    roles = {"weights": "a", "inputs": ("a", "b"), "outputs": "b", "parties": names}
    example = (torch.zeros(SIZE),) * 2
    return securemodel.compile(Fn(FUNCTIONS[name][0]), example, rounding=rounding, **roles)


def seen_bits(graph: Graph) -> set[int]:
    return {bit for node in graph.nodes if node.op == "top_bit" for bit in node.attrs["bit"]}


values = st.lists(
    st.sampled_from(EDGES) | st.integers(-(2**46), 2**46).map(lambda n: n * UNIT), min_size=SIZE, max_size=SIZE
)


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("rounding", ["exact", "fast"])
@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=4, deadline=None)
@given(values, values)
def test_comparisons_are_right_to_the_last_number(name, rounding, parties, x, y):
    program, (function, bits) = program_of(name, rounding, parties), FUNCTIONS[name]
    x, y = torch.tensor(x).double(), torch.tensor(y).double()
    with securemodel.local(program) as session:
        made = session.run(x, y)
    assert torch.equal(made.double(), function(x, y).double().float().double())
    assert seen_bits(program.graph) == bits


def test_results_of_truncations_are_below_what_can_be_truncated():
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    roles = {"weights": "a", "inputs": "b", "outputs": "b"}
    fast = securemodel.compile(model, torch.zeros(2, 4), rounding="fast", **roles)
    assert seen_bits(fast.graph) == {63}, "a product is compared as it is, from its last digits up"
    product = Fn(lambda x, y: torch.maximum(torch.round(x * y), y))
    made = securemodel.compile(product, (torch.zeros(4), torch.zeros(4)), weights="a", inputs=("a", "b"), outputs="b")
    assert 18 < max(seen_bits(made.graph)) < 50


def test_what_a_client_gives_may_be_any_number():
    for clamp in (None, (0, 1)):
        family = securemodel.compile_service(
            Fn(torch.relu), torch.zeros(1, 4), weights="a", parties=("a", "b"), sizes=(2,), clamp=clamp
        )
        assert seen_bits(family.programs[2].graph) == {63}


def test_gradients_that_are_clipped_may_be_any_number():
    """Differential privacy holds for every element of the ring, also where a value left the range of a truncation."""
    from securemodel.compiler.builder import Builder
    from securemodel.compiler.ir import Header
    from securemodel.compiler.passes.reach import fit_comparisons
    from securemodel.compiler.passes.scales import place_truncations

    def bits(bounded: bool) -> int:
        g = Builder()
        x = g.placeholder("input:0", (4,), "a")
        square = g.mul(g.add(x, g.placeholder("input:1", (4,), "b")), x)
        g.bit_to_ring(g.is_negative(g.rescale(square, bounded=bounded)))
        header = Header(("a", "b"), 16, 64, "a", ("a", "b"), ((4,), (4,)), ())
        graph = place_truncations(g.graph, [], [], {}, header)
        fit_comparisons(graph, header, g)
        return next(node.attrs["low_bits"] for node in graph.nodes if node.op == "is_negative")

    assert (bits(False), bits(True)) == (47, 50)
