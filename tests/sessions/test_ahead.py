"""Preparing ahead: the memory limit, the order, errors of the worker, and its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from securemodel.engines.masked import ahead, dealer
from securemodel.engines.masked.ahead import Ahead
from securemodel.errors import SecureModelError

BATCH = 1000  # bytes that are handed over together in these tests
LIMIT = 5000
pytestmark = pytest.mark.usefixtures("no_threads_left")


class Source:
    """Prepares `count` values of 400 bytes for each epoch, and counts those that were made."""

    def __init__(self, count: int = 100, fails_at: int = -1) -> None:
        self.count, self.fails_at, self.made = count, fails_at, 0
        self.wait = threading.Event()
        self.wait.set()

    def prepare(self, epoch: int, load: bool) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
        for node in range(self.count):
            assert self.wait.wait(10)
            if node == self.fails_at:
                raise SecureModelError("no more of this")
            self.made += 1
            yield node, {"lam": torch.full((50,), epoch * 1000 + node)}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_BATCH_BYTES", BATCH)
    monkeypatch.setattr(ahead, "_LEAST_BYTES", BATCH)


@pytest.fixture
def worker(request: pytest.FixtureRequest) -> Iterator[tuple[Source, Ahead]]:
    source = Source(**getattr(request, "param", {}))
    made = Ahead(source.prepare, LIMIT, "test")
    yield source, made
    source.wait.set()
    assert made.close(5.0)


def settled(source: Source) -> int:
    """How many values were made when nothing more is."""
    before = -1
    while before != source.made:
        before = source.made
        time.sleep(0.1)
    return before


def test_hands_out_what_was_prepared_in_order(worker) -> None:
    source, made = worker
    for epoch in (1, 2):
        made.submit(epoch, "run")
    for epoch in (1, 2):
        take = made.take_from(epoch)
        for node in range(source.count):
            assert take(node)["lam"][0] == epoch * 1000 + node


def test_stops_at_the_limit_and_goes_on_with_a_slow_consumer(worker) -> None:
    source, made = worker
    made.submit(1, "run")
    most = (LIMIT + 2 * BATCH) // 400 + 2  # what waits, one batch that is filled, one that is handed out
    assert 0 < settled(source) <= most
    take = made.take_from(1)
    for node in range(source.count):
        take(node)
        if node % 10 == 0:
            assert settled(source) - node <= most
    assert source.made == source.count


def test_one_batch_may_always_wait() -> None:
    def prepare(epoch: int, load: bool):
        for node in range(3):
            yield node, {"lam": torch.zeros(10 * LIMIT, dtype=torch.uint8), "none": None}

    made = Ahead(prepare, LIMIT, "test")
    made.submit(1, "load")
    take = made.take_from(1)
    for node in range(3):
        assert take(node)["lam"].numel() == 10 * LIMIT
    made.finish(1)
    assert made.close(5.0)


@pytest.mark.parametrize("worker", [{"fails_at": 60}], indirect=True)
def test_errors_of_the_worker_come_up_when_something_is_taken(worker) -> None:
    source, made = worker
    made.submit(1, "run")
    take = made.take_from(1)
    with pytest.raises(SecureModelError, match="no more of this"):
        for node in range(source.count):
            take(node)
    with pytest.raises(SecureModelError, match="no more of this"):
        made.take_from(2)(0)
    with pytest.raises(SecureModelError, match="no more of this"):
        made.discard()


def test_another_node_or_epoch_than_prepared(worker) -> None:
    _, made = worker
    made.submit(1, "run")
    with pytest.raises(SecureModelError, match="prepared node 0, but node 5"):
        made.take_from(1)(5)
    made.discard()
    made.submit(2, "run")
    with pytest.raises(SecureModelError, match="prepared epoch 2, but epoch 3"):
        made.take_from(3)(0)


def test_finish_notices_what_nobody_took(worker) -> None:
    _, made = worker
    made.submit(1, "run")
    take = made.take_from(1)
    for node in range(50):
        take(node)
    with pytest.raises(SecureModelError, match="more was prepared for epoch 1"):
        made.finish(1)


def test_discard_drops_all_and_what_follows_is_right(worker) -> None:
    source, made = worker
    made.submit(1, "run")
    made.submit(2, "run")
    made.discard()
    made.submit(3, "run")
    take = made.take_from(3)
    for node in range(source.count):
        assert take(node)["lam"][0] == 3000 + node


def test_close_while_the_limit_is_reached(worker) -> None:
    source, made = worker
    made.submit(1, "run")
    made.submit(2, "run")
    count = settled(source)
    assert made.close(5.0)
    assert source.made <= count + 1  # and nothing of the next epoch
    with pytest.raises(SecureModelError, match="closed"):
        made.take_from(1)(0)


def test_close_while_somebody_takes(worker) -> None:
    source, made = worker
    source.wait.clear()
    made.submit(1, "run")
    caught = []

    def take() -> None:
        try:
            made.take_from(1)(0)
        except SecureModelError as error:
            caught.append(str(error))

    thread = threading.Thread(target=take)
    thread.start()
    time.sleep(0.1)
    start = time.monotonic()
    assert not made.close(0.1)  # the source keeps the worker, but nobody else waits for it
    thread.join(5)
    assert time.monotonic() - start < 4 and "closed" in caught[0]


def test_a_run_that_waits_gets_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only what is as much as a worker hands over when nobody waits."""
    monkeypatch.setattr(ahead, "_BATCH_BYTES", 1 << 30)
    waiting, more = threading.Event(), threading.Event()

    def prepare(epoch: int, load: bool):
        assert waiting.wait(10)
        while not made._wanted:
            time.sleep(0.001)
        yield 0, {"lam": torch.zeros(BATCH, dtype=torch.uint8)}
        assert more.wait(10)
        yield 1, {"lam": torch.zeros(1)}

    made = Ahead(prepare, LIMIT, "test")
    made.submit(1, "run")
    take = made.take_from(1)
    waiting.set()
    threading.Timer(5, more.set).start()
    began = time.monotonic()
    take(0)
    assert not more.is_set() and time.monotonic() - began < 5
    more.set()
    take(1)
    made.finish(1)
    assert made.close(5.0)


def test_the_end_of_a_session_hides_no_error_by_another(world, program, tools) -> None:
    """Whatever ended the link to the dealer, the user's own error, or exit code, is what is seen."""

    def leave(session) -> None:
        session.run(None if session.me == "bank" else tools.rows(2))
        if session.me == "hospital":
            session.walks["hospital"].source._link.abort("as a thread that prepares does when it fails")
            raise SystemExit(7)

    results = world.run(dict.fromkeys(program.parties, leave))
    assert isinstance(results["hospital"], SystemExit) and results["hospital"].code == 7


def test_the_run_after_it_is_prepared_while_a_run_goes_on(world, program, tools) -> None:
    """On a slow link both take as long: one after the other they would take the sum."""

    def task(session) -> list:
        x, walk, events = None if session.me == "bank" else tools.rows(2), session.walk, []
        session.run(x)
        submit, run = walk._worker.submit, walk.party.run

        def noted(*arguments):
            result = yield from run(*arguments)
            events.append("ended")
            return result

        walk._worker.submit = lambda epoch, phase: (events.append(epoch), submit(epoch, phase))
        walk.party.run = noted
        session.run(x)
        return events

    results = world.run(dict.fromkeys(program.parties, task))
    assert results == {me: [3, "ended"] for me in program.parties}


def test_the_next_run_is_asked_for_while_the_dealer_deals(
    world, program, tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dealer knows what is next when it has dealt: over a slow link it waits for no request."""
    events: list[str] = []
    request, pipelined = dealer._request, dealer.pipelined

    def heard(*arguments):
        events.append(f"asked {arguments[1].epoch}")
        return request(*arguments)

    def dealt(*arguments):
        yield from pipelined(*arguments)
        events.append("dealt")

    monkeypatch.setattr(dealer, "_SEND_BYTES", 1)
    monkeypatch.setattr(dealer, "_request", heard)
    monkeypatch.setattr(dealer, "pipelined", dealt)

    def task(session) -> None:
        x = None if session.me == "bank" else tools.rows(2)
        session.run(x)
        session.run(x)
        with session.walk.source._use:  # the worker says no word before it knows of all
            session.walk.ask(5)
        for _ in range(3):
            session.run(x)

    results = world.run(dict.fromkeys(program.parties, task))
    assert not any(isinstance(result, BaseException) for result in results.values()), results
    before = events[: events.index("asked 5")]
    assert before.count("dealt") < len(before) - before.count("dealt")  # the one before it was not dealt for
