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
from protocols.kernels import twins
from securemodel.compiler.approximations import PARTS, SMOOTH, center_of, fitted, most_of_pieces, piece_reach, pieces
from securemodel.compiler.ir import Graph
from securemodel.inspect.fixed import fixed_point

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


@pytest.mark.parametrize("frac_bits", [8, 12, 16])
@pytest.mark.parametrize("name", SMOOTH)
def test_narrow_coefficients_are_right_to_half_a_unit(name, frac_bits):
    fit = SMOOTH[name]
    made, rows = pieces(fit, frac_bits, True), torch.tensor(fitted(fit, True), dtype=torch.float64).unsqueeze(-1)
    t = torch.linspace(-(2.0**-fit.step_bits), 2.0**-fit.step_bits, 9).double().view(1, -1)
    narrow = [
        torch.tensor(row).double().view(-1, 1) * 2.0 ** (r * frac_bits - made.frac) for r, row in enumerate(made.rows)
    ]
    value = lambda rows: rows[0] + rows[1] * t + rows[2] * t**2
    assert float((value(narrow) - value(rows)).abs().max()) <= 2.0 ** -(frac_bits + 1) * 1.01
    most = most_of_pieces(made, piece_reach(frac_bits, fit.step_bits, True))
    rounded = most + 2 ** (made.frac - frac_bits - 1)  # what the truncation of an exact program adds half a unit to
    assert rounded < 2**46 if made.frac < 3 * frac_bits else rounded < 2**62


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("frac_bits", [8, 12, 16])
@pytest.mark.parametrize("name", SMOOTH)
def test_with_fast_rounding_coefficients_in_few_bytes_cost_less_than_a_unit(name, frac_bits, centered):
    """Around every public number, for every mask, at the ends of their ranges: beside the polynomials of the fit, and below
    the bound that bytes are chosen by."""
    fit = SMOOTH[name]
    center = center_of(fit, frac_bits) if centered else 0.0
    made, unit, half = pieces(fit, frac_bits, False, 1.0, -center), 2.0**-frac_bits, 1 << frac_bits - fit.step_bits
    exact = torch.tensor(fitted(fit, False), dtype=torch.float64)
    table, last = torch.tensor(made.rows), round((fit.high - fit.low) / unit)
    most = most_of_pieces(made, piece_reach(frac_bits, fit.step_bits, False))
    worst = largest = 0.0
    for lam in (0, 1, half - 1, half, 2 * half - 1):
        v = torch.cat([torch.arange(0, last, max(1, last // 4000)), torch.tensor([last])])
        m = v + lam
        j, part, inner = m // (2 * half), m % (2 * half) // (2 * half // PARTS), 2 * half // PARTS
        y = twins.weighted_around(m, torch.eye(1, 128, dtype=torch.int64).expand(len(m), 128), table,
                                  (2 * half).bit_length() - 1, made.cuts)  # fmt: skip
        g = half - lam
        square = (g * g + (1 << made.drop >> 1)) >> made.drop
        value = (y[0] << made.shifts[0]) + (y[1] * g << made.shifts[1]) + (y[2] * square << made.shifts[2])
        t = (m % inner - inner // 2 + g) * unit
        c0, c1, c2 = exact[:, (j % 128) * PARTS + part]
        worst = max(worst, float((value.double() * 2.0**-made.frac + center - (c0 + c1 * t + c2 * t**2)).abs().max()))
        largest = max(largest, int(value.abs().max()))
    assert worst <= unit and largest <= most < 2**62


@pytest.mark.parametrize("parties", [2, 3])
def test_splines_in_six_bytes_are_those_of_fixed_point(parties):
    """What the parties get is what fixed point gives, for every piece, at its ends, and outside of the domain."""
    roles = {"weights": "a", "inputs": ("a", "b"), "outputs": "b", "parties": ("a", "b", "c")[:parties]}
    x = torch.cat([torch.arange(-140, 141) / 16, torch.tensor(EDGES), torch.rand(20) * 16 - 8]).double()
    y = torch.cat([torch.tensor([UNIT, -UNIT]).repeat(len(x))[: len(x)]]).double()
    program = securemodel.compile(Fn(lambda x, y: nn.functional.gelu(x + y)), (x, y), **roles)
    assert {n.attrs["width"] for n in program.graph.nodes if n.op == "mask"} == {8, 48, 64}
    with securemodel.local(program) as session:
        made = session.run(x, y)
    assert torch.equal(made, fixed_point(program, x, y)[0])
    torch.testing.assert_close(made.double(), nn.functional.gelu(x + y), atol=2.0**-14, rtol=1e-6)


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

    assert (bits(False), bits(True)) == (46, 50)
