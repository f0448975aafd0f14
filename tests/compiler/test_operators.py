"""Every operator that has a secure version against torch, over many shapes, for two and three parties."""

import operator

import gradients
import pytest
import table_functions  # noqa: F401  (adds its rows)
import torch
from running import (
    IDLE_THIRD,
    SETTINGS,
    TOLERANCE,
    TWO,
    Several,
    addresses_read_once,
    check_agrees,
    difference,
    run,
    tensors,
    veils,
)
from table import NOT_FROM_TORCH, ROWS, Row

import securemodel
from securemodel.compiler.lower import LOWERINGS

GROUP = 8


def _groups() -> list[tuple[str, list[Row]]]:
    """Rows with equal inputs, a few at a time: each group is compiled as one model."""
    by_shapes: dict[tuple, list[Row]] = {}
    for entry in ROWS:
        by_shapes.setdefault(entry.shapes, []).append(entry)
    out = []
    for shapes, rows in by_shapes.items():
        for start in range(0, len(rows), GROUP):
            part = rows[start : start + GROUP]
            names = dict.fromkeys(str(op).split(".")[1] for r in part for op in r.operators)
            out.append((f"{'+'.join(names)}-{'x'.join(map(str, shapes[0]))}-{start}", part))
    return out


GROUPS = _groups()


@pytest.fixture
def lowered(monkeypatch):
    """The operators whose secure version was asked for."""
    seen = set()

    def recording(target, function):
        def called(*args, **kwargs):
            seen.add(target)
            return function(*args, **kwargs)

        called.__wrapped__ = function
        return called

    for target, function in list(LOWERINGS.items()):
        monkeypatch.setitem(LOWERINGS, target, recording(target, function))
    return seen


def _labels(rows: list[Row], inputs) -> list[str]:
    """For each output of a group, the row it comes from."""
    out = []
    for index, entry in enumerate(rows):
        ops = ", ".join(map(str, entry.operators))
        out += [f"row {index} ({ops}), output {k}" for k, _ in enumerate(tensors(entry.module(*inputs)))]
    return out


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(
    ("rows", "veil"),
    [
        pytest.param(rows, veil, id=f"{name}-{veil}", marks=() if (at + turn) % 2 else pytest.mark.slow)
        for at, (name, rows) in enumerate(GROUPS)
        for turn, veil in enumerate(["add", "mul"])
    ],
)
def test_operator_agrees_with_torch(rows, veil, lowered, capture_once):
    generator = torch.Generator().manual_seed(len(rows))
    inputs = tuple(torch.randn(s, generator=generator) for s in rows[0].shapes)
    model, given = Several([r.module for r in rows], veil).eval(), (*inputs, *veils(inputs, veil))
    with torch.no_grad():
        expected, labels = tensors(model(*given)), _labels(rows, inputs)
    for name, settings in SETTINGS.items():
        owners = (settings["inputs"],) * len(inputs) + ("a",) * len(inputs)
        made = run(securemodel.compile(model, given, **{**settings, "inputs": owners}), *given)
        wrong = {
            label: difference(m, e)
            for label, m, e in zip(labels, made, expected, strict=True)
            if difference(m, e) > TOLERANCE
        }
        assert not wrong, f"{name}: {wrong}"
    missing = {op for r in rows for op in r.operators} - lowered
    assert not missing, f"these operators were not lowered, so the row tests something else: {missing}"


def test_the_table_has_every_operator():
    covered = {op for entry in (*ROWS, *gradients.ROWS) for op in entry.operators} | {operator.getitem}
    known = {target for target in LOWERINGS if not str(target).startswith("securemodel.")}  # of trees: tests/models
    assert known - covered == set(NOT_FROM_TORCH), "add a row to table.py or gradients.py, or say why there is none"


def test_a_wrong_result_is_noticed(monkeypatch):
    monkeypatch.setitem(LOWERINGS, torch.ops.aten.relu.default, lambda g, x: g.scale(g.relu(x), 3))
    with pytest.raises(AssertionError, match="off by"):
        check_agrees(torch.relu, [torch.tensor([-1.0, 0.002])])


TIES = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0], [2.0, 2.0, 2.0, 2.0, 2.0], [-1.0, -5.0, -1.0, -1.0, -9.0]])


def test_argmax_takes_the_first_of_equals():
    check_agrees(lambda x: (x.argmax(1), x.argmax(0), x.argmax()), [TIES], tolerance=0.0)
    check_agrees(lambda x: [x[:size].argmax(0) for size in range(1, 8)], [torch.ones(7)], tolerance=0.0)


def test_comparisons_of_equals():
    x = torch.tensor([0.0, 1.0, -2.5, 3.0])
    for veil in ("add", "mul"):
        check_agrees(lambda x: (x > 1, x >= 1, x < 1, x <= 1, x < x.flip(0).flip(0)), [x], 0.0, veil)


EDGE = torch.tensor([0.0, -0.0, 2.0**-16, -(2.0**-16), 1.0, -1.0, 100.0, -100.0, 8000.0, -8000.0, 6.0, 6.0 + 2.0**-16])


def test_activations_at_their_corners():
    functions = (torch.relu, torch.nn.functional.relu6, torch.nn.functional.hardtanh)
    check_agrees(lambda x: [f(x) for f in functions], [EDGE], tolerance=2.0**-15)


@pytest.mark.parametrize("settings", [TWO, IDLE_THIRD], ids=["two", "three"])
def test_large_values_keep_their_precision(settings):
    x = torch.tensor([30000.0, -30000.0, 12345.678, -0.001])
    check_agrees(lambda x: (torch.relu(x), x + x, x * 0.5, x * -1.5), [x], tolerance=2.0**-8, settings=settings)


def test_the_programs_above_read_masks_and_each_address_once():
    """`run` fails for any of them that reads an address of a stream twice, and would notice."""
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()), torch.ones(2, 4)
    program = securemodel.compile(model, x, **TWO)
    with addresses_read_once() as read, securemodel.local(program) as session:
        session.run(x)
        session.run(x)
    assert len(read) > 20
    with (
        pytest.raises(AssertionError, match="read twice"),
        addresses_read_once(),
        securemodel.local(program) as session,
    ):
        for _ in range(2):
            list(session.walks["a"].preparing.run(0, "load", {}))
