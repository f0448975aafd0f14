"""Parties that fall silent, die or lie in each phase of a training: an error with their name at all others, in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_joint import PARTIES, ROWS, Made, job, table, together

from protocols.channel import Purpose
from protocols.channel import link as link_module
from protocols.errors import Mismatch, PeerAbsent, PeerError, SecureModelError
from protocols.identity import Timeouts
from securemodel.inspect.tampering import FRAMES, attack_at
from securemodel.training.run import Run

WHO, SHORT_S, LONG_S, LIMIT_S = "shop", 3.0, 30.0, 120.0
EVERYTHING = (Purpose.START, Purpose.OPEN, Purpose.CONTROL)


@pytest.fixture(scope="module")
def jobs() -> dict[str, Made]:
    """Each party's job: what is about one run, a run has."""
    return {me: job(guard_every=2) for me in PARTIES}


@pytest.fixture(autouse=True)
def short_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_GOODBYE_S", 0.2)


# What is wrong with a party, from now on.


def silent(run: Run) -> None:
    time.sleep(2.5 * SHORT_S)


def dead(run: Run) -> None:
    """The operating system closes its connections, without a goodbye."""
    session: Any = run._where.session
    for link in [*session.channel._links.values(), session.walk.source._link]:
        link.interrupt()


def lying(frame: str) -> Callable[[Run], None]:
    def lie(run: Run) -> None:
        session: Any = run._where.session
        attack_at(session.channel._links["bank"], FRAMES[frame][0], EVERYTHING, 1)

    return lie


FAULTS = {"silent": silent, "dead": dead, **{frame: lying(frame) for frame in ("oversized", "truncated", "garbage")}}


# When it happens: each phase makes a whole training, and says what comes before it.


def at_load(number: int) -> Callable[[Run, Callable[[], None]], None]:
    """Before a session shares its weights and rows for so many a time."""

    def arrange(run: Run, act: Callable[[], None]) -> None:
        load, count = run._load_session, iter(range(1, 100))
        run._load_session = lambda *rest: (next(count) == number and act(), load(*rest))[1]

    return arrange


def before(name: str, number: int = 1) -> Callable[[Run, Callable[[], None]], None]:
    """Before a method of a run is called for so many a time."""

    def arrange(run: Run, act: Callable[[], None]) -> None:
        method, count = getattr(run, name), iter(range(1, 100))
        setattr(run, name, lambda *rest, **named: (next(count) == number and act(), method(*rest, **named))[1])

    return arrange


PHASES = {
    "meeting": before("resume"),
    "toss": before("_toss"),
    "rows": at_load(1),
    "first step": before("step"),
    "second step": before("step", 2),
    "guard": at_load(2),
    "evaluation": at_load(4),
    "checkpoint": before("checkpoint"),
    "export": before("export"),
}


def train(folder: Any) -> Callable[[Run], None]:
    def task(run: Run) -> None:
        run.resume(folder)
        run.step()
        run.step()  # and the guard
        run.evaluate()
        run.checkpoint(folder)
        run.export(to="registry")
        run.step()

    return task


def failing(task: Callable[[Run], None], phase: str, fault: Callable[[Run], None]) -> Callable[[Run], None]:
    def fails(run: Run) -> None:
        PHASES[phase](run, lambda: fault(run))
        task(run)

    return fails


CASES = [(fault, phase) for fault in ("dead", "garbage") for phase in PHASES]
CASES += [("silent", phase) for phase in ("meeting", "rows", "second step", "guard", "evaluation", "export")]
CASES += [(fault, phase) for fault in ("oversized", "truncated") for phase in ("toss", "rows", "second step", "export")]


@pytest.mark.parametrize("fault, phase", CASES)
def test_a_fault_is_an_error_with_a_name_at_everybody(tmp_path, jobs, fault: str, phase: str):
    task, makes = train(tmp_path), iter(jobs.values())
    tasks = {**dict.fromkeys(PARTIES, task), WHO: failing(task, phase, FAULTS[fault])}
    start = time.monotonic()
    results = together(tasks, lambda: next(makes), times=Timeouts(LONG_S, SHORT_S if fault == "silent" else LONG_S))
    assert time.monotonic() - start < LIMIT_S
    assert isinstance(results.pop(WHO), SecureModelError), "it is told as well"
    check_named(results, WHO)


def check_named(results: dict[str, Any], who: str) -> None:
    """All have an error of ours that names who is to blame, with all that an error should say."""
    for me, error in results.items():
        assert isinstance(error, PeerError) and f"'{who}'" in str(error), f"{me}: {error!r}"
        assert "why:" in str(error) and "→" in str(error), f"{me}: {error}"


def test_a_party_that_does_not_come_is_named(jobs):
    makes = iter(jobs.values())
    times = Timeouts(SHORT_S, SHORT_S)
    results = together({me: Run.step for me in PARTIES if me != WHO}, lambda: next(makes), times=times)
    assert all(isinstance(error, PeerError) for error in results.values()), results
    assert any(type(error) is PeerAbsent and error.party == WHO for error in results.values()), results
    check_named(results, WHO)


def narrow() -> Made:
    """One column more than the others expect is of another shape."""
    data = table()
    (label,) = data.columns["label"]
    wider = replace(label, source=torch.zeros(ROWS, 1), shape=(ROWS, 1))
    return job(data=replace(data, columns={**data.columns, "label": (wider,)}), evaluate=None)


def few() -> Made:
    data = table()
    at = (data.positions[0][:-4],)
    return job(data=replace(data, positions=at))


@pytest.mark.parametrize("other", [narrow, few])
def test_a_party_with_data_of_another_shape_is_named(jobs, other: Callable[[], Made]):
    makes = [lambda: jobs["bank"], other, lambda: jobs["registry"]]
    results = together(dict.fromkeys(PARTIES, Run.step), lambda: makes.pop(0)())
    results.pop(WHO)
    check_named(results, WHO)
    assert any(isinstance(error, Mismatch) for error in results.values()), results
