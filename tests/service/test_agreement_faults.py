"""Parties that crash, lanes that fail, disks that are full: everybody gets a word, and nobody two results for one id."""

import asyncio
import os
import sys
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols import interpreter
from protocols.errors import FileError
from securemodel.service.agreement import Batch, Limits
from securemodel.service.desk import LaneDown, Refused
from securemodel.service.journal import Entry, Journal, JournalFailed
from securemodel.service.messages import Run
from tests.service.parties import WEIGHT, Parties, added, codes, new_id

QUICK = Limits(share_wait_s=0.3, restart_wait_s=1.5)
X = np.array([[3, -1, 2**62], [0, 1, -(2**63)]], dtype=np.int64)


async def both_computed(service: Parties) -> None:
    """Until all parties have the outputs of the one run; they cannot tell each other so."""
    while not all(any(b.recorded for b in desk._machine.batches.values()) for desk in service.desks.values()):
        await asyncio.sleep(0.005)


def spent(service: Parties) -> list[int]:
    return [sum(desk._budgets._spent.values()) for desk in service.desks.values()]


@pytest.mark.parametrize("who", ["bank", "hospital"])
def test_between_computed_and_released_a_crash_loses_the_result_everywhere(tmp_path, who) -> None:
    async def test(service: Parties) -> None:
        id = new_id()
        bodies = service.bodies(X, id)
        service.rooms[0].seconds = dict.fromkeys((1, 8, 32), 0.1)
        asking = {name: asyncio.create_task(service.send({name: body})) for name, body in bodies.items()}
        while not all(desk._machine.batches for desk in service.desks.values()):
            await asyncio.sleep(0.005)
        service.network.cut("hospital")
        await both_computed(service)
        await service.kill(who)
        service.network.broken.clear()
        await service.start(who)
        [other] = set(service.names) - {who}
        refusal = (await asking[other])[other]
        assert refusal.code == "result_lost" and refusal.parties
        await asyncio.sleep(0.2)
        assert codes(await service.send(bodies)) == {"result_lost"}
        assert spent(service) == [0, 0] and service.rooms[0].epoch == 1
        assert (await service.ask(X) == X @ WEIGHT).all()
        asking[who].cancel()
        for name in service.names:
            await service.desks.pop(name).close()
            journal = Journal(tmp_path / f"{name}.sqlite")
            [entry] = [entry for entry in journal.recent(600) if entry.id == id]
            assert entry.state == "result_lost" and sum(journal.spent().values()) == len(X)
            journal.close()

    Parties(2, tmp_path, limits=QUICK).run(test)


@pytest.mark.parametrize("who", [["hospital", "bank"], ["bank", "hospital"]])
def test_outputs_that_the_leader_alone_has_in_its_journal_are_charged_nowhere(tmp_path, who) -> None:
    async def test(service: Parties) -> None:
        id, never = new_id(), Future()
        bodies = service.bodies(X, id)
        service.desks["hospital"]._journal.write = lambda entries: never
        asking = asyncio.create_task(service.send(bodies))
        while not any(batch.recorded for batch in service.desks["bank"]._machine.batches.values()):
            await asyncio.sleep(0.005)
        for name in who:
            await service.kill(name)
        for name in who:
            await service.start(name)
        while service.desks["bank"]._records.known(id).state != "result_lost":
            await asyncio.sleep(0.01)
        asking.cancel()
        assert spent(service) == [0, 0]
        assert (await service.send({"bank": bodies["bank"]}))["bank"].code == "result_lost"
        await service.desks.pop("bank").close()
        journal = Journal(tmp_path / "bank.sqlite")
        assert [entry.state for entry in journal.recent(600)] == ["result_lost"]
        assert sum(journal.spent().values()) == 0
        journal.close()

    Parties(2, tmp_path, limits=QUICK).run(test)


@pytest.mark.parametrize("who", ["bank", "hospital", "registry"])
def test_an_answered_id_is_never_computed_again_after_a_restart(tmp_path, who) -> None:
    async def test(service: Parties) -> None:
        id = new_id()
        bodies = service.bodies(X, id)
        first = await service.send(bodies)
        await service.kill(who)
        await service.start(who)
        await asyncio.sleep(0.1)
        again = await service.send(bodies)
        assert again[who].code == "gone"
        assert all(again[name].run == first[name].run for name in service.names if name != who)
        assert service.rooms[0].epoch == 1 and spent(service) == [len(X)] * 3
        assert codes(await service.send({who: service.bodies(X, id)[who]})) == {"id_reused"}

    Parties(3, tmp_path, limits=QUICK).run(test)


@pytest.mark.parametrize("who", ["bank", "hospital"])
def test_shares_of_the_others_wait_for_a_party_that_restarts(tmp_path, who) -> None:
    async def test(service: Parties) -> None:
        service.rooms[0].up = False
        service.rooms[0].seconds = dict.fromkeys((1, 8, 32), 0.01)
        bodies = service.bodies(X, new_id())
        for desk in service.desks.values():
            desk.check_ready = lambda *_: None
        asking = {name: asyncio.create_task(service.send({name: body})) for name, body in bodies.items()}
        await asyncio.sleep(0.05)
        await service.kill(who)
        service.rooms[0].up = True
        await service.start(who)
        [other] = set(service.names) - {who}
        answers = {**await service.send({who: bodies[who]}), **await asking[other]}
        assert (added(answers) == X @ WEIGHT).all()
        asking[who].cancel()

    Parties(2, tmp_path, limits=QUICK).run(test)


def test_a_run_waits_for_a_lane_that_is_ready_a_little_later_than_the_leaders(tmp_path) -> None:
    async def test(service: Parties) -> None:
        room = service.rooms[0]
        room.late.add("hospital")
        room.fail("hospital")  # a new session, in which the bank's lane is already
        service.desks["hospital"].check_ready = lambda *_: None
        asking = asyncio.create_task(service.ask(X))
        await asyncio.sleep(0.2)
        assert not asking.done() and not room.runs
        room.late.clear()
        assert (await asking == X @ WEIGHT).all() and room.epoch == 1

    Parties(2, tmp_path).run(test)


def test_a_run_of_a_session_that_is_over_fails_and_meets_no_other(tmp_path) -> None:
    async def test(service: Parties) -> None:
        room, desk = service.rooms[0], service.desks["bank"]
        assert (await service.ask(X) == X @ WEIGHT).all()
        room.fail("hospital")
        old = Run(1 << 62, 0, "linear", 1, 1, [], b"", f"{int(room.session, 16) - 1:016x}")
        desk._machine.batches[old.run] = Batch(old)
        await asyncio.wait_for(desk._run(old), 5)
        assert old.run not in desk._machine.batches and len(room.runs) == 1
        assert (await service.ask(X) == X @ WEIGHT).all() and len(room.runs) == 2

    Parties(2, tmp_path).run(test)


def test_a_run_whose_session_never_comes_ends_with_the_next_run_of_its_lane(tmp_path) -> None:
    async def test(service: Parties) -> None:
        desk = service.desks["hospital"]
        old = Run(1, 0, "linear", 1, 1, [], b"", "f" * 16)
        desk._machine.batches[old.run] = Batch(old)
        waiting = asyncio.create_task(desk._run(old))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        assert (await service.ask(X) == X @ WEIGHT).all()
        await waiting
        assert old.run not in desk._machine.batches and len(service.rooms[0].runs) == 1

    Parties(2, tmp_path).run(test)


def test_a_failed_run_is_run_again_in_another_epoch(tmp_path) -> None:
    async def test(service: Parties) -> None:
        room = service.rooms[0]
        room.seconds = dict.fromkeys((1, 8, 32), 0.05)
        asking = asyncio.create_task(service.ask(X))
        while room.epoch < 1:
            await asyncio.sleep(0.005)
        room.up = False
        await asyncio.sleep(0.1)
        room.up = True
        assert (await asking == X @ WEIGHT).all() and room.epoch == 2
        assert len({manifest for _, manifest in room.runs}) == 2

    Parties(2, tmp_path, limits=QUICK).run(test)


def test_runs_that_wait_for_preprocessing_are_refused_by_name(tmp_path) -> None:
    async def test(service: Parties) -> None:
        room, now = service.rooms[0], asyncio.get_running_loop().time
        room.seconds, met = dict.fromkeys((1, 8, 32), 0.01), room.meet

        async def dry(wait_s: float) -> dict:
            return await service.send(service.bodies(X, new_id(), deadline=now() + wait_s))

        async def waiting(party, job):
            room.dry.setdefault("hospital", now() - 5)
            return await met(party, job) if party != "hospital" else await asyncio.Event().wait()

        room.meet = waiting
        asking = asyncio.create_task(dry(0.4))
        while "hospital" not in room.dry:
            await asyncio.sleep(0.01)
        queued, begun = await dry(0.5), await asking
        begin = now()
        at_once = await dry(3.0)
        assert now() - begin < 1.0
        for said in (begun, queued, at_once):
            assert codes(said) == {"no_preprocessing"}
            assert {refusal.parties for refusal in said.values()} == {("hospital",)}
        for desk in service.desks.values():
            desk.check_ready()
        room.dry["hospital"] -= 6
        await asyncio.sleep(0.1)
        for desk in service.desks.values():
            with pytest.raises(Refused) as error:
                desk.check_ready("linear")
            assert error.value.code == "no_preprocessing" and error.value.retry_after
        room.meet = met
        room.dry.clear()
        for task in service.desks["hospital"]._tasks:
            task.cancel()
        room.fail("hospital")
        await asyncio.sleep(0.1)
        assert (await service.ask(X) == X @ WEIGHT).all()

    Parties(2, tmp_path, limits=QUICK).run(test)


def test_runs_that_always_fail_end_in_a_refusal(tmp_path) -> None:
    async def test(service: Parties) -> None:
        room = service.rooms[0]
        room.meet = failing
        said = await service.send(service.bodies(X, new_id()))
        assert codes(said) == {"peer_down"} and spent(service) == [0, 0]

    async def failing(party, job):
        raise RuntimeError("an engine's own error")

    Parties(2, tmp_path, limits=QUICK).run(test)


def test_what_one_party_computed_and_the_others_never_is_charged_nowhere(tmp_path) -> None:
    async def test(service: Parties) -> None:
        batches = service.desks["bank"]._machine.batches

        async def fails_at_the_hospital(party, job):
            while party == "hospital":
                if job.run in batches and batches[job.run].recorded:
                    raise LaneDown("its engine died", "hospital")
                await asyncio.sleep(0.005)
            return f"session:{job.run}", [job.shares[0] @ WEIGHT]

        service.rooms[0].meet = fails_at_the_hospital
        said = await service.send(service.bodies(X, new_id()))
        assert codes(said) == {"peer_down"} and spent(service) == [0, 0]
        await service.desks.pop("bank").close()
        journal = Journal(tmp_path / "bank.sqlite")
        assert [entry.state for entry in journal.recent(600)] == ["result_lost"]
        assert sum(journal.spent().values()) == 0
        journal.close()

    Parties(2, tmp_path, limits=QUICK).run(test)


def test_a_broken_link_is_refused_by_name_and_loses_nothing(tmp_path) -> None:
    async def test(service: Parties) -> None:
        service.rooms[0].seconds = dict.fromkeys((1, 8, 32), 0.05)
        asking = asyncio.create_task(service.ask(X))
        await asyncio.sleep(0.02)
        service.network.cut("hospital")
        said = await service.send(service.bodies(X, new_id()))
        assert codes(said) == {"peer_down"}
        assert (said["bank"].parties, said["hospital"].parties) == (("hospital",), ("bank",))
        service.network.join("hospital")
        assert (await asking == X @ WEIGHT).all()

    Parties(2, tmp_path, limits=QUICK).run(test)


def test_a_follower_without_its_leader_refuses_at_the_deadline(tmp_path) -> None:
    async def test(service: Parties) -> None:
        service.rooms[0].up = False
        for desk in service.desks.values():
            desk.check_ready = lambda *_: None
        now = asyncio.get_running_loop().time()
        asking = asyncio.create_task(service.send(service.bodies(X, new_id(), deadline=now + 0.3)))
        await asyncio.sleep(0.05)
        service.network.cut("hospital")
        assert codes(await asking) == {"peer_down"}
        service.network.join("hospital")
        service.rooms[0].up = True
        assert (await service.ask(X) == X @ WEIGHT).all() and spent(service) == [len(X)] * 2

    Parties(2, tmp_path, limits=QUICK).run(test)


@pytest.mark.parametrize("who", ["bank", "hospital"])
def test_a_full_disk_is_refused_by_name_and_recovers_without_hands(tmp_path, who) -> None:
    async def test(service: Parties) -> None:
        database = service.journals[who]._database
        [[pages]] = database.execute("PRAGMA page_count")
        database.execute(f"PRAGMA max_page_count = {pages}")
        seen: set[str] = set()
        while "result_lost" not in seen:
            seen |= codes(await service.send(service.bodies(X, new_id())))
        await asyncio.sleep(0.1)
        said = await service.send(service.bodies(X, new_id()))
        assert codes(said) == {"peer_down"} and all(refusal.parties == (who,) for refusal in said.values())
        database.execute("PRAGMA max_page_count = 1000000")
        while codes(said) != {"answer"}:
            await asyncio.sleep(0.1)
            said = await service.send(service.bodies(X, new_id()))

    Parties(2, tmp_path, limits=QUICK).run(test)


def test_a_journal_does_not_wait_long_for_a_loop_that_is_busy(tmp_path, monkeypatch) -> None:
    before = sys.getswitchinterval()
    monkeypatch.setattr(interpreter, "_SWITCH_S", before / 2)
    journal = Journal(tmp_path / "bank.sqlite")
    try:
        assert sys.getswitchinterval() < before
    finally:
        sys.setswitchinterval(before)
        journal.close()


def test_what_could_not_be_written_is_written_later(tmp_path) -> None:
    async def test(service: Parties) -> None:
        id, journal, failed = new_id(), service.journals["bank"], asyncio.Event()
        assert (await service.ask(X, id) == X @ WEIGHT).all()
        loop, write = asyncio.get_running_loop(), journal._write

        def fail(entries: list[Entry]) -> None:
            loop.call_soon_threadsafe(failed.set)
            raise JournalFailed("the disk is full")

        journal._write = fail
        await failed.wait()
        await asyncio.sleep(0.01)
        journal._write = write
        await service.desks.pop("bank").close()
        journal = Journal(tmp_path / "bank.sqlite")
        assert [entry.state for entry in journal.recent(600) if entry.id == id] == ["released"]
        journal.close()

    Parties(2, tmp_path).run(test)


def test_a_damaged_journal_is_an_error_at_the_start(tmp_path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    entries = [Entry(new_id(), 1, b"\0" * 32, "k", "m", 1, "computed", "s:1") for _ in range(500)]
    journal.write(entries).result()
    with pytest.raises(FileError, match="locked"):
        Journal(path)
    journal.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(os.urandom(size // 4))
    with pytest.raises(FileError, match=r"move the file"):
        Journal(path)
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(FileError, match="not a database"):
        Journal(path)


def test_a_journal_keeps_what_was_written_and_charges_once(tmp_path) -> None:
    path, id = tmp_path / "journal.sqlite", new_id()
    journal = Journal(path)

    def entry(state: str) -> Entry:
        return Entry(id, 20_000_000, b"\1" * 32, "k", "m", 5, state, "s:1")

    for state, left in (
        ("computed", 5),
        ("computed", 5),
        ("released", 5),
        ("result_lost", 0),
        ("result_lost", 0),
        ("computed", 5),
    ):
        journal.write([entry(state)]).result()
        assert journal.spent() == {("k", "m", 20_000_000): left}
    journal.close()
    journal = Journal(path)
    assert journal.recent(600) == [entry("computed")] and journal.recent(-5) == []
    journal.close()


STEPS = st.lists(
    st.sampled_from(["ask", "ask", "ask", "bank", "hospital", "registry", "break", "link", "wait"]), max_size=12
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_whatever_happens_everybody_gets_a_word_and_nobody_two_results(steps, tmp_path_factory) -> None:
    said: dict[str, list] = {}
    inputs: dict[str, np.ndarray] = {}

    async def client(service: Parties, number: int) -> None:
        """Sends until every party answered or refused; where a party crashed meanwhile, it sends the same body again."""
        id = new_id()
        inputs[id] = np.full((1 + number % 3, 3), number + 1, np.int64)
        for name, body in service.bodies(inputs[id], id).items():
            tasks.append(asyncio.create_task(until_told(service, name, body)))

    async def until_told(service: Parties, name: str, body) -> None:
        while True:
            desk = service.desks.get(name)
            if desk is None:
                await asyncio.sleep(0.01)
                continue
            asked = asyncio.create_task(desk.submit(body))
            while not asked.done() and service.desks.get(name) is desk:
                await asyncio.wait([asked], timeout=0.02)
            if asked.done():
                error = asked.exception()
                assert error is None or isinstance(error, Refused)
                if error is None or error.code != "peer_down":
                    said.setdefault(body.id, []).append((name, error or asked.result()))
                    return
                await asyncio.sleep(0.05)
            asked.cancel()

    async def test(service: Parties) -> None:
        room = service.rooms[0]
        for number, step in enumerate([*steps, "wait"]):
            if step == "ask":
                await client(service, number)
            elif step in service.names:
                await service.kill(step)
                room.session = f"{number:016x}"
                await service.start(step)
            elif step == "break":
                room.fail("hospital")
            elif step == "link":
                service.network.cut("hospital")
                await asyncio.sleep(0.01)
                service.network.join("hospital")
            await asyncio.sleep(0.0 if step == "ask" else 0.004 * (number % 4))
        await asyncio.gather(*tasks)
        for id, x in inputs.items():
            assert len(said[id]) == 3
            answers = {name: answer for name, answer in said[id] if not isinstance(answer, Refused)}
            assert len({(a.run, a.row) for a in answers.values()}) <= 1
            if len(answers) == 3:
                assert (added(answers) == x @ WEIGHT).all()
        assert len(room.runs) == len(set(room.runs))
        assert (await service.ask(X) == X @ WEIGHT).all()

    tasks: list[asyncio.Task] = []
    Parties(3, tmp_path_factory.mktemp("service"), limits=QUICK).run(test)
