"""Sessions that go well: results, batches, new weights, several sessions with one dealer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import securemodel
from protocols.errors import SecureModelError
from securemodel.program import Program

CLOSE = {"atol": 2**-10, "rtol": 0}
pytestmark = pytest.mark.usefixtures("no_threads_left")


def serve_rows(batches: list[torch.Tensor]) -> dict[str, Callable[[Any], list]]:
    """What bank and hospital do to evaluate some batches of rows."""
    return {
        "bank": lambda session: [session.run(None) for _ in batches],
        "hospital": lambda session: [session.run(x) for x in batches],
    }


@pytest.mark.parametrize("ahead", [True, False])
def test_batches_of_any_size(world, model, tools, ahead: bool) -> None:
    batches = [tools.rows(n, n) for n in (2, 1, 5, 2, 3, 4, 2, 2)]
    results = world.run(serve_rows(batches), ahead=ahead)
    assert results["bank"] == [None] * len(batches)
    for x, y in zip(batches, results["hospital"], strict=True):
        torch.testing.assert_close(y, model(x), **CLOSE)
    world.wait_until_said("session ended")


@pytest.mark.parametrize("ahead", [True, False])
def test_new_weights_in_the_middle(world, program, model, tools, ahead: bool) -> None:
    other, x = tools.make_model(2), tools.rows(3)

    def both(session, mine) -> list:
        out = [session.run(mine), session.run(mine)]
        session.load(program, other if session.me == "bank" else None)
        out += [session.run(mine), session.run(mine)]
        session.load(program, model if session.me == "bank" else None)
        return [*out, session.run(mine)]

    tasks = {"bank": lambda session: both(session, None), "hospital": lambda session: both(session, x)}
    results = world.run(tasks, ahead=ahead)["hospital"]
    for made, used in zip(results, (model, model, other, other, model), strict=True):
        torch.testing.assert_close(made, used(x), **CLOSE)
    assert not torch.allclose(results[0], results[2], atol=0.01)


def test_many_runs(world, model, tools) -> None:
    batches = [tools.rows(2, seed) for seed in range(40)]
    for x, y in zip(batches, world.run(serve_rows(batches))["hospital"], strict=True):
        torch.testing.assert_close(y, model(x), **CLOSE)


def test_several_sessions_with_one_dealer(world, model, tools) -> None:
    for seed in range(3):
        x = tools.rows(2, seed)
        torch.testing.assert_close(world.run(serve_rows([x]))["hospital"][0], model(x), **CLOSE)
    world.wait_until_said("session ended", 3)


def test_three_parties(worlds, program3, model, tools) -> None:
    x = tools.rows(5)
    tasks = {**serve_rows([x, x]), "helper": lambda session: [session.run(None), session.run(None)]}
    results = worlds(program3).run(tasks)
    torch.testing.assert_close(results["hospital"][0], model(x), **CLOSE)
    torch.testing.assert_close(results["hospital"][1], model(x), **CLOSE)
    assert results["helper"] == results["bank"] == [None, None]


def test_rows_of_two_owners(worlds, two_owners: Program, tools) -> None:
    x, y = tools.rows(5, 1), tools.rows(5, 2)
    tasks = {"bank": lambda session: session.run(x, None), "hospital": lambda session: session.run(None, y)}
    result = worlds(two_owners).run(tasks)["hospital"]
    torch.testing.assert_close(result, two_owners.model(x, y).detach(), **CLOSE)


def test_public_rows(worlds, tools) -> None:
    """A party that gives only public inputs cuts them into the same batches as the owner of the others."""

    class Difference(torch.nn.Module):
        def forward(self, x, y):
            return torch.relu(x - y)

    shapes = (torch.zeros(2, 4), torch.zeros(2, 4))
    options = {"weights": "bank", "inputs": ("hospital", "public"), "outputs": "all", "parties": ("bank", "hospital")}
    program = securemodel.compile(Difference(), shapes, **options)
    x, y = tools.rows(5, 1), tools.rows(5, 2)
    tasks = {"bank": lambda session: session.run(None, y), "hospital": lambda session: session.run(x, y)}
    results = worlds(program).run(tasks)
    for result in results.values():
        torch.testing.assert_close(result, torch.relu(x - y), **CLOSE)


def test_closed_twice_and_then_used(world, tools) -> None:
    x = tools.rows(2)

    def use(session, mine) -> tuple[str, str]:
        session.run(mine)
        session.close()
        session.close()
        with pytest.raises(SecureModelError, match="closed") as run:
            session.run(mine)
        with pytest.raises(SecureModelError, match="closed") as load:
            session.load(session.program, session.program.model)
        return str(run.value), str(load.value)

    results = world.run({"bank": lambda s: use(s, None), "hospital": lambda s: use(s, x)})
    for texts in results.values():
        for text in texts:
            assert "connect()" in text or "new session" in text


def test_a_local_session_closed_and_then_used(program, tools) -> None:
    session = securemodel.local(program)
    session.run(tools.rows(2))
    session.close()
    session.close()
    with pytest.raises(SecureModelError, match="closed"):
        session.run(tools.rows(2))


def test_closing_without_a_run(world) -> None:
    assert world.run({"bank": lambda s: None, "hospital": lambda s: None}) == {"bank": None, "hospital": None}
    world.wait_until_said("session ended")
