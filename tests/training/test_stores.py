"""Trainings whose preprocessing was made beforehand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_joint import PARTIES, Made, job, table, together

from protocols.errors import InputError, PeerError, PreprocessingError, PreprocessingReused, PreprocessingUsedUp
from securemodel.training.stores import prepare_training


def of(resident: bool) -> Callable[[], Made]:
    train, _ = table().split(0.8, seed=1)
    return lambda: job(batch=train.batches(16, seed=2, resident=resident), guard_every=2)


def all_of(run: Any) -> list[float]:
    """What two epochs reveal, with guards, and an evaluation after each."""
    found = []
    for _ in range(2):
        found += [float(returned["loss"]) for returned in run.train_epoch()]
        found.append(float(run.evaluate()["error"]))
    return found


@pytest.mark.parametrize("resident", [True, False])
def test_a_store_has_steps_guards_and_evaluations(tmp_path, resident):
    make = of(resident)
    prepare_training(make().job, 6, tmp_path / "stores")
    results = together(dict.fromkeys(PARTIES, all_of), make, stores=tmp_path / "stores")
    with make().local() as run:
        right = all_of(run)
    assert list(results.values()) == [right] * 3


@pytest.mark.parametrize("resident", [True, False])
def test_a_training_goes_on_with_another_store(tmp_path, resident):
    make = of(resident)
    for name, steps in (("one", 2), ("other", 6)):
        prepare_training(make().job, steps, tmp_path / name)

    def until_it_is_used_up(run: Any) -> Any:
        run.resume(tmp_path / "kept")
        with pytest.raises(PreprocessingUsedUp, match="step 3 has none"):
            run.train_epoch()
        run.checkpoint(tmp_path / "kept")

    def later(run: Any) -> Any:
        run.resume(tmp_path / "kept")
        return [float(run.step()["loss"]) for _ in range(2)]

    first = together(dict.fromkeys(PARTIES, until_it_is_used_up), make, stores=tmp_path / "one")
    assert set(first.values()) == {None}, first
    results = together(dict.fromkeys(PARTIES, later), make, stores=tmp_path / "other")
    with make().local() as run:
        right = [float(run.step()["loss"]) for _ in range(4)]
    assert list(results.values()) == [right[2:]] * 3, results
    again = together(dict.fromkeys(PARTIES, later), make, stores=tmp_path / "other")
    if resident:  # the rows of a step are masked once
        assert any(isinstance(result, PreprocessingReused) for result in again.values()), again
    else:
        assert list(again.values()) == [right[2:]] * 3, again


def test_a_store_of_another_training_is_refused(tmp_path):
    prepare_training(job(momentum=0.0).job, 1, tmp_path / "stores")
    results = together(dict.fromkeys(PARTIES, lambda run: run.step()), stores=tmp_path / "stores")
    assert all(isinstance(result, PreprocessingError) for result in results.values()), results
    assert "of this training" in str(results["bank"])


def test_folders_appear_whole_or_not_at_all(tmp_path, monkeypatch):
    def fail(*args: Any) -> Any:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("securemodel.training.stores.prepare", fail)
    with pytest.raises(OSError, match="no space"):
        prepare_training(job().job, 1, tmp_path / "stores")
    assert not list(Path(tmp_path).iterdir())


def test_nothing_is_written_after_an_evaluation_that_failed(tmp_path):
    make = of(True)
    prepare_training(make().job, 3, tmp_path / "stores")

    def evaluate_twice(run: Any) -> None:
        run.evaluate()
        with pytest.raises((PreprocessingUsedUp, PeerError)):
            run.evaluate()
        with pytest.raises(InputError, match="resume"):
            run.checkpoint(tmp_path / "kept")

    results = together(dict.fromkeys(PARTIES, evaluate_twice), make, stores=tmp_path / "stores")
    assert set(results.values()) == {None} and not (tmp_path / "kept").exists()
