"""What a model's values are shown to lie in before anything runs: bounds hold on data, and what is listed is by layer."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import securemodel
from securemodel.compiler.capture import capture, model_state
from securemodel.errors import InputError, RangeWarning
from securemodel.inspect.bounds import of_operator
from securemodel.inspect.intervals import UNBOUNDED, Interval, as_interval
from securemodel.inspect.magnitudes import _given, _Walk

sys.path.append(str(Path(__file__).resolve().parents[1] / "compiler"))
from table import ROWS

TWO = {"weights": "bank", "inputs": "hospital", "outputs": "hospital"}


class Fn(nn.Module):
    """A function of the inputs, which a weight of 1 makes secrets."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.one = function, nn.Parameter(torch.ones(1))

    def forward(self, *inputs):
        return self.function(*(x * self.one if x.is_floating_point() else x for x in inputs))


def leaves(made):
    return [t for part in made for t in leaves(part)] if isinstance(made, (tuple, list)) else [made]


def walked(model: nn.Module, inputs: tuple, ranges) -> tuple[list, list[str]]:
    """The intervals of a model's outputs, and what had no rule."""
    captured = capture(model, inputs)
    walk = _Walk(captured, model_state(model), _given(captured, inputs, ranges))
    for node in captured.graph.nodes:
        if node.op == "call_function":
            walk.step(node)
    return [walk.env[node] for node in captured.graph.output_node().args[0]], list(walk.without)


SOME = [at for at, row in enumerate(ROWS) if sum(row.operators == earlier.operators for earlier in ROWS[:at]) < 2]
"""Two rows of each operator."""


@pytest.mark.parametrize("at", SOME)
def test_bounds_hold_for_every_operator_of_the_table(at):
    row, generator = ROWS[at], torch.Generator().manual_seed(at)
    model = row.module if isinstance(row.module, nn.Module) else Fn(row.module)
    drawn = lambda x: torch.rand(x.shape, generator=generator)
    inputs = tuple(torch.randn(shape, generator=generator) for shape in row.shapes)
    ends = [(x - drawn(x), x + drawn(x)) for x in inputs]
    bounds, without = walked(model, inputs, ends)
    points = [[low, high][i] for i in (0, 1) for low, high in ends]
    for inner in (inputs, points[: len(inputs)], points[len(inputs) :]):
        with torch.no_grad():
            outputs = leaves(model(*inner))
        for bound, value in zip(bounds, outputs, strict=True):
            if bound is None:
                assert without, "a size that depends on values"
                continue
            value, near = value.double(), 1e-5 * (1 + value.double().abs())
            inside = (value >= bound.low - near) & (value <= bound.high + near)
            assert bool((inside | value.isnan()).all())
    points, without = walked(model, inputs, [(x, x) for x in inputs])
    with torch.no_grad():
        outputs = leaves(model(*inputs))
    for bound, value in zip(points, outputs, strict=True):
        if not without and bound is not None and not bool(value.isnan().any()):
            assert bound.largest < UNBOUNDED, f"{row.operators} has a rule that gives no bound"


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_products_and_sums_of_intervals(data):
    number = st.integers(-(2**47), 2**47) | st.sampled_from([0, 1, -1, 2**16 - 1, 2**31])
    units = lambda whole: torch.tensor([whole * 2.0**-16], dtype=torch.float64)
    pair = lambda: sorted(data.draw(st.tuples(number, number)))
    point = lambda ends: units(data.draw(st.integers(*ends)))
    (a, b), (c, d) = pair(), pair()
    x, y = Interval(units(a), units(b)), Interval(units(c), units(d))
    p, q = point((a, b)), point((c, d))
    aten = torch.ops.aten
    for target in (aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.rsub.Tensor, aten.maximum.default):
        made, value = of_operator(target, [x, y], {}, p), target(p, q)
        assert bool((made.low <= value).all() and (value <= made.high).all())
    made = of_operator(aten.dot.default, [x, y], {}, torch.zeros(()))
    near = 1e-12 * float((p @ q).abs())  # the middles and radii are rounded, as p @ q is
    assert bool((made.low <= p @ q + near).all() and (p @ q <= made.high + near).all())
    if not c <= 0 <= d:
        made, value = of_operator(aten.div.Tensor, [x, y], {}, p), p / q
        assert bool((made.low <= value).all() and (value <= made.high).all())


def test_bounds_are_as_near_as_they_can_be():
    """Of one linear layer they are reached, and a square is not the product of two different numbers."""
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -2.0, 4.0]])
    (bound,), _ = walked(layer, (torch.zeros(1, 3),), (-1, 1))
    assert float(bound.high) == pytest.approx(7.0, rel=1e-9) and float(bound.low) == pytest.approx(-7.0, rel=1e-9)
    (bound,), _ = walked(Fn(lambda x: x * x), (torch.zeros(1),), (-3, 2))
    assert (float(bound.low), float(bound.high)) == pytest.approx((0.0, 9.0))
    (bound,), _ = walked(nn.LayerNorm(16), (torch.zeros(1, 16),), (-1e9, 1e9))
    assert float(bound.high.max()) == pytest.approx(15**0.5)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(8, 8, bias=False) for _ in range(3))
        for layer, size in ((self.first, 1.0), (self.second, 2.0**18), (self.third, 2.0**9)):
            nn.init.constant_(layer.weight, size)

    def forward(self, x):
        return self.third(torch.relu(self.second(self.first(x))))


def test_the_first_layer_that_may_leave_the_ring_is_named():
    x = torch.zeros(1, 8)
    report = securemodel.check(Deep(), x, ranges=(-1, 1))
    assert report, "the operators are all there"
    (suspect,) = report.magnitudes.suspects
    assert suspect.source.startswith("third Linear") and suspect.too_large
    assert "third Linear" in str(report) and "securemodel.compare" in str(report)
    narrow = securemodel.check(Deep(), x, ranges=(-(2.0**-8), 2.0**-8))
    assert not narrow.magnitudes and "not shown" not in str(narrow)


def test_values_that_keep_few_digits_are_named():
    layer = nn.Linear(8, 8, bias=False)
    nn.init.constant_(layer.weight, 2.0**-12)
    model = nn.Sequential(layer, nn.ReLU())
    (suspect,) = securemodel.check(model, torch.zeros(1, 8)).magnitudes.suspects
    assert not suspect.too_large and suspect.source.startswith("0 Linear")
    assert not securemodel.check(model, torch.zeros(1, 8), ranges=(-1000, 1000)).magnitudes


def test_a_divisor_that_may_be_zero():
    model = Fn(lambda x, y: x / y)
    inputs = torch.zeros(3), torch.zeros(3)
    (suspect,) = securemodel.check(model, inputs).magnitudes.suspects
    assert "a divisor may be 0" in str(suspect)
    assert not securemodel.check(model, inputs, ranges=[None, (1, 2)]).magnitudes


def test_without_ranges_inputs_go_as_far_as_examples():
    model = Fn(lambda x, y: x * y)
    report = securemodel.check(model, (torch.full((2,), 3.0), torch.zeros(2)))
    assert not report.magnitudes and report.magnitudes.assumed == 3.0
    large = securemodel.check(model, (torch.full((2,), 2.0**20), torch.full((2,), 2.0**20)))
    assert "for inputs within ±1.05e+06; give others as ranges=" in str(large)


def test_whole_numbers_and_secret_rows_of_a_table():
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2))
    model[0].weight.data[3] = 2.0**28
    nn.init.constant_(model[1].weight, 4.0)
    report = securemodel.check(model, torch.tensor([[0, 1]]))
    assert [suspect.source.split()[0] for suspect in report.magnitudes.suspects] == ["1"]


def test_compile_warns_where_ranges_are_given_and_makes_the_same_program():
    x = torch.zeros(1, 8)
    with pytest.warns(RangeWarning, match="third Linear"):
        warned = securemodel.compile(Deep(), x, ranges=(-1, 1), **TWO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet = securemodel.compile(Deep(), x, ranges=(-(2.0**-8), 2.0**-8), **TWO)
        plain = securemodel.compile(Deep(), x, **TWO)
    assert warned.digest == quiet.digest == plain.digest
    with pytest.warns(RangeWarning):
        securemodel.compile(Deep(), x, ranges=(-1, 1), width=32, reveal="class", **TWO)


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ({"z": (0, 1)}, "an input is called 'z'"),
        ([(0, 1)], "there are 1 of them"),
        ((1, 0), "least number is above its largest"),
        ([(0, 1), (0, "a")], "that of input 1"),
        ([(torch.zeros(5), 1), None], "that of input 0"),
        ((0, float("nan")), "least number is above its largest"),
    ],
)
def test_ranges_that_fit_no_input(ranges, words):
    model, inputs = Fn(lambda x, y: x * y), (torch.zeros(3), torch.zeros(3))
    with pytest.raises(InputError, match=re.escape(words)):
        securemodel.check(model, inputs, ranges=ranges)
    with pytest.raises(InputError, match=re.escape(words)):
        securemodel.compile(model, inputs, weights="bank", inputs=("bank", "hospital"), outputs="all", ranges=ranges)


def test_ranges_by_column_and_by_name():
    class Named(Fn):
        def forward(self, x, y):
            return super().forward(x, y)

    model, inputs = Named(lambda x, y: x * y), {"x": torch.zeros(2, 3), "y": torch.zeros(2, 3)}
    most = torch.tensor([1.0, 2.0**20, 1.0])
    assert not securemodel.check(model, inputs, ranges={"x": (-most, most)}).magnitudes
    assert securemodel.check(model, inputs, ranges={"x": (-most, most), "y": (-most, most)}).magnitudes
    assert not securemodel.check(model, tuple(inputs.values()), ranges=[(-most, most), None]).magnitudes


def test_a_model_without_weights_is_not_judged():
    with torch.device("meta"):
        model = nn.Linear(8, 8)
    assert securemodel.check(model, torch.zeros(1, 8)).magnitudes is None


def test_an_operator_without_a_rule_is_unbounded_and_named():
    report = securemodel.check(Fn(torch.pdist), torch.zeros(3, 2))
    assert report.magnitudes.without == ("aten.pdist.default",) and not report.magnitudes.suspects
    assert "nothing is known of what aten.pdist.default gives" in str(report)


def test_masks_are_no_alarm():
    def masked(x, m):
        return torch.softmax(x.masked_fill(m, -torch.inf), -1) @ x.T

    report = securemodel.check(Fn(masked), (torch.zeros(3, 3), torch.zeros(3, 3, dtype=torch.bool)))
    assert not report.magnitudes


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.relu() * x + 2.0**40,
        lambda x: 1e9 - x.relu().T,
        lambda x: x.relu() + torch.tensor([0.0, -1e12, 0.0]),
        lambda x: (x > 0).long() * 2**40,
    ],
)
def test_a_huge_number_that_is_no_mask_is_named(function):
    """It stands for infinity: in a result, that is another number than in the clear."""
    (found,) = securemodel.check(Fn(function), torch.ones(3, 3)).magnitudes.suspects
    assert found.high >= 1e9 and found.too_large and __file__.rpartition("/")[2] in found.source


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.softmax(x.relu() + (1 - torch.eye(3)) * -1e9, -1),
        lambda x: torch.softmax(x + torch.finfo(torch.float32).min * (x.relu() > 0.5), -1) + 1,
        lambda x: x.relu().masked_fill(torch.eye(3).bool(), -torch.inf),
        lambda x: x.relu().clamp(max=1e12) + 2.0**20,
    ],
)
def test_huge_numbers_that_are_masks_or_bounds_are_no_alarm(function):
    assert not securemodel.check(Fn(function), torch.ones(3, 3)).magnitudes.suspects


def test_intervals_of_known_things():
    assert as_interval(2).largest == 2.0 and as_interval(torch.tensor(-torch.inf)).largest == 2.0**24
    assert isinstance(as_interval(as_interval(2)), Interval)
