"""Desks agree on batches: right results, refusals by name, ids, budgets, versions, deadlines."""

import asyncio
import time
from dataclasses import replace

import numpy as np
import pytest

from securemodel.edge.wire import MAX_DEADLINE_MS
from securemodel.service import journal
from securemodel.service.agreement import Limits
from securemodel.service.desk import Refused
from securemodel.service.headers import MAX_SKEW_MS
from tests.service.parties import WEIGHT, Parties, added, codes, new_id

EDGES = np.array([[0, 1, -1], [2**16 - 1, 2**62, -(2**63)], [2**63 - 1, -(2**62), 2**32]], dtype=np.int64)


@pytest.mark.parametrize("count", [2, 3])
def test_shares_of_answers_add_up_to_the_result(tmp_path, count) -> None:
    async def test(service: Parties) -> None:
        for x in (EDGES, EDGES[:1]):
            assert (await service.ask(x) == x @ WEIGHT).all()

    Parties(count, tmp_path).run(test)


def test_many_requests_share_runs(tmp_path) -> None:
    async def test(service: Parties) -> None:
        xs = [np.full((1 + n % 3, 3), n, np.int64) for n in range(60)]
        results = await asyncio.gather(*(service.ask(x) for x in xs))
        assert all((result == x @ WEIGHT).all() for result, x in zip(results, xs, strict=True))
        assert service.rooms[0].epoch < 20

    Parties(2, tmp_path).run(test)


def test_rows_that_depend_on_each_other_are_never_run_with_others(tmp_path) -> None:
    async def test(service: Parties) -> None:
        await asyncio.gather(*(service.ask(EDGES[:1]) for _ in range(6)))
        assert service.rooms[0].epoch == 6

    Parties(2, tmp_path, alone=True).run(test)


def test_several_lanes_run_at_once(tmp_path) -> None:
    async def test(service: Parties) -> None:
        for room in service.rooms:
            room.seconds = {32: 0.05, 8: 0.05, 1: 0.05}
        xs = [np.full((32, 3), n, np.int64) for n in range(8)]
        await asyncio.gather(*(service.ask(x) for x in xs))
        assert min(room.epoch for room in service.rooms) >= 2

    Parties(2, tmp_path, lanes=2).run(test)


@pytest.mark.parametrize("missing", ["bank", "hospital", "registry"])
def test_a_share_that_does_not_come_is_named_and_the_others_are_answered(tmp_path, missing) -> None:
    async def test(service: Parties) -> None:
        bodies = service.bodies(EDGES, new_id())
        del bodies[missing]
        said, result = await asyncio.gather(service.send(bodies), service.ask(EDGES))
        assert codes(said) == {"share_missing"} and (result == EDGES @ WEIGHT).all()
        assert all(refusal.parties == (missing,) for refusal in said.values())

    Parties(3, tmp_path, limits=Limits(share_wait_s=0.2)).run(after_start(test))


def test_soon_after_a_start_a_leader_waits_for_its_share_until_the_deadline_and_no_longer(tmp_path) -> None:
    async def test(service: Parties) -> None:
        body = service.bodies(EDGES, new_id(), deadline=time.monotonic() + 0.3)["hospital"]
        [refusal] = (await service.send({"hospital": body})).values()
        assert (refusal.code, refusal.parties) == ("share_missing", ("bank",))

    Parties(2, tmp_path, limits=Limits(restart_wait_s=30.0)).run(test)


@pytest.mark.parametrize("differs", [{"commit": "0" * 64}, {"version": 1}])
def test_bodies_that_do_not_belong_together_are_refused_and_waste_no_run(tmp_path, differs) -> None:
    async def test(service: Parties) -> None:
        id = new_id()
        bodies = service.bodies(EDGES, id)
        bodies["hospital"] = service.bodies(EDGES, id, **differs)["hospital"]
        said = await service.send(bodies)
        assert codes(said) == {"commit_mismatch"} and service.rooms[0].epoch == 0
        assert all(refusal.parties == ("hospital",) for refusal in said.values())

    Parties(3, tmp_path).run(test)


def test_an_id_gives_the_same_answer_again_and_to_no_other_body_or_key(tmp_path) -> None:
    async def test(service: Parties) -> None:
        id = new_id()
        bodies = service.bodies(EDGES, id)
        first, again = await asyncio.gather(service.send(bodies), service.send(bodies))
        later = await service.send(bodies)
        for name in service.names:
            assert first[name].shares[0].tobytes() == again[name].shares[0].tobytes() == later[name].shares[0].tobytes()
        assert service.rooms[0].epoch == 1
        assert codes(await service.send(service.bodies(EDGES, id))) == {"id_reused"}
        assert (added(later) == EDGES @ WEIGHT).all()
        desk = service.desks["bank"]
        found = desk.find(id, "k")
        assert (found.run, found.model) == (first["bank"].run, "linear")
        assert found.stages.keys() == {"queue", "run", "agree"} and min(found.stages.values()) >= 0
        for ask in (lambda: desk.find(id, "other"), lambda: desk.find(new_id(), "k")):
            with pytest.raises(Refused) as refusal:
                ask()
            assert refusal.value.code == "not_found"

    Parties(2, tmp_path).run(test)


def test_budgets_hold_at_every_party_and_are_given_back(tmp_path) -> None:
    async def test(service: Parties) -> None:
        assert codes(await service.send(service.bodies(EDGES, new_id()))) == {"answer"}
        assert codes(await service.send(service.bodies(EDGES, new_id()))) == {"budget"}
        lonely = service.bodies(EDGES[:2], new_id())
        del lonely["hospital"]
        assert codes(await service.send(lonely)) == {"share_missing"}
        assert codes(await service.send(service.bodies(EDGES[:2], new_id()))) == {"answer"}
        assert codes(await service.send(service.bodies(EDGES[:2], new_id(), key_id="another"))) == {"answer"}

    Parties(2, tmp_path, rows_per_day=5, limits=Limits(share_wait_s=0.2)).run(after_start(test))


def test_one_party_alone_may_refuse_for_its_budget(tmp_path) -> None:
    async def test(service: Parties) -> None:
        service.desks["hospital"]._models["linear"][1] = service.models[0].__class__(
            **{**vars(service.models[0]), "rows_per_day": 1}
        )
        said = await service.send(service.bodies(EDGES, new_id()))
        assert codes(said) == {"budget"} and said["bank"].parties == ("hospital",)

    Parties(2, tmp_path).run(test)


def test_what_cannot_be_answered_in_time_is_refused_at_once(tmp_path) -> None:
    async def test(service: Parties) -> None:
        service.rooms[0].seconds = {1: 30.0, 8: 30.0, 32: 30.0}
        service.desks["bank"].lanes_changed()
        said = await service.send(service.bodies(EDGES, new_id()))
        assert codes(said) == {"deadline"} and service.rooms[0].epoch == 0

    Parties(2, tmp_path).run(test)


def test_a_run_that_does_not_end_is_refused_at_the_deadline_and_its_result_can_be_asked_for_later(tmp_path) -> None:
    async def test(service: Parties) -> None:
        goes_on, meet = asyncio.Event(), service.rooms[0].meet

        async def stuck(party, job):
            await goes_on.wait()
            return await meet(party, job)

        service.rooms[0].meet = stuck
        id, now = new_id(), time.monotonic()
        bodies = service.bodies(EDGES, id, deadline=now + 0.2)
        assert codes(await service.send(bodies)) == {"deadline"}
        goes_on.set()
        later = {name: replace(body, deadline=now + 60) for name, body in bodies.items()}
        assert (added(await service.send(later)) == EDGES @ WEIGHT).all() and service.rooms[0].epoch == 1

    Parties(2, tmp_path).run(test)


def test_a_full_queue_is_refused_with_when_to_come_again(tmp_path) -> None:
    async def test(service: Parties) -> None:
        service.rooms[0].seconds = dict.fromkeys((1, 8, 32), 0.05)
        said = await asyncio.gather(*(service.send(service.bodies(EDGES, new_id())) for _ in range(8)))
        assert {"answer", "queue_full"} == set.union(*map(codes, said))
        full = [r for answers in said for r in answers.values() if isinstance(r, Refused)]
        assert all(refusal.retry_after and refusal.retry_after > 0 for refusal in full)

    Parties(2, tmp_path, limits=Limits(queue_rows=9)).run(test)


def test_what_waits_can_be_withdrawn_everywhere(tmp_path) -> None:
    async def test(service: Parties) -> None:
        service.rooms[0].seconds = dict.fromkeys((1, 8, 32), 0.3)
        running = asyncio.create_task(service.ask(EDGES))
        await asyncio.sleep(0.05)
        for name in service.names:
            id = new_id()
            waiting = asyncio.create_task(service.send(service.bodies(EDGES, id)))
            await asyncio.sleep(0.02)
            assert service.desks[name].find(id, "k") == "held"
            await service.desks[name].withdraw(id, "k")
            assert codes(await waiting) == {"gone"}
        assert (await running == EDGES @ WEIGHT).all() and service.rooms[0].epoch == 1

    Parties(2, tmp_path).run(test)


def test_a_request_without_version_keeps_the_one_that_was_current(tmp_path) -> None:
    async def test(service: Parties) -> None:
        first = await service.send(service.bodies(EDGES, new_id()))
        for name, desk in service.desks.items():
            desk.add(
                service.models[0].__class__(**{**vars(service.models[0]), "version": 2}), [room2.lane(name, version=2)]
            )
        service.rooms[0].seconds = room2.seconds = dict.fromkeys((1, 8, 32), 0.05)
        before = [asyncio.create_task(service.ask(EDGES)) for _ in range(20)]
        await asyncio.sleep(0)
        service.desks["bank"].switch("linear", 2)
        during = [asyncio.create_task(service.ask(EDGES)) for _ in range(20)]
        for desk in service.desks.values():
            await desk.idle("linear", 1)
            desk.remove("linear", 1)
        assert all((result == EDGES @ WEIGHT).all() for result in await asyncio.gather(*before, *during))
        last = await service.send(service.bodies(EDGES, new_id()))
        assert {a.version for a in first.values()} == {1} and {a.version for a in last.values()} == {2}
        assert list(service.desks["hospital"].models["linear"]) == [2]
        assert codes(await service.send(service.bodies(EDGES, new_id(), version=1))) == {"not_found"}

    service = Parties(2, tmp_path)
    room2 = service.rooms[0].__class__(service.names, WEIGHT, dict(service.rooms[0].seconds))
    service.run(test)


@pytest.mark.parametrize("who", ["bank", "hospital"])
def test_a_drain_finishes_what_waits_and_takes_nothing_new(tmp_path, who) -> None:
    async def test(service: Parties) -> None:
        service.rooms[0].seconds = dict.fromkeys((1, 8, 32), 0.05)
        waiting = [asyncio.create_task(service.ask(np.full((32, 3), n, np.int64))) for n in range(5)]
        await asyncio.sleep(0.02)
        await service.desks[who].drain()
        await asyncio.gather(*waiting)
        assert codes(await service.send(service.bodies(EDGES, new_id()))) == {"draining"}
        for desk in service.desks.values():
            with pytest.raises(Refused, match=who):
                desk.check_ready()

    Parties(2, tmp_path).run(test)


def after_start(test):
    """Once the leader does not wait any more for clients that have to send their shares again after its start."""

    async def later(service: Parties) -> None:
        service.desks["bank"]._machine._started = time.monotonic() - 1e3
        await test(service)

    return later


def test_an_id_is_known_for_longer_than_a_copy_of_its_request_is_good_for() -> None:
    good_s = (2 * MAX_SKEW_MS + MAX_DEADLINE_MS) / 1000  # from a clock that is ahead to one that is behind
    assert good_s < Limits().keep_s < journal._KEPT_S
