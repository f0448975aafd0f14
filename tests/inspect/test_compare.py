"""Float, fixed point and secure side by side: drift within bounds, and the first layer that leaves its range."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import securemodel
from protocols.gates import GATES
from securemodel.compiler.builder import Builder
from securemodel.compiler.ir import COMPARED, MEASURED
from securemodel.compiler.lower import LOWERINGS
from securemodel.errors import InputError
from securemodel.inspect.differences import Comparison, Limit, Row

aten = torch.ops.aten
TWO = {"weights": "a", "inputs": "b", "outputs": "b"}
SETTINGS = {
    "two": TWO,
    "three": {**TWO, "parties": ("idle", "b", "a")},
    "narrow": {**TWO, "width": 32},
}


class Fn(nn.Module):
    """A function of an input plus a zero of the other party."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.zero = nn.Parameter(torch.zeros(()))

    def forward(self, *inputs: torch.Tensor):
        return self.function(inputs[0] + self.zero, *inputs[1:])


class Scaled(nn.Module):
    """The input times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Joined(nn.Module):
    """A network on a sum of two parties' values."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.net(x + y)


def compared(model: nn.Module, *inputs: torch.Tensor, **changes) -> Comparison:
    program = securemodel.compile(model.eval(), inputs, **{**TWO, **changes})
    return securemodel.compare(program, *inputs)


def row(comparison: Comparison, layer: str) -> Row:
    (found,) = [row for row in comparison.rows if layer in row.layer]
    return found


def classifier() -> nn.Module:
    torch.manual_seed(3)
    middle = [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), *middle, nn.Softmax(-1)).eval()


# ---- models that are fine
@pytest.mark.parametrize("name", SETTINGS)
def test_a_sound_model_drifts_little_in_every_layer(name):
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    found = compared(classifier(), x, **SETTINGS[name])
    assert found.first_out_of_range is None and found.first_beyond(2.0**-8) is None
    layers = [row.layer for row in found.rows]
    wanted = ["0 Linear", "1 LayerNorm", "2 GELU", "3 Linear", "4 BatchNorm1d", "5 ReLU", "6 Linear", "7 Softmax"]
    assert layers == ["inputs", *wanted, "outputs"]
    drifts = {row.layer: row.fixed_drift for row in found.rows}
    assert drifts["inputs"] is None
    assert drifts["3 Linear"] is None, "its values are those of the norm that is folded into it"
    assert all(drifts[layer] is not None for layer in [*wanted[:3], *wanted[4:], "outputs"])
    assert max(row.fixed_drift or 0 for row in found.rows) > 0
    assert all(not row.secure_drift for row in found.rows), "with exact rounding the parties hold what fixed point says"
    assert row(found, "7 Softmax").largest == pytest.approx(classifier()(x).max().item(), abs=1e-5)


def test_values_that_only_comparisons_read_are_compared_too():
    def signs(x: torch.Tensor) -> list[torch.Tensor]:
        square, part = x * x, x * 0.3
        return [square < 0, part < 0, part - square < 0]

    x = torch.randn(6, generator=torch.Generator().manual_seed(2))
    program = securemodel.compile(Fn(signs).eval(), x, **{**TWO, "width": 32})
    narrow = {node.id for node in program.graph.nodes if node.op == "mask" and node.attrs["width"] < 64}
    assert any(node.op == "linear" and node.marks and narrow & set(node.args) for node in program.graph.nodes)
    assert securemodel.compare(program, x).first_beyond(2.0**-13) is None


def test_public_weights():
    x, y = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(2))
    model = Joined(classifier())
    found = compared(model, x, y, weights="public", inputs=("a", "b"), outputs="all")
    assert found.first_beyond(2.0**-8) is None and row(found, "net.1 LayerNorm").fixed_drift > 0


def test_elements_that_only_move_stay_in_their_layer():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Unflatten(1, (2, 3)), nn.Linear(3, 2))
    layers = [row.layer for row in compared(model, torch.ones(2, 4)).rows]
    assert layers == ["inputs", "0 Linear", "1 ReLU", "3 Linear", "outputs"]


def test_several_outputs_of_several_kinds():
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(4))
    found = compared(Fn(lambda x: (x.exp(), x.argmax(1), x > 0.5)), x, outputs=("a", "b", "all"))
    assert row(found, "outputs").fixed_drift <= 2.0**-10 * x.exp().max()
    assert row(found, "outputs").largest == pytest.approx(max(4.0, x.exp().max().item()), rel=1e-6)


def test_recurrent_layers_and_masks_of_attention():
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.attend = nn.LSTM(3, 4, batch_first=True), nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x, _ = self.lstm(x)
            mask = torch.full((3, 3), -math.inf).triu(1)
            return self.attend(x, x, x, attn_mask=mask, need_weights=False)[0]

    torch.manual_seed(5)
    found = compared(Tagger(), torch.randn(2, 3, 3))
    assert found.first_beyond(2.0**-9) is None and found.first_out_of_range is None
    assert row(found, "lstm LSTM").fixed_drift > 0


def test_infinity_is_nothing_to_compare_with():
    mask = torch.tensor([True, False, False])
    found = compared(Fn(lambda x: x.masked_fill(mask, -math.inf)), torch.tensor([1.0, 2.0, 3.0]))
    assert found.first_beyond(2.0**-15) is None and row(found, "outputs").largest == 3.0


def test_all_rows_count_however_many_there_are():
    program = securemodel.compile(nn.Sequential(nn.Linear(2, 2)), torch.zeros(2, 2), **TWO)
    x = torch.zeros(5, 2)
    x[2] = 1000.0
    assert row(securemodel.compare(program, x), "inputs").limit.largest == 1000.0


# ---- models that are not
def test_a_sum_that_leaves_the_range_of_truncation_is_named():
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Scaled(2.0**16), Scaled(2.0**16), nn.ReLU(), nn.Linear(4, 2))
    found = compared(model, torch.ones(1, 4))
    first = found.first_out_of_range
    assert first.layer == "3 Scaled" and first.limit.what in ("truncation", "ring")
    exact = model[:4](torch.ones(1, 4))
    assert first.limit.largest == pytest.approx(exact.max().item(), rel=1e-3), "magnitudes do not wrap"
    assert "first out of range: 3 Scaled" in str(found)
    assert not any(row.outside for row in found.rows[: found.rows.index(first)])


def test_a_comparison_beyond_its_width_is_named():
    model = nn.Sequential(Scaled(1.0), Scaled(64.0), nn.ReLU())
    x = torch.tensor([[600.0, -1.0]])
    assert compared(model, x).first_out_of_range is None
    first = compared(model, x, width=32).first_out_of_range
    assert (first.layer, first.limit.what, first.limit.high) == ("2 ReLU", "comparison", 2.0**15)
    assert first.limit.largest == 600 * 64


OUTSIDE = {
    "reciprocal": (lambda x: torch.reciprocal(x + x), [1.0, 6e8], [1.0, -16000.0, 5e8, 0.001]),
    "reciprocal of little": (torch.reciprocal, [1.0, 2.0**-17], [1.0, 2.0**-16]),
    "reciprocal, a division": (lambda x: 1.0 / (x - 3), [1.0, 3.0], [1.0]),
    "rsqrt": (torch.rsqrt, [1.0, -1.0], [1.0, 2.0**-10]),
    "sqrt": (torch.sqrt, [0.0, -(2.0**-12)], [0.0, 2.0**-16]),
    "log": (torch.log, [1.0, 0.0], [1.0, 100.0]),
    "log of 1 + x": (torch.log1p, [1.0, -1.0], [1.0, 100.0]),
    "exp": (torch.exp, [1.0, 21.0], [1.0, 20.5, -30.0]),
    "sin and cos": (torch.sin, [1.0, 20000.0], [-16000.0, 0.0]),
    "pow": (lambda x: x**0.3, [1.0, -1.0], [0.0, 1.0, 2.0**-10]),
    "truncation in a norm": (lambda x: nn.functional.layer_norm(x, (2,)), [25000.0, -25000.0], [3000.0, 5.0]),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_arguments_outside_of_a_function_s_domain_are_named(name):
    function, wrong, right = OUTSIDE[name]
    model = nn.Sequential(nn.Identity(), Fn(function), Scaled(2.0))
    assert compared(model, torch.tensor(right)).first_out_of_range is None
    found = compared(model, torch.tensor(wrong))
    first = found.first_out_of_range
    assert first.layer == "1 Fn" or "function" in first.layer or "test_compare.py" in first.layer
    assert name.startswith(first.limit.what)


def test_inputs_that_cannot_be_encoded_are_refused():
    with pytest.raises(InputError, match="out of range"):
        compared(nn.Sequential(nn.Linear(2, 2)), torch.full((1, 2), 2.0**31))


# ---- broken code is found where it is
@pytest.mark.parametrize("operator, layer", [("relu", "5 ReLU"), ("gelu", "2 GELU"), ("layer_norm", "1 LayerNorm")])
def test_drift_names_the_layer_of_a_broken_lowering(operator, layer, monkeypatch):
    target = getattr(aten, operator).default
    real = LOWERINGS[target]
    monkeypatch.setitem(LOWERINGS, target, lambda g, *args, **rest: g.offset(real(g, *args, **rest), 0.125))
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    found = compared(classifier(), x)
    first = found.first_beyond(2.0**-8)
    assert first.layer == layer and 0.12 < first.fixed_drift < 0.13
    assert first.secure_drift < 2.0**-8, "the parties compute what the program says"


def test_drift_of_the_secure_run_names_the_layer_of_a_broken_gate(monkeypatch):
    real = GATES["select"].__class__.evaluate

    def wrong(gate, role, attrs, operands, dealt):
        made = real(gate, role, attrs, operands, dealt)
        return made + (1 << 14) if role.first and role.parties > 1 else made

    model, x = nn.Sequential(nn.Identity(), Fn(torch.relu), Scaled(1.0)), torch.tensor([1.0, -2.0])
    assert compared(model, x).first_beyond(0.1) is None
    monkeypatch.setattr(GATES["select"].__class__, "evaluate", wrong)
    first = compared(model, x).first_beyond(0.1)
    assert first.secure_drift == pytest.approx(0.25, abs=1e-3) and first.fixed_drift < 1e-3
    assert "relu" in first.layer or first.layer == "1 Fn" or "function" in first.layer


# ---- what it refuses, and how it prints
def test_programs_of_a_file_have_no_model(tmp_path):
    program = securemodel.compile(nn.Linear(2, 2), torch.zeros(1, 2), **TWO)
    program.save(tmp_path / "program.txt")
    with pytest.raises(InputError, match="read from a file"):
        securemodel.compare(securemodel.Program.load(tmp_path / "program.txt"), torch.zeros(1, 2))


@pytest.mark.parametrize("model", [nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.ReLU())], ids=["linear", "deep"])
def test_programs_of_another_protocol_are_refused(model):
    with pytest.raises(InputError, match="protocol 'paillier' cannot be compared"):
        compared(model, torch.zeros(2, 3), protocol="paillier", insecure_key_bits=512)


def test_weights_can_be_given_later():
    with torch.device("meta"):
        empty = nn.Linear(2, 2)
    program = securemodel.compile(empty, torch.zeros(1, 2), **TWO)
    with pytest.raises(InputError, match="meta device"):
        securemodel.compare(program, torch.ones(1, 2))
    model = nn.Linear(2, 2)
    found = securemodel.compare(program, torch.ones(1, 2), model=model)
    assert row(found, "outputs").largest == pytest.approx(model(torch.ones(1, 2)).abs().max().item(), abs=1e-6)


def test_marks_are_no_part_of_a_program(monkeypatch):
    texts = []
    for _ in range(2):
        torch.manual_seed(0)
        program = securemodel.compile(classifier(), torch.zeros(2, 5), **TWO)
        names = {mark.name for node in program.graph.nodes for mark in node.marks}
        texts.append(
            (program.text(), bool(names - {COMPARED, MEASURED}))
        )  # the numbers of values are none of the builder's
        monkeypatch.setattr(Builder, "_mark", lambda *args: None)
    (with_marks, marked), (without, bare) = texts
    assert with_marks == without and marked and not bare


def test_the_table_says_what_it_is_and_fits():
    text = str(compared(classifier(), torch.ones(2, 5)))
    assert "test data of one owner" in text.splitlines()[0]
    assert "no value leaves its range" in text
    assert max(map(len, text.splitlines())) <= 110
    assert "…" not in text and "..." not in text
    assert all(name in text for name in ("1 LayerNorm", "2 GELU", "7 Softmax", "outputs"))
    outside = Row("[bold]long[/]" + "x" * 90, 2.0, 0.5, 0.0, Limit("log", 2.0**-10, 2.0**14, -3.0, 5.0))
    text = str(Comparison((outside,)))
    assert "OUTSIDE" in text and "[bold]long" in text and "[2^-10, 2^14)" in text
    assert max(map(len, text.splitlines()[:-2])) <= 110


@settings(deadline=None)
@given(st.floats(-100, 100), st.floats(-100, 100), st.floats(-50, 50), st.floats(0, 100))
def test_headroom_is_negative_outside_only(a, b, low, size):
    limit = Limit("x", low, low + size, min(a, b), max(a, b))
    if limit.headroom < 0:
        assert limit.outside
    if limit.low < limit.smallest and limit.largest < limit.high:
        assert limit.headroom >= 0 and not limit.outside
    assert limit.nearest in (a, b)


def test_headroom_counts_bits():
    assert Limit("x", -16.0, 16.0, -1.0, 2.0).headroom == 3.0
    assert Limit("x", -16.0, 16.0, -4.0, 2.0).nearest == -4.0
    assert Limit("x", 1.0, 16.0, 2.0, 2.0).headroom == 1.0
    assert Limit("x", 1.0, 16.0, 0.25, 2.0).headroom == -2.0
    assert Limit("x", -math.inf, 8.0, -5.0, -1.0).headroom == math.inf
    assert Limit("x", 1.0, 8.0, 0.0, 2.0).headroom == -math.inf
