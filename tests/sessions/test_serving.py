"""Sessions between processes that answer clients: sizes side by side, runs prepared ahead, and parties that disagree."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import securemodel
from protocols.channel import Label, Purpose
from protocols.errors import Mismatch, PeerError
from securemodel.engines.masked.serving import local_serving_walks, prepared_bytes
from securemodel.engines.masked.sources import DEAL_RUN, REQUEST
from securemodel.family import Family
from securemodel.sessions import serving

MANIFEST = bytes(32)
pytestmark = pytest.mark.usefixtures("no_threads_left")


@pytest.fixture(scope="module")
def families(model) -> Callable[[int], Family]:
    made = {
        count: securemodel.compile_service(
            model, torch.zeros(1, 4), weights="bank", parties=("bank", "hospital", "lab")[:count], sizes=(1, 4), clamp=(0, 1)
        )
        for count in (2, 3)
    }  # fmt: skip
    return made.__getitem__


def split(x: torch.Tensor, count: int) -> list[torch.Tensor]:
    value = (x.double() * 2.0**16).round().long()
    words = [torch.frombuffer(bytearray(os.urandom(8 * x.numel())), dtype=torch.int64) for _ in range(count - 1)]
    masks = [word.view(x.shape) for word in words]
    return [value - sum(masks, torch.zeros_like(value)), *masks]


def opened(results: Sequence[serving.Result]) -> torch.Tensor:
    return sum(result.shares[0] for result in results).double() / 2.0**16  # type: ignore[union-attr]


ASKED = [(4, 3), (1, 1), (1, 1), (4, 4), (1, 1), (1, 1), (1, 1), (1, 1), (4, 1)]


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("count", [2, 3])
def test_runs_of_all_sizes_find_what_was_prepared_for_them(worlds, families, model, count, ahead) -> None:
    family = families(count)
    xs = [torch.rand(rows, 4) for _, rows in ASKED]
    shares = [split(x, count) for x in xs]
    dealt = {}

    def party(session: serving.ServingSession) -> list[serving.Result]:
        rank = family.parties.index(session.me)
        session.load(family, model if rank == 0 else None)
        results = []
        for (size, rows), each in zip(ASKED, shares, strict=True):
            results.append(session.run_shares(size, [each[rank]], rows, MANIFEST))
            assert session.stats.rounds == family.programs[size].plan().rounds
            assert session.stats.sent_bytes == {session.me: family.programs[size].plan().sent_bytes[session.me]}
            dealt[session.me, size] = session.stats.preprocessing_bytes
        deadline = time.monotonic() + 60
        while ahead and session.runs_ahead != {1: 4, 4: 4}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return results

    results = worlds(family).run(dict.fromkeys(family.parties, party), ahead=ahead)
    for index, (x, (_, rows)) in enumerate(zip(xs, ASKED, strict=True)):
        of_run = [results[name][index] for name in family.parties]
        assert len({result.run for result in of_run}) == 1
        assert all(result.shares[0].shape == (rows, 2) for result in of_run)
        assert (opened(of_run) - model(x)).abs().max() < 1e-3
    epochs = [int(result.run.split(":")[1]) for result in results["bank"]]
    assert len(set(epochs)) == len(ASKED) and (epochs != sorted(epochs)) == ahead
    for size, program in family.programs.items():
        assert dealt[family.parties[-1], size] == program.plan().preprocessing_bytes


def test_a_result_is_told_before_the_next_run_is_prepared(worlds, families, model) -> None:
    family = families(2)
    shares, seen = split(torch.rand(1, 4), 2), {name: [] for name in family.parties}

    def party(session: serving.ServingSession) -> list[serving.Result]:
        rank, order = family.parties.index(session.me), seen[session.me]
        session.load(family, model if rank == 0 else None)
        ask, told = session._ask, []
        session._ask = lambda size: order.append("prepare") or ask(size)

        def tell(result: serving.Result) -> None:
            order.append("tell")
            told.append(result)
            raise OSError("nobody listens")

        with pytest.raises(OSError, match="nobody listens"):
            session.run_shares(1, [shares[rank]], 1, MANIFEST, tell)
        return [*told, session.run_shares(1, [shares[rank]], 1, MANIFEST)]

    results = worlds(family).run(dict.fromkeys(family.parties, party))
    assert set(map(tuple, seen.values())) == {("tell", "prepare", "prepare")}
    assert len({tuple(result.run for result in told) for told in results.values()}) == 1


def test_preparing_rests_during_a_run_that_needs_nothing_of_it(worlds, families, model, monkeypatch) -> None:
    monkeypatch.setattr(serving, "pools_of", lambda programs: {1: 4, 4: 0})
    family, going = families(2), {name: threading.Event() for name in families(2).parties}
    shares = {size: split(torch.rand(size, 4), 2) for size in family.sizes}

    def party(session: serving.ServingSession) -> list[bool]:
        rank, begun, seen = family.parties.index(session.me), going[session.me], []
        walk, finish, run = session.walks[session.me], session.channel.finish, session.run_shares
        asked = lambda size: run(size, [shares[size][rank]], size, MANIFEST)
        prepare = walk._of_size[1].run

        def prepared(*given: Any) -> Any:
            assert begun.wait(20)
            for item in prepare(*given):
                seen.append(walk._at_rest.is_set())
                yield item

        def talk() -> Any:
            begun.set()
            time.sleep(0.02)
            return finish()

        def wait() -> None:
            deadline = time.monotonic() + 60
            while session.runs_ahead[1] < 4:
                assert time.monotonic() < deadline
                time.sleep(0.01)

        session.load(family, model if rank == 0 else None)
        wait()
        walk._of_size[1].run = prepared
        asked(1)  # the worker begins with one more, which it goes on with while the next one runs
        session.channel.finish = talk
        asked(1)
        session.channel.finish = finish
        wait()
        told = list(seen)
        asked(1)
        asked(4)  # its preparation is behind that of one row: it does not wait for the end of itself
        return told

    for seen in worlds(family).run(dict.fromkeys(family.parties, party)).values():
        assert len(seen) > 4 and seen.count(False) <= 1


def test_pools_fit_in_memory_and_have_few_runs(families) -> None:
    programs = families(2).programs
    each = {size: prepared_bytes(program.graph) for size, program in programs.items()}
    assert 0 < each[1] < each[4]
    prepared = local_serving_walks(programs)["bank"]
    prepared.ask_for(1, 4)
    made = [share for _, parts in prepared._prepare(1, "run") for share in parts.values() if share is not None]
    assert sum(share.numel() * share.element_size() for share in made) <= each[4]
    assert serving.pools_of(programs) == {1: 4, 4: 4}
    assert serving.pools_of(programs, each[1] + each[4]) == {1: 1, 4: 1}
    assert serving.pools_of(programs, each[1]) == {1: 1, 4: 0}
    assert serving.pools_of(programs, 0) == {1: 0, 4: 0}


def test_a_small_memory_for_what_is_ahead_stops_no_run(worlds, families, model, monkeypatch) -> None:
    monkeypatch.setattr("securemodel.engines.masked.walk._AHEAD_BYTES", 1000)
    monkeypatch.setattr("securemodel.engines.masked.ahead._BATCH_BYTES", 200)
    family, x = families(2), torch.rand(4, 4)
    shares = split(x, 2)

    def party(session: serving.ServingSession) -> Any:
        rank = family.parties.index(session.me)
        session.load(family, model)
        return [session.run_shares(4, [shares[rank]], 4, MANIFEST) for _ in range(6)]

    results = worlds(family).run(dict.fromkeys(family.parties, party))
    for pair in zip(results["bank"], results["hospital"], strict=True):
        assert (opened(pair) - model(x)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("mine", "theirs", "ahead", "says"),
    [
        ((1, 1, MANIFEST), (1, 1, b"x" * 32), True, "runs another program"),
        ((4, 3, MANIFEST), (4, 2, MANIFEST), True, "runs another program"),
        ((4, 1, MANIFEST), (1, 1, MANIFEST), True, "the sizes differ"),
        ((4, 1, MANIFEST), (1, 1, MANIFEST), False, "the sizes differ"),
    ],
)
def test_parties_that_run_something_else_stop_before_anything_is_opened(
    worlds, families, model, mine, theirs, ahead, says
) -> None:
    family, used = families(2), []

    def party(session: serving.ServingSession) -> None:
        session.load(family, model)
        size, rows, manifest = mine if session.me == "bank" else theirs
        session.walk._parties[size]._incoming = lambda *args: used.append(args)
        session.run_shares(size, [torch.zeros(rows, 4, dtype=torch.int64)], rows, manifest)

    results = worlds(family).run(dict.fromkeys(family.parties, party), ahead=ahead)
    assert not used
    assert all(isinstance(result, PeerError) and result.party in family.parties for result in results.values()), results
    found = [error for error in results.values() if isinstance(error, Mismatch)]
    assert found and all(says in str(error) and repr(error.party) in str(error) for error in found), results


def test_one_party_that_loads_shares_while_another_loads_a_model_is_named(worlds, families, model) -> None:
    family = families(2)
    with securemodel.local(family) as session:
        session.load(family, model)
        kept = session.weight_shares()

    def party(session: serving.ServingSession) -> None:
        if session.me == "bank":
            session.load(family, model)
        else:
            session.load_shares(kept["hospital"])

    results = worlds(family).run(dict.fromkeys(family.parties, party))
    assert any(isinstance(error, Mismatch) for error in results.values()), results
    assert all(isinstance(error, PeerError) for error in results.values()), results


def test_weights_from_shares_at_rest_need_no_owner(worlds, families, model) -> None:
    family, x = families(3), torch.rand(1, 4)
    shares = split(x, 3)

    def keep(session: serving.ServingSession) -> Any:
        session.load(family, model if session.me == "bank" else None)
        return session.weight_shares()

    kept = worlds(family).run(dict.fromkeys(family.parties, keep))

    def serve(session: serving.ServingSession) -> serving.Result:
        session.load_shares(kept[session.me])
        return session.run_shares(1, [shares[family.parties.index(session.me)]], 1, MANIFEST)

    results = worlds(family).run(dict.fromkeys(family.parties, serve))
    assert (opened(list(results.values())) - model(x)).abs().max() < 1e-3


def test_parties_that_prepare_other_numbers_of_runs_are_told_before_anything_is_sent(worlds, families) -> None:
    family = families(2)
    results = worlds(family).run(
        dict.fromkeys(family.parties, lambda session: None), ahead={"bank": True, "hospital": False}
    )
    assert any(isinstance(error, Mismatch) and "runs prepared ahead" in str(error) for error in results.values()), (
        results
    )


def test_a_dealer_has_no_program_beyond_those_of_the_session(worlds, families, model) -> None:
    family = families(2)

    def party(session: serving.ServingSession) -> None:
        session.load(family, model)
        if session.me == "hospital":
            link = session.walk.source._link
            link.send(Label(99, 0, Purpose.REQUEST), [REQUEST.pack(99, 2, DEAL_RUN)])
        session.run_shares(1, [torch.zeros(1, 4, dtype=torch.int64)], 1, MANIFEST)

    world = worlds(family)
    results = world.run(dict.fromkeys(family.parties, party), ahead=False)
    world.wait_until_said("a run of program 2")
    assert all(isinstance(error, PeerError) for error in results.values()), results


def test_a_dealer_that_is_gone_is_noticed_between_two_runs(worlds, families, model) -> None:
    family = families(2)

    def party(session: serving.ServingSession) -> None:
        session.load(family, model)
        session.look()
        if session.me == "hospital":
            session.walk.source.interrupt()  # its connection ends, as when its process does
        until = time.monotonic() + 60
        while time.monotonic() < until:
            session.look()
            time.sleep(0.02)

    results = worlds(family).run(dict.fromkeys(family.parties, party))
    assert all(isinstance(error, PeerError) for error in results.values()), results
    assert results["hospital"].party == "dealer" and results["bank"].party in ("dealer", "hospital")
