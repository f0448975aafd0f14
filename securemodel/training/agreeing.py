"""What parties that train compare beside the program of a step, with the first message of a run."""

from __future__ import annotations

import hashlib
import json

from protocols.errors import DecodeError, Mismatch, explain
from protocols.strict import strict_fields
from securemodel.training.datasets import Batches
from securemodel.training.job import Job

SETTINGS_BYTES = 512


def settings_of(job: Job) -> bytes:
    """What must be the same at all parties, by the words in which an error names it; SETTINGS_BYTES of JSON."""
    return json.dumps(_settings(job)).encode().ljust(SETTINGS_BYTES)


def check_settings(job: Job, peer: str, theirs: bytes) -> None:
    """Raises Mismatch where a peer's settings are others."""
    mine = _settings(job)
    try:
        fields = strict_fields(theirs, "settings of a training", dict.fromkeys(mine, str), SETTINGS_BYTES)
        differ = [name for name, value in mine.items() if fields[name] != value]
    except DecodeError:
        differ = ["version of securemodel"]
    if differ:
        raise Mismatch(
            peer,
            explain(
                f"party {peer!r} trains otherwise: different {' and '.join(differ)}",
                where="before the first step",
                why="row by row and step by step, what all parties give belongs together",
                fix="give the seeds of batches() and split(), evaluate=, guard_every= and dp= the same values at every party",
            ),
        )


def _settings(job: Job) -> dict[str, str]:
    tests = [(name, piece) for name, evaluation in job.evaluations.items() for piece in evaluation.pieces]
    evaluated = [(name, program.digest, _order(batches)) for name, (batches, program) in tests]
    guard = job.guard.digest if job.guard else ""
    return {
        "order of rows": _order(job.batches),
        "evaluations": _digest(evaluated),
        "guard": _digest([guard, job.guard_every]),
        "dp": repr(job.dp),
    }


def _order(batches: Batches) -> str:
    places = [hashlib.sha256(at.astype("<i8").tobytes()).hexdigest() for at in batches.data.positions]
    return _digest([batches.seed, batches.shuffle, batches.sizes, places])


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
