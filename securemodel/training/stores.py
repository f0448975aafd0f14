"""Preprocessing of a whole training made beforehand: in each party's folder a store for each program that a run needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from protocols.errors import PreprocessingError, explain
from securemodel.engines.masked.store import appearing, prepare
from securemodel.program import Program
from securemodel.training.job import Job


def prepare_training(
    job: Job, steps: int, directory: Path, progress: Callable[[int], None] = lambda done: None
) -> dict[str, Path]:
    """Makes preprocessing for so many steps, for the guards among them and for an evaluation after each epoch.

    Returns each party's folder under `directory`. The folders appear whole or not at all. `progress` is told of steps.
    Raises PreprocessingError when the directory already holds something, InputError for a protocol that needs none.
    """
    check_no_contributors(job)
    with appearing(directory) as temporary:
        for name in job.program.parties:
            (temporary / name).mkdir(mode=0o700)
        for program, count in _counts(job, steps):
            told = progress if program is job.program else lambda done: None
            for name, folder in prepare(program, count, temporary / "made", told).items():
                folder.rename(temporary / name / _name(program))
            (temporary / "made").rmdir()
    return {name: directory / name for name in job.program.parties}


def check_no_contributors(job: Job) -> None:
    """Raises PreprocessingError for a training that reads rows of owners who left."""
    if names := job.program.contributors:
        what = f"this training reads rows of {', '.join(names)}, and no preprocessing for them can be made beforehand"
        why, fix = "the keys of their masks come with the rows", "train with a dealer: leave --store out"
        raise PreprocessingError(explain(what, why=why, fix=fix))


def _counts(job: Job, steps: int) -> list[tuple[Program, int]]:
    epochs = math.ceil(steps / job.batches.steps_per_epoch)
    pieces = [piece for evaluation in job.evaluations.values() for piece in evaluation.pieces]
    counts: list[tuple[Program, int]] = [(job.program, steps)]
    counts += [(program, epochs * batches.steps_per_epoch) for batches, program in pieces]
    return [*counts, *([(job.guard, math.ceil(steps / job.guard_every))] if job.guard else [])]


def store_of(folder: Path, program: Program) -> Path:
    """The store of a program in a party's folder, which may be that of a single program. Raises PreprocessingError."""
    path = folder / _name(program)
    if (folder / "store.json").exists():
        return folder
    if not path.is_dir():
        raise PreprocessingError(
            explain(
                f"there is no store for program {program.digest[:12]} of this training",
                where=str(folder),
                why="it was prepared for another script, other data sizes or other versions, or for no training",
                fix="`securemodel prepare train.py --count STEPS --out FOLDER`, and give each party its folder",
            )
        )
    return path


def _name(program: Program) -> str:
    return program.digest[:16]
