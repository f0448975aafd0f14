"""One session, several threads or tasks: every answer is right, calls keep their order, mistakes have a name."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import securemodel
from protocols.errors import InputError, ProtocolError
from securemodel.program import Program
from securemodel.sessions.session import Session


def close(made: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(made, expected.detach(), atol=2**-10, rtol=0)


def many(tools, count: int = 60) -> list[torch.Tensor]:
    return [tools.rows(5 if i % 3 else 2, seed=i) for i in range(count)]


def all_right(made: list[torch.Tensor], given: list[torch.Tensor], model: torch.nn.Module) -> None:
    for y, x in zip(made, given, strict=True):
        close(y, model(x))


class Slow:
    """Batches that wait in the middle of a run_batches() until they are let go."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.begun, self.go_on = x, threading.Event(), threading.Event()

    def __iter__(self):
        yield (self.x,)
        self.begun.set()
        assert self.go_on.wait(20)
        yield (self.x,)


# ---- threads
def test_threads_of_a_local_session_get_their_own_answers(program: Program, tools) -> None:
    given, model = many(tools), program.model
    with securemodel.local(program) as session, ThreadPoolExecutor(4) as pool:
        all_right(list(pool.map(session.run, given)), given, model)


def test_threads_of_a_paillier_session_get_their_own_answers(tools) -> None:
    model = torch.nn.Linear(4, 2).eval()
    program = tools.make_program(model, protocol="paillier", insecure_key_bits=512)
    given = many(tools, 12)
    with securemodel.local(program) as session, ThreadPoolExecutor(4) as pool:
        all_right(list(pool.map(session.run, given)), given, model)


def test_threads_of_a_remote_session_get_their_own_answers(world, program: Program, tools) -> None:
    given = many(tools, 24)

    def task(session: Session) -> list[torch.Tensor]:
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(session.run, given if session.me == "hospital" else [None] * len(given)))

    results = world.run(dict.fromkeys(program.parties, task))
    all_right(results["hospital"], given, program.model)


def test_threads_with_rows_that_belong_to_other_parties_rows_are_refused(worlds, two_owners: Program, tools) -> None:
    x = tools.rows(2)

    def task(session: Session) -> list:
        mine = (x, None) if session.me == "bank" else (None, x)
        with ThreadPoolExecutor(3) as pool:
            return [f.result() for f in [pool.submit(session.run, *mine) for _ in range(12)]]

    results = worlds(two_owners).run(dict.fromkeys(two_owners.parties, task))
    assert all(isinstance(error, ProtocolError) for error in results.values()), results
    assert any("two threads of party" in str(error) for error in results.values()), results


def test_calls_keep_the_order_in_which_they_came(program: Program, tools) -> None:
    slow, given, ran = Slow(tools.rows(2)), [tools.rows(2, seed=i) for i in range(5)], []
    with securemodel.local(program) as session:
        run = session._run
        session._run = lambda inputs: (ran.append(inputs[0]), run(inputs))[1]
        first = threading.Thread(target=lambda: list(session.run_batches(slow, 4)))
        first.start()
        assert slow.begun.wait(20)
        later = [threading.Thread(target=session.run, args=(x,)) for x in given]
        for i, thread in enumerate(later):
            thread.start()
            while len(session._turns._line) < i + 2:
                time.sleep(0.005)
        slow.go_on.set()
        for thread in (first, *later):
            thread.join(20)
    assert list(map(id, ran)) == list(map(id, given))


def test_threads_with_a_session_each_share_a_model(tools) -> None:
    """Compiling and probing the rows of a model leave it as it was, whatever other threads do with it."""
    model, given = tools.make_model(), many(tools, 8)
    before, forward = dict(model.named_parameters()), dict(vars(model))

    def whole(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with securemodel.local(tools.make_program(model)) as session:
            return session.run(x), model(x)

    with ThreadPoolExecutor(4) as pool:
        for x, (made, plain) in zip(given, pool.map(whole, given), strict=True):
            close(made, model(x))
            assert torch.equal(plain, model(x))
    assert vars(model).keys() == forward.keys()
    assert all(before[name] is tensor for name, tensor in model.named_parameters())


# ---- asyncio
def test_asyncio_tasks_get_their_own_answers(program: Program, tools) -> None:
    given = many(tools, 20)

    async def main() -> list[torch.Tensor]:
        return await asyncio.gather(*(session.run_async(x) for x in given))

    with securemodel.local(program) as session:
        all_right(asyncio.run(main()), given, program.model)


def test_asyncio_goes_on_while_a_run_is_under_way(program: Program, tools) -> None:
    slow = Slow(tools.rows(2))

    async def main() -> torch.Tensor:
        made = asyncio.create_task(session.run_async(tools.rows(2)))
        await asyncio.sleep(0)
        assert not made.done()
        slow.go_on.set()
        return await made

    with securemodel.local(program) as session:
        other = threading.Thread(target=lambda: list(session.run_batches(slow, 4)))
        other.start()
        assert slow.begun.wait(20)
        close(asyncio.run(main()), program.model(tools.rows(2)))
        other.join(20)


def test_a_cancelled_task_leaves_the_session_in_order(world, program: Program, tools) -> None:
    """Its run is made all the same: otherwise the peers' later runs would meet other rows."""
    given = many(tools, 6)

    async def main(session: Session) -> list:
        mine = [x if session.me == "hospital" else None for x in given]
        tasks = [asyncio.create_task(session.run_async(x)) for x in mine]
        await asyncio.sleep(0)
        if session.me == "hospital":
            tasks[0].cancel()
            tasks[3].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = world.run(dict.fromkeys(program.parties, lambda session: asyncio.run(main(session))))["hospital"]
    for i, (made, x) in enumerate(zip(results, given, strict=True)):
        if i in (0, 3):
            assert isinstance(made, asyncio.CancelledError)
        else:
            close(made, program.model(x))


# ---- mistakes
def test_a_call_inside_a_call_is_an_error_and_no_deadlock(program: Program, tools) -> None:
    x = tools.rows(2)

    def asks_inside():
        yield (x,)
        session.run(x)

    with securemodel.local(program) as session:
        with pytest.raises(InputError, match="inside one of its own calls"):
            list(session.run_batches(asks_inside(), 4))
        batches = session.run_batches([(x,), (x,)], 4)
        next(batches)
        with pytest.raises(InputError, match="inside one of its own calls"):
            session.run(x)
        with pytest.raises(InputError, match="inside one of its own calls"):
            asyncio.run(session.run_async(x))
        batches.close()
        close(session.run(x), program.model(x))
        batches = session.run_batches([(x,), (x,)], 4)
        next(batches), next(batches)
        close(session.run(x), program.model(x))  # the last batch is known, so the call has ended


def test_closing_waits_for_the_run_under_way_and_fails_those_that_wait(program: Program, tools) -> None:
    slow, x = Slow(tools.rows(2)), tools.rows(2)
    session = securemodel.local(program)
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(lambda: list(session.run_batches(slow, 4)))
        assert slow.begun.wait(20)
        waiting = pool.submit(session.run, x)
        closing = pool.submit(session.close)
        time.sleep(0.1)
        assert not closing.done()
        slow.go_on.set()
        closing.result(20)
        for call in (running, waiting):
            assert not isinstance(call.exception(20), (AttributeError, TypeError, RuntimeError))
        with pytest.raises(ProtocolError, match="this session is closed"):
            waiting.result(20)
    with pytest.raises(ProtocolError, match="this session is closed"):
        asyncio.run(session.run_async(x))


def test_closing_does_not_wait_for_batches_that_nobody_asks_for(program: Program, tools) -> None:
    x = tools.rows(2)
    session = securemodel.local(program)
    batches = session.run_batches([(x,)] * 3, 6)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(next, batches).result(20)
    session.close()
    with pytest.raises(ProtocolError, match="this session is closed"):
        next(batches)


@pytest.mark.parametrize("copied", [pickle.dumps, copy.deepcopy, copy.copy])
def test_a_session_cannot_be_copied(program: Program, copied) -> None:
    with securemodel.local(program) as session, pytest.raises(InputError, match="cannot be copied"):
        copied(session)


def said_in_a_fork(action) -> str:
    """The first line of the error that an action raises in a fork of this process."""
    near, far = multiprocessing.Pipe()

    def child() -> None:
        try:
            action()
            far.send("no error")
        except Exception as error:
            far.send(str(error).splitlines()[0])

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert near.poll(20), "the fork says nothing"
    process.join(20)
    return near.recv()


def test_a_fork_does_not_use_the_masks_of_its_parent_again(program: Program, tools) -> None:
    x = tools.rows(2)
    with securemodel.local(program) as session:
        session.run(x)
        batches = session.run_batches([(x,)] * 2, 4)
        next(batches)
        for call in (lambda: session.run(x), lambda: asyncio.run(session.run_async(x)), lambda: next(batches)):
            assert "in a fork of the process" in said_in_a_fork(call)
        assert said_in_a_fork(session.close) == "no error"
        close(next(batches).outputs[0], program.model(x))
