"""What a caller can do wrong: every mistake is named where it was made, and the peers learn nothing about values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import securemodel
from protocols.errors import ConfigError, InputError, PeerAborted, ProtocolError
from securemodel.program import Program

SECRET = 123457.5  # out of range, and easy to find in a text
LIMIT = str(2**30)

MISTAKES: dict[str, tuple[Callable[[torch.Tensor], tuple], tuple[str, ...]]] = {
    "shape": (lambda x: (x[:, :3],), ("input 0", "'hospital'", "[2, 3]", "[2, 4]")),
    "dimensions": (lambda x: (x[0],), ("input 0", "[4]", "[2, 4]")),
    "no rows": (lambda x: (x[:0],), ("input 0", "[0, 4]")),
    "too many inputs": (lambda x: (x, x), ("takes 1 inputs", "got 2")),
    "no inputs": (lambda x: (), ("takes 1 inputs", "got 0")),
    "nothing": (lambda x: (None,), ("must be a tensor", "NoneType")),
    "a list": (lambda x: (x.tolist(),), ("must be a tensor", "list")),
    "NaN": (lambda x: (x * float("nan"),), ("NaN or infinite", "finite", "input 0")),
    "infinite": (lambda x: (x + float("inf"),), ("NaN or infinite", "finite", "input 0")),
    "out of range": (lambda x: (torch.full((2, 4), 2.0**31),), ("within", "1.07374e+09", "input 0")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_in_a_local_session_that_stays_usable(program: Program, model, tools, mistake: str) -> None:
    make, parts = MISTAKES[mistake]
    x = tools.rows(2)
    with securemodel.local(program) as session:
        for _ in range(2):
            with pytest.raises(InputError) as caught:
                session.run(*make(x))
            for part in parts:
                assert part in str(caught.value)
            torch.testing.assert_close(session.run(x), model(x), atol=2**-10, rtol=0)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_in_a_session_between_parties(worlds, program: Program, tools, mistake: str) -> None:
    make, parts = MISTAKES[mistake]
    x = tools.rows(2)
    tasks = {"bank": lambda session: (session.run(None), session.run(None)), "hospital": lambda session: None}
    tasks["hospital"] = lambda session: (session.run(x), session.run(*make(x)))
    world = worlds(program)
    results = world.run(tasks)
    assert type(results["hospital"]) is InputError
    for part in parts:
        assert part in str(results["hospital"])
    assert type(results["bank"]) is PeerAborted and results["bank"].party == "hospital"
    assert "it was given an input or weights it cannot use" in str(results["bank"])
    world.wait_until_said("session failed")
    for text in (str(results["bank"]), *world.said):
        for part in ("e+09", "NaN", "nan", "[2, 3]", "list"):
            assert part not in text


def test_values_are_not_told_to_the_peers(worlds, program: Program) -> None:
    narrow = securemodel.compile(
        program.model, program.examples, weights="bank", inputs="hospital", outputs="hospital", width=32
    )
    world = worlds(narrow)
    x = torch.full((2, 4), SECRET)
    results = world.run({"bank": lambda s: s.run(None), "hospital": lambda s: s.run(x)})
    assert type(results["hospital"]) is InputError and "[-32768, 32768]" in str(results["hospital"])
    assert type(results["bank"]) is PeerAborted
    world.wait_until_said("session failed")
    for text in (str(results["bank"]), repr(results["bank"]), *world.said):
        assert "12345" not in text


def test_different_numbers_of_rows(worlds, two_owners: Program, tools) -> None:
    for first, second in ((2, 1), (3, 5), (2, 4)):
        x, y = tools.rows(first), tools.rows(second)
        results = worlds(two_owners).run({"bank": lambda s: s.run(x, None), "hospital": lambda s: s.run(None, y)})
        for error in results.values():
            assert isinstance(error, (InputError, PeerAborted)), error
        named = [str(e) for e in results.values() if isinstance(e, InputError)]
        assert named and all(f"bank {first}, hospital {second}" in text for text in named)


def test_different_numbers_of_rows_locally(two_owners: Program, tools) -> None:
    with securemodel.local(two_owners) as session:
        with pytest.raises(InputError, match=r"different numbers of rows: \[2, 3\]"):
            session.run(tools.rows(2), tools.rows(3))
        x, y = tools.rows(3, 1), tools.rows(3, 2)
        torch.testing.assert_close(session.run(x, y), two_owners.model(x, y).detach(), atol=2**-10, rtol=0)


def test_inputs_of_the_compiled_shapes_need_no_common_number_of_rows(tools) -> None:
    class Product(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return torch.relu(torch.matmul(x, y))

    shapes = (torch.zeros(3, 4), torch.zeros(4, 2))
    program = securemodel.compile(Product(), shapes, weights="bank", inputs=("bank", "hospital"), outputs="hospital")
    x, y = tools.rows(3), tools.rows(2).T.contiguous()
    with securemodel.local(program) as session:
        torch.testing.assert_close(session.run(x, y), torch.relu(x @ y), atol=2**-10, rtol=0)


# Weights.


def bad_models(model: torch.nn.Module, tools: Any) -> dict[str, tuple[Any, tuple[str, ...]]]:
    meta = copy.deepcopy(model).to(device="meta")
    huge, nan = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        huge[0].weight[0, 0] = SECRET * 2.0**20
        nan[2].bias[0] = float("nan")
    return {
        "missing": (None, ("'bank' owns the weight '0.weight'", "'0.weight'", "not in the model")),
        "meta": (meta, ("'bank' owns the weight '0.weight'", "'0.weight'", "meta device")),
        "other shape": (tools.make_model(hidden=5), ("'0.weight'", "[5, 4]", "[3, 4]")),
        "out of range": (huge, ("'0.weight'", "within")),
        "NaN": (nan, ("'2.bias'", "NaN or infinite")),
    }


BAD_MODELS = ("missing", "meta", "other shape", "out of range", "NaN")


@pytest.mark.parametrize("mistake", BAD_MODELS)
def test_weights_at_their_owner(worlds, program: Program, model, tools, mistake: str) -> None:
    bad, parts = bad_models(model, tools)[mistake]
    world = worlds(program)
    x = tools.rows(2)

    def bank(session) -> None:
        session.load(program, bad)
        session.run(None)

    results = world.run({"bank": bank, "hospital": lambda session: session.run(x)})
    assert type(results["bank"]) is InputError
    for part in parts:
        assert part in str(results["bank"])
    assert type(results["hospital"]) is PeerAborted and results["hospital"].party == "bank"
    world.wait_until_said("session failed")
    for text in (str(results["hospital"]), *world.said):
        for part in ("0.weight", "2.bias", "[5, 4]", "NaN", "e+"):
            assert part not in text


@pytest.mark.parametrize("mistake", BAD_MODELS)
def test_weights_in_a_local_session_that_stays_usable(program: Program, model, tools, mistake: str) -> None:
    bad, parts = bad_models(model, tools)[mistake]
    x = tools.rows(2)
    with securemodel.local(program) as session:
        session.run(x)
        with pytest.raises(InputError) as caught:
            session.load(program, bad)
        for part in parts:
            assert part in str(caught.value)
        with pytest.raises(InputError, match="load"):  # never silently with other weights
            session.run(x)
        session.load(program, model)
        torch.testing.assert_close(session.run(x), model(x), atol=2**-10, rtol=0)


def test_loading_another_program(program: Program, program3: Program, model, tools) -> None:
    with securemodel.local(program) as session:
        with pytest.raises(InputError, match=program3.digest[:12]):
            session.load(program3, model)
        session.run(tools.rows(2))


def test_public_weights_must_be_equal(worlds, model, tools) -> None:
    public = tools.make_program(model, weights="public", parties=("bank", "hospital"), outputs="bank")
    other = tools.make_model(2)

    def bank(session) -> None:
        session.load(public, other)
        session.run(None)

    results = worlds(public).run({"bank": bank, "hospital": lambda session: session.run(tools.rows(2))})
    texts = [str(error) for error in results.values()]
    assert all(isinstance(error, ProtocolError) for error in results.values())
    assert any("other public weights" in text for text in texts)


# Names.


def test_a_party_the_program_does_not_know(world) -> None:
    with pytest.raises(ConfigError, match="'mallory' is not a party.*bank, hospital"):
        world.connect("mallory")


def test_a_party_file_that_does_not_match_the_program(world, program3: Program) -> None:
    with pytest.raises(ConfigError, match=r"(?s)bank, hospital, helper.*lists bank, hospital"):
        world.connect("bank", program3)


def test_nobody_said_who_this_is(program: Program) -> None:
    with pytest.raises(ConfigError, match="(?s)does not know who this process is.*securemodel run"):
        securemodel.connect(program)


def test_no_dealer_in_the_party_file(worlds, program: Program) -> None:
    import dataclasses

    world = worlds(program, dealer=False)
    world.config = dataclasses.replace(world.config, dealer=None)
    results = world.run({"bank": lambda s: None, "hospital": lambda s: None})
    for error in results.values():
        assert isinstance(error, (ConfigError, PeerAborted)) and "dealer" in str(error)


def test_a_program_read_from_a_file(program: Program, tmp_path) -> None:
    program.save(tmp_path / "program.txt")
    with pytest.raises(InputError, match="read from a file"):
        securemodel.local(Program.load(tmp_path / "program.txt"))


@pytest.mark.parametrize("place", [5, -1])
def test_an_id_outside_of_its_table_is_its_owners_mistake_not_words_of_torch(place: int) -> None:
    table = torch.nn.Embedding(5, 3).eval()
    ids = torch.tensor([[1, 4]])
    program = securemodel.compile(table, ids, weights="bank", inputs="hospital", outputs="hospital")
    with securemodel.local(program) as session:
        with pytest.raises(
            InputError, match=r"'hospital': input 0: the id or position at \[.*\] is outside of its table"
        ):
            session.run(torch.tensor([[1, place]]))
        torch.testing.assert_close(session.run(ids), table(ids).detach(), atol=2**-10, rtol=0)


class Masked(nn.Module):
    """Shares of its own scores, of which a mask forbids a whole row."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.ones(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(3, 3).index_fill(0, torch.tensor([1]), -torch.inf)
        return (self.scores + mask).softmax(-1) @ x


def test_what_a_model_makes_of_good_weights_is_not_blamed_on_them():
    program = securemodel.compile(Masked().eval(), torch.ones(3, 2), weights="a", inputs="b", outputs="b")
    with (
        securemodel.local(program) as session,
        pytest.raises(InputError, match=r"what softmax.int makes of it, at"),
    ):
        session.run(torch.ones(3, 2))
