"""Rows that come batch by batch, owners of parts of the weights, and where parties go on after an interruption."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import securemodel
from protocols.errors import InputError, Mismatch, PeerError, ProtocolError
from securemodel.program import Program
from securemodel.sessions.resume import Batches, Kept, agree_on_start, all_begun
from securemodel.sessions.session import Session


def pieces(x: torch.Tensor, size: int = 2) -> Iterator[tuple[torch.Tensor]]:
    """The rows in batches, one argument each."""
    return ((part,) for part in x.split(size))


def close(made: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(made, expected.detach(), atol=2**-10, rtol=0)


# ---- batches
@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_in_a_local_session(program: Program, model, tools, count: int) -> None:
    x = tools.rows(count)
    with securemodel.local(program) as session:
        made = list(session.run_batches(pieces(x), count))
        assert session.stats.rounds == program.plan().rounds, "the last batch is counted"
        close(session.run(x), model(x))
    close(torch.cat([batch.outputs[0] for batch in made]), model(x))
    assert [batch.rows for batch in made] == [len(part) for part in x.split(2)]
    assert [batch.rows_left for batch in made] == [max(0, count - 2 * i) for i in range(1, len(made) + 1)]


@pytest.mark.parametrize("count", [2, 5])
def test_between_parties(worlds, program3: Program, tools, no_threads_left, count: int) -> None:
    x = tools.rows(count)

    def task(session: Session) -> list:
        mine = session.me == "hospital"
        made = list(session.run_batches(pieces(x), count) if mine else session.run_batches())
        session.run(x if mine else None)  # the session goes on
        return made

    results = worlds(program3).run(dict.fromkeys(program3.parties, task))
    close(torch.cat([batch.outputs[0] for batch in results["hospital"]]), program3.model(x))
    for me, made in results.items():
        assert [batch.rows for batch in made] == [len(part) for part in x.split(2)], me
        assert made[-1].rows_left == 0
        assert me == "hospital" or all(batch.outputs == (None,) for batch in made)


def test_two_owners_of_inputs(worlds, two_owners: Program, tools) -> None:
    x, y = tools.rows(5, 1), tools.rows(5, 2)
    given = {"bank": [(part, None) for part in x.split(2)], "hospital": [(None, part) for part in y.split(2)]}
    tasks = {me: lambda s, g=g: list(s.run_batches(g, 5)) for me, g in given.items()}
    results = worlds(two_owners).run(tasks)
    close(torch.cat([batch.outputs[0] for batch in results["hospital"]]), two_owners.model(x, y))
    tasks["bank"] = lambda s: list(s.run_batches([(part, None) for part in x[:4].split(2)], 4))
    errors = worlds(two_owners).run(tasks).values()
    assert any(isinstance(e, InputError) and "different numbers of rows: bank 4, hospital 5" in str(e) for e in errors)


WRONG = {
    "too few": (lambda x: pieces(x[:4]), 6, "ended 2 rows before"),
    "too many in one": (lambda x: pieces(x, 3), 6, "a batch has 3 rows where 2 are due"),
    "a short one first": (lambda x: iter([(x[:1],), (x[1:3],)]), 3, "a batch has 1 rows where 2 are due"),
    "another shape": (lambda x: pieces(x[:, :3]), 6, "has shape"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_batches_that_do_not_fit(worlds, program: Program, tools, mistake: str) -> None:
    make, count, says = WRONG[mistake]
    x = tools.rows(6)
    with securemodel.local(program) as session:
        with pytest.raises(InputError, match=says):
            list(session.run_batches(make(x), count))
        assert session.run(x).shape == (6, 2)
    tasks = {"bank": lambda s: list(s.run_batches()), "hospital": lambda s: list(s.run_batches(make(x), count))}
    results = worlds(program).run(tasks)
    assert type(results["hospital"]) is InputError and says in str(results["hospital"])
    assert isinstance(results["bank"], PeerError) and "[2, 3]" not in str(results["bank"])


@pytest.mark.parametrize("given", [(), ([],), ([], 0), (None, 3)], ids=str)
def test_owners_say_how_many_rows(program: Program, given: tuple) -> None:
    with securemodel.local(program) as session, pytest.raises(InputError, match="how many rows"):
        list(session.run_batches(*given))


def test_an_error_of_the_source_reaches_the_peers(worlds, program: Program, tools) -> None:
    def source() -> Iterator[tuple[torch.Tensor]]:
        yield (tools.rows(2),)
        raise KeyError("a secret 12345")

    tasks = {"bank": lambda s: list(s.run_batches()), "hospital": lambda s: list(s.run_batches(source(), 4))}
    results = worlds(program).run(tasks)
    assert type(results["hospital"]) is KeyError
    assert isinstance(results["bank"], PeerError) and "12345" not in str(results["bank"])


def test_who_stops_early_ends_the_session(worlds, program: Program, tools, no_threads_left) -> None:
    def leaves(session: Session) -> None:
        made = session.run_batches(pieces(tools.rows(6)), 6)
        next(made)
        made.close()
        with pytest.raises(ProtocolError, match="this session is closed"):
            session.run(tools.rows(2))

    results = worlds(program).run({"bank": lambda s: list(s.run_batches()), "hospital": leaves})
    assert results["hospital"] is None and isinstance(results["bank"], PeerError)


def test_after_the_last_batch_nothing_is_left_to_stop(worlds, program: Program, tools) -> None:
    def takes_what_there_is(session: Session) -> int:
        made = session.run_batches(pieces(tools.rows(4)), 4)
        left = [next(made).rows_left for _ in range(2)]
        made.close()
        assert left == [2, 0]
        return len(session.run(tools.rows(2)))

    tasks = {"bank": lambda s: (list(s.run_batches()), s.run(None)), "hospital": takes_what_there_is}
    assert worlds(program).run(tasks)["hospital"] == 2


def test_a_batch_shows_no_outputs(program: Program, tools) -> None:
    with securemodel.local(program) as session:
        (batch,) = session.run_batches(pieces(tools.rows(2)), 2)
    assert "tensor" not in repr(batch)


# ---- owners of parts
@pytest.fixture(scope="module")
def parts() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        layers = {"encoder": torch.nn.Linear(4, 3), "act": torch.nn.ReLU(), "head": torch.nn.Linear(3, 2)}
        return torch.nn.Sequential(OrderedDict(layers)).eval()


def foreign(model: torch.nn.Module, name: str) -> torch.nn.Module:
    """The model with one part on the meta device."""
    made = copy.deepcopy(model)
    getattr(made, name).to("meta")
    return made


def compiled(model: torch.nn.Module) -> Program:
    owners = {"encoder": "lab", "head": "bank"}
    return securemodel.compile(model, torch.zeros(2, 4), weights=owners, inputs="hospital", outputs="hospital")


def test_each_owner_has_its_own_part_only(worlds, parts, tools, no_threads_left) -> None:
    x, given = tools.rows(3), {"lab": foreign(parts, "head"), "bank": foreign(parts, "encoder"), "hospital": None}
    own = {me: compiled(model or copy.deepcopy(parts).to("meta")) for me, model in given.items()}
    assert len({program.digest for program in own.values()}) == 1 and own["lab"].parties == ("lab", "bank", "hospital")

    def task(session: Session) -> Any:
        first = session.run(x) if session.me == "hospital" else session.run(None)  # with the model compiled
        session.load(session.program, given[session.me])
        return first, session.run(x if session.me == "hospital" else None)

    results = worlds(own["lab"]).run(dict.fromkeys(given, task), program=own)
    for made in results["hospital"]:
        close(made, parts(x))


def test_a_part_that_is_missing_is_named_at_its_owner(worlds, parts, tools) -> None:
    x, program = tools.rows(2), compiled(parts)
    models = {"lab": foreign(parts, "encoder"), "bank": parts, "hospital": None}

    def task(session: Session) -> None:
        session.load(session.program, models[session.me])
        session.run(x if session.me == "hospital" else None)

    results = worlds(program).run(dict.fromkeys(models, task))
    assert type(results["lab"]) is InputError and "'encoder.weight', but it is on the meta device" in str(
        results["lab"]
    )
    assert isinstance(results["bank"], PeerError) and "encoder" not in str(results["bank"])


# ---- going on
SIZE = 2


def having(
    job: str = "", done: str = "", rows: int = 0, changed: str = "", results: bool = True, ids: bytes = b""
) -> tuple:
    """What a party brings to the agreement: `done` and `changed` have a letter for each batch, x for those that are."""
    bits = lambda text, count: np.array([letter == "x" for letter in text.ljust(count)[:count]], bool)
    kept = Kept(job, sum(letter == "x" for letter in done), rows, results, bool(ids))
    return kept, lambda count: Batches(~bits(done, count) if results else bits("", count), bits(changed, count)), ids


def agreed(world: Any, kept: dict[str, tuple | None]) -> dict[str, Any]:
    def task(session: Session, mine: tuple | None) -> Any:
        kept, batches, ids = mine or (None, None, b"")
        start = agree_on_start(session.channel, kept, SIZE, batches, ids)
        all_begun(session.channel)
        text = lambda bits: "".join("x" if bit else "." for bit in bits)
        return start.job, start.rows, text(start.todo), text(start.changed)

    return world.run({me: lambda s, k=k: task(s, k) for me, k in kept.items()})


@pytest.mark.parametrize(
    "kept, start",
    [
        ({"bank": None, "hospital": having(rows=9)}, ("new", 9, "xxxxx", ".....")),
        ({"bank": having(), "hospital": having(rows=9)}, ("new", 9, "xxxxx", ".....")),
        ({"bank": having("old"), "hospital": having(rows=9)}, ("new", 9, "xxxxx", ".....")),
        ({"bank": None, "hospital": having("a", "xx", 9)}, ("a", 9, "..xxx", ".....")),
        ({"bank": having("a", "x"), "hospital": having("a", "xx", 9)}, ("a", 9, ".xxxx", ".....")),
        ({"bank": having("a", "x.x"), "hospital": having("a", "xx", 9)}, ("a", 9, ".xxxx", ".....")),
        ({"bank": having("a", "xxxxx"), "hospital": having("a", "xxxx", 9)}, ("a", 9, "....x", ".....")),
        ({"bank": having("a", "xxxxx"), "hospital": having("a", "xxxxx", 9)}, ("a", 9, ".....", ".....")),
        ({"bank": having("a", "xx"), "hospital": having("a", "", 9, results=False)}, ("a", 9, "..xxx", ".....")),
        ({"bank": having("a", "xxx"), "hospital": having("a", "", 9, "..x", False)}, ("a", 9, "..xxx", "..x..")),
        ({"bank": having("a", "xxx"), "hospital": having("a", "", 5, "..x", False)}, ("a", 5, "..x", "..x")),
        ({"bank": having(), "hospital": having("old", "", 9, results=False)}, ("new", 9, "xxxxx", ".....")),
    ],
)
def test_what_somebody_lacks_or_has_corrected_is_run(world, kept, start) -> None:
    results = agreed(world, kept)
    assert len(set(results.values())) == 1, results
    job, *rest = results["bank"]
    assert tuple(rest) == start[1:]
    assert (len(job) == 16 and job != "old") if start[0] == "new" else job == start[0]


@pytest.mark.parametrize(
    "kept, says",
    [
        (
            {"bank": having("a", "xx"), "hospital": having("b", "xx", 9)},
            "different jobs: 'bank' 2 rows of a, 'hospital' 2 rows of b",
        ),
        ({"bank": having("a", "xx"), "hospital": having(rows=9)}, "'hospital' 0 rows of a new job"),
        ({"bank": having("a", "xx"), "hospital": having("b", "", 9, results=False)}, "'hospital' 0 rows of b"),
        (
            {"bank": having("a", "xx", 9), "hospital": having("a", "xx", 8)},
            "different numbers of rows: 'bank' 9, 'hospital' 8",
        ),
        ({"bank": having(rows=9), "hospital": having(rows=8)}, "different numbers of rows: 'bank' 9, 'hospital' 8"),
        (
            {"bank": having(rows=9, ids=b"a"), "hospital": having(rows=9, ids=b"b")},
            "are not the same in the same order",
        ),
        (
            {"bank": having(rows=9, ids=b"a"), "hospital": having(rows=9)},
            "'bank' would compare the ids of the rows, 'hospital' would not",
        ),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(world, tools, kept, says) -> None:
    results = agreed(world, kept)
    assert all(type(error) is Mismatch and says in str(error) for error in results.values()), results
    tools.check_texts(results)


@pytest.mark.parametrize("ids", [(b"same", b"same"), (b"mine", b"")], ids=["both", "one has rows"])
def test_ids_that_are_the_same_are_gone_on_with(world, ids) -> None:
    kept = {"bank": having(rows=9 if ids[1] else 0, ids=ids[1]), "hospital": having(rows=9, ids=ids[0])}
    assert {made[2] for made in agreed(world, kept).values()} == {"xxxxx"}


@pytest.mark.parametrize(
    "count", [Kept("a", -1, 9), Kept("a", 1, -9), Kept("a" * 65, 1, 9), Kept("a", True, 9)], ids=str
)
def test_a_count_that_cannot_be_is_refused(world, count) -> None:
    results = agreed(world, {"bank": (count, None, b""), "hospital": None})
    assert type(results["hospital"]) is Mismatch and results["hospital"].party == "bank"


def test_two_jobs_have_different_names(world) -> None:
    jobs = {agreed(world, {"bank": None, "hospital": having(rows=3)})["bank"][0] for _ in range(2)}
    assert len(jobs) == 2
