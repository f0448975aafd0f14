"""Each family's step as a secure program: new weights beside those of the same step in float."""

from __future__ import annotations

import pytest
import torch
from families import EXACT, ROOTS

import securemodel
from securemodel.engines.clear import ClearSide
from securemodel.inspect.fixed import FixedPoint
from securemodel.training import capture_step, draws, run_in_float, start_states
from securemodel.training.compiling import TrainingProgram, compile_step
from securemodel.training.steps import CapturedStep

FAMILIES = {**EXACT, **ROOTS}
UNITS = 8.0
"""Of 2^-16: how far a weight may be from float after a step at batch 8."""
WIDER = {"rmsprop": 16.0, "rmsprop centered momentum": 24.0}
"""One over a root of few gradients, where Adam has an average of them: docs/training.md."""
SLOW = {"resnet", "lstm", "gru", "seq2seq", "encoder", "gan", "clip by norm", "lenet5", "vae"}


def stepped(name: str, parties: tuple[str, ...] = ("a", "b"), **options) -> tuple[CapturedStep, TrainingProgram, list]:
    """A family's captured step and its program, with the inputs of one run."""
    torch.manual_seed(0)
    family = FAMILIES[name]()
    captured = capture_step(family.step, family.models, family.optimizers, family.batches[0])
    owners = [*["a"] * (len(captured.batch) - 1), "b"]
    program = compile_step(captured, name, parties, owners, "public", ["all"] * len(captured.returned.names), **options)
    numbers, random = captured.public_inputs().next(), draws(captured, torch.Generator().manual_seed(1))
    given = [
        *family.batches[0],
        *(numbers[key] for key in captured.numbers),
        *(random[r.name] for r in captured.random),
    ]
    right = run_in_float(captured, start_states(captured), family.batches[0], numbers, random)[0]
    return captured, program, [given, right]


def in_fixed_point(program: TrainingProgram, given: list[torch.Tensor]) -> FixedPoint:
    """The program after one run in the clear; asserts that no value leaves the ring."""
    sides = {name: ClearSide(program, name) for name in program.parties}
    for side in sides.values():
        side.set_model(program.model)
        side.set_inputs(given)
    fixed = FixedPoint(program, sides)
    for phase in ("load", "run"):
        for node, value, _ in fixed.walk(phase):
            if node.frac is not None and value.wide is not None and value.wide.numel():
                assert float(value.wide.abs().max()) < 2.0**63, f"{node.op} {node.source}"
    return fixed


def assert_parties_get_the_same(program: TrainingProgram, given: list[torch.Tensor]) -> None:
    """What the parties keep after a run is what fixed point in the clear keeps."""
    fixed = in_fixed_point(program, given)
    with securemodel.local(program) as session:
        session.run(*given)
        held = [walk.party for walk in session.walks.values()]
    for key, value in fixed.kept.items():
        shares = [party.kept[key] for party in held if party.kept[key] is not None]
        assert torch.equal(sum(shares), value.ring), key


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FAMILIES])
def test_new_weights_are_those_of_float(name):
    captured, program, (given, right) = stepped(name)
    fixed = in_fixed_point(program, given)
    kept = [node for node in program.graph.nodes if node.op == "keep" and node.phase == "run"]
    assert kept
    changed = worst = 0.0
    for node in kept:
        key = node.attrs["name"]
        if captured.states[key].kind != "parameter":
            continue
        made, start = fixed.kept[key].ring.double() / 2.0**node.frac, captured.states[key].start.double()
        difference = float((made - right[key].double()).abs().max()) * 2.0**16
        worst = max(worst, difference)
        assert difference <= WIDER.get(name, UNITS), f"{key}: {difference:.1f} units"
        changed = max(changed, float((right[key].double() - start).abs().max()))
    assert changed * 2.0**16 > 4 * worst, "a step that changes nothing would be right by doing nothing"


@pytest.mark.parametrize("parties", [("a", "b"), ("idle", "b", "a")], ids=["two", "three"])
@pytest.mark.parametrize("name", ["logistic regression", "momentum", "adam", "dropout"])
def test_the_parties_get_what_fixed_point_gives(name, parties):
    _, program, (given, _) = stepped(name, parties)
    assert_parties_get_the_same(program, given)


@pytest.mark.parametrize("name", ["logistic regression", "momentum"])
def test_fast_rounding_is_as_near(name):
    captured, program, (given, right) = stepped(name, rounding="fast")
    with securemodel.local(program) as session:
        session.run(*given)
        held = [walk.party for walk in session.walks.values()]
    for node in program.graph.nodes:
        if node.op == "keep" and node.phase == "run" and captured.states[node.attrs["name"]].kind == "parameter":
            shares = [party.kept[node.attrs["name"]] for party in held]
            made = sum(share for share in shares if share is not None).double() / 2.0**node.frac
            assert (made - right[node.attrs["name"]].double()).abs().max() <= 2 * UNITS * 2.0**-16


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_large_gradients_stay_in_range(kind):
    """A gradient's sum over the batch, here near 77, is squared: as large a moment must not leave the ring."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    torch.nn.init.zeros_(model.bias)
    optimizer, (x, y) = kind(model.parameters(), lr=1e-2), (0.2 * torch.randn(128, 3), torch.full((128,), 0.3))

    def step(x, y):
        loss = torch.nn.functional.mse_loss(model(x).squeeze(1), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    captured = capture_step(step, model, optimizer, (x, y))
    program = compile_step(captured, "step", ("a", "b"), ["a", "b"], "public", [])
    numbers = captured.public_inputs().next()
    right, _ = run_in_float(captured, start_states(captured), [x, y], numbers, {})
    assert right["model.bias"].numel() == 1
    fixed = in_fixed_point(program, [x, y, *(numbers[key] for key in captured.numbers)])
    for name in ("model.weight", "model.bias"):
        made = fixed.kept[name].ring.double() / 2.0**32
        assert (made - right[name].double()).abs().max() < 32 * 2.0**-16, name


def test_small_updates_are_not_lost():
    """Weights have 32 fractional bits: a change far below 2^-16 adds up."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-12)

    def step(x):
        loss = 2.0**-6 * model(x).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    x = torch.ones(2, 3)
    captured = capture_step(step, model, optimizer, (x,))
    program = compile_step(captured, "step", ("a", "b"), ["a"], "public", [])
    numbers = captured.public_inputs().next()
    with securemodel.local(program) as session:
        for _ in range(8):
            session.run(x, *(numbers[key] for key in captured.numbers))
        shares = [party.kept["model.weight"] for party in (walk.party for walk in session.walks.values())]
    made = sum(share for share in shares if share is not None).double() / 2.0**32
    assert torch.allclose(
        model.weight.detach().double() - made, torch.full((1, 3), 8 * 2.0**-17, dtype=torch.double), rtol=1e-3
    )
