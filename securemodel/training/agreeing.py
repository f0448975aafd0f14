"""The first messages of a run: what parties that train compare beside the program of a step, and a public seed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping

from protocols.channel import Label
from protocols.errors import BadFrame, DecodeError, Mismatch, explain
from protocols.strict import strict_fields
from securemodel.engines.labels import TOSS, TOSSED
from securemodel.training.datasets import Batches
from securemodel.training.job import Job
from securemodel.training.places import Place

_SETTINGS_BYTES, _SEED_BYTES = 512, 32


def greet(
    job: Job, where: Place, label: Label, sends: Mapping[str, bytes], shared: str = ""
) -> dict[str, dict[str, bytes]]:
    """A message to all others, as of `where.swap`, before which parties compare what a program does not say.

    `shared`: which rows they were given by owners who left. Raises Mismatch.
    """
    settings = json.dumps(settings_of(job, shared)).encode().ljust(_SETTINGS_BYTES)
    got = where.swap(label, {me: settings + data for me, data in sends.items()})
    for parts in got.values():
        for peer, data in parts.items():
            _check_settings(settings_of(job, shared), peer, data[:_SETTINGS_BYTES])
    return {me: {peer: data[_SETTINGS_BYTES:] for peer, data in parts.items()} for me, parts in got.items()}


def toss(job: Job, where: Place, shared: str = "") -> bytes:
    """A public seed that no party can choose: each commits to its part before it sees the others' (Blum, 1983)."""
    mine = {me: os.urandom(_SEED_BYTES) for me in where.parties}
    hidden = greet(job, where, TOSS, {me: _commitment(me, part) for me, part in mine.items()}, shared)
    opened = where.swap(TOSSED, mine)
    for me, parts in opened.items():
        for peer, part in parts.items():
            if _commitment(peer, part) != hidden[me][peer]:
                what = f"party {peer!r} changed its part of the seed after the others' were open"
                raise BadFrame(peer, explain(what))
    me = next(iter(mine))
    whole = {**opened[me], **mine}
    return hashlib.sha256(b"".join(whole[name] for name in sorted(whole))).digest()


def _commitment(party: str, part: bytes) -> bytes:
    return hashlib.sha256(b"securemodel toss " + party.encode() + b" " + part).digest()


def _check_settings(mine: Mapping[str, str], peer: str, theirs: bytes) -> None:
    """Raises Mismatch where a peer's settings are others."""
    try:
        fields = strict_fields(theirs, "settings of a training", dict.fromkeys(mine, str), _SETTINGS_BYTES)
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
                fix="give the seeds of batches() and split(), evaluate=, guard_every= and dp= the same values at every party, "
                "and all the files of one `securemodel share`",
            ),
        )


def settings_of(job: Job, shared: str = "") -> dict[str, str]:
    """What must be the same at all parties, by the words in which an error names it."""
    tests = [(name, piece) for name, evaluation in job.evaluations.items() for piece in evaluation.pieces]
    evaluated = [(name, program.digest, _order(batches)) for name, (batches, program) in tests]
    guard = job.guard.digest if job.guard else ""
    return {
        "order of rows": _order(job.batches),
        "evaluations": _digest(evaluated),
        "guard": _digest([guard, job.guard_every]),
        "dp": repr(job.dp),
        "rows of those who left": shared,
    }


def _order(batches: Batches) -> str:
    places = [hashlib.sha256(at.astype("<i8").tobytes()).hexdigest() for at in batches.data.positions]
    return _digest([batches.seed, batches.shuffle, batches.sizes, places])


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
