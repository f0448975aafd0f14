"""What a training step has beside inference, against autograd: in fixed point for all rows, and in the engine."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from gradients import ROWS, UNIT, Row, captured, seeds, with_gradients
from running import Fn, difference, run
from test_operators import lowered  # noqa: F401  (a fixture)

import securemodel
from securemodel.inspect.fixed import fixed_point

TWO = {"weights": "public", "outputs": "b", "parties": ("a", "b")}
THREE = {"weights": "public", "outputs": "all", "parties": ("idle", "b", "a")}


class Veiled(torch.nn.Module):
    """A module on sums of what two parties give, which nobody knows; whole numbers are one party's own."""

    def __init__(self, module: torch.nn.Module, secret: list[bool]) -> None:
        super().__init__()
        self.module, self.secret = module, secret

    def forward(self, *inputs: torch.Tensor):
        given = iter(inputs)
        return self.module(*(next(given) + next(given) if secret else next(given) for secret in self.secret))


def veiled(entry: Row, veiled_labels: bool = False):
    """(module on what two parties give, those inputs, their owners, what autograd gives)."""
    dy = seeds(entry.function, entry.inputs)
    given = (*dy, *entry.inputs)
    secret = [x.is_floating_point() or veiled_labels for x in given]
    pairs = [(x, torch.zeros_like(x)) if veil else (x,) for x, veil in zip(given, secret, strict=True)]
    owners = [name for veil in secret for name in (("b", "a") if veil else ("b",))]
    doubled = [x.double() if x.is_floating_point() else x for x in given]
    expected = with_gradients(entry.function, doubled[: len(dy)], doubled[len(dy) :])
    return (
        Veiled(captured(entry.function, dy, entry.inputs), secret),
        [x for pair in pairs for x in pair],
        owners,
        expected,
    )


def compiled(entry: Row, veiled_labels: bool = False, **settings):
    """(program, its inputs, what autograd gives)."""
    model, inputs, owners, expected = veiled(entry, veiled_labels)
    program = securemodel.compile(model, tuple(inputs), inputs=owners, **{**TWO, **settings})
    return program, inputs, expected


def off(made: list[torch.Tensor], expected: list[torch.Tensor]) -> list[float]:
    """The largest error of each result in units of 2^-16, or of 2^-16 times the largest element."""
    return [difference(m, e) / UNIT / max(1.0, e.abs().max().item()) for m, e in zip(made, expected, strict=True)]


@pytest.mark.parametrize("entry", ROWS, ids=[entry.label for entry in ROWS])
@pytest.mark.parametrize("rounding", ["exact", pytest.param("fast", marks=pytest.mark.slow)])
def test_gradients_agree_with_autograd(entry, rounding, lowered):  # noqa: F811
    program, inputs, expected = compiled(entry, rounding=rounding)
    errors = off(fixed_point(program, *inputs), expected)
    more = 0 if rounding == "exact" else 2
    assert max(errors) <= entry.units * (1 + more), f"off by {errors} units"
    missing = set(entry.operators) - lowered
    assert not missing, f"these operators were not lowered, so the row tests something else: {missing}"


KINDS = (
    "convolution_backward 2d stride", "convolution_backward 2d transposed dilation", "threshold_backward of",
    "hardtanh_backward", "convolution_backward 3d groups=2, stride", "convolution_backward 3d transposed groups",
    "max_pool3d_with_indices_backward kernel_size=2 ", "softshrink_backward 0.25", "_prelu_kernel_backward", "elu_backward", "gelu_backward", "max_pool2d_with_indices_backward of",
    "avg_pool2d_backward kernel_size=3", "_log_softmax_backward_data weight", "nll_loss2d_backward weights",
    "binary_cross_entropy_with_logits pos_weight", "native_layer_norm_backward", "native_batch_norm_backward without",
    "embedding_dense_backward", "index_put",
)  # fmt: skip


@pytest.mark.parametrize(("settings", "rounding"), [(TWO, "exact"), (THREE, "fast")], ids=["two", "three, fast"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_parties_compute_the_same(kind, settings, rounding):
    entry = next(entry for entry in ROWS if kind in entry.label)
    program, inputs, expected = compiled(entry, rounding=rounding, **settings)
    errors = off(run(program, *inputs), expected)
    assert max(errors) <= entry.units * (1 if rounding == "exact" else 3), f"off by {errors} units"


def chosen(*names: str) -> list[Row]:
    return [entry for entry in ROWS if any(name in entry.label for name in names)]


SECRET = chosen(
    "embedding_dense", "index_put", "nll_loss2d_backward #", "_log_softmax_backward_data reduction=sum",
    "_log_softmax_backward_data weight #", "_log_softmax_backward_data ignore_index=2 #",
    "_log_softmax_backward_data weight, reduction=sum #", "nll_loss2d_backward weights, ignored", "left out",
)  # fmt: skip


@pytest.mark.parametrize("entry", SECRET, ids=[entry.label for entry in SECRET])
def test_positions_and_classes_that_nobody_knows(entry):
    program, inputs, expected = compiled(entry, veiled_labels=True)
    assert max(off(run(program, *inputs), expected)) <= entry.units


LEFT_OUT = [
    entry for entry in chosen("_log_softmax_backward_data reduction", "_log_softmax_backward_data label_smoothing=0.1 #")
    if entry.inputs[0].shape == (6, 5)
]  # fmt: skip


@pytest.mark.parametrize("entry", LEFT_OUT, ids=[entry.label for entry in LEFT_OUT])
def test_secret_classes_that_losses_leave_out_by_default(entry):
    x, classes = entry.inputs
    entry = dataclasses.replace(entry, inputs=(x, torch.where(classes == 2, -100, classes)))
    program, inputs, expected = compiled(entry, veiled_labels=True)
    assert max(off(run(program, *inputs), expected)) <= entry.units


# ---- what the forward has is used again
def count(program, *operators: str) -> int:
    return sum(node.op in operators for node in program.graph.nodes)


def compared(program) -> int:
    """How many values signs are found of."""
    return sum(len(node.args) for node in program.graph.nodes if node.op == "top_bit")


def forward_only(entry: Row) -> securemodel.Program:
    """The same results without gradients."""
    model = Veiled(Fn(entry.function), [True] * len(entry.inputs))
    inputs = [part for x in entry.inputs for part in (x, torch.zeros_like(x))]
    return securemodel.compile(model, tuple(inputs), inputs=["b", "a"] * len(entry.inputs), **TWO)


@pytest.mark.parametrize(
    "label",
    [
        "threshold_backward #",
        "hardtanh_backward relu6",
        "max_pool2d_with_indices_backward kernel_size=3, stride=2, padding=1 #",
    ],
)
def test_gradients_compare_nothing_again(label):
    entry = chosen(label)[0]
    with_them = compiled(entry)[0]
    assert compared(with_them) == compared(forward_only(entry)) > 0


def test_a_table_is_looked_up_once():
    for label in ("elu_backward celu", "sigmoid_backward #52", "tanh_backward #53"):
        assert count(compiled(chosen(label)[0])[0], "lookup") == 1


def test_classes_are_sent_once():
    """As unit vectors, for the loss and for its gradient."""
    program = compiled(chosen("_log_softmax_backward_data reduction=none")[0])[0]
    shares = [node.shape for node in program.graph.nodes if node.op in ("input", "own")]
    assert len([shape for shape in shares if shape == (6, 5)]) == 3, shares  # x in two parts, and the classes


class Gradient(torch.nn.Module):
    """The gradient alone."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.module(*inputs)[1]


def test_a_loss_that_nobody_reads_costs_nothing():
    entry = next(e for e in chosen("_log_softmax_backward_data #") if len(e.inputs) == 2)
    whole, (x, zeros, labels), _ = compiled(entry)
    model = Gradient(Veiled(captured(entry.function, [], entry.inputs), [True, False]))
    alone = securemodel.compile(model, (x, zeros, labels), inputs=("b", "a", "b"), **TWO)
    assert count(alone, "lookup") == count(whole, "lookup") - 1
    assert alone.plan().rounds <= whole.plan().rounds
