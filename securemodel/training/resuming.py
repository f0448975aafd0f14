"""From the checkpoints of all parties: the step that each of them has, and what a run goes on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from protocols.errors import Mismatch, explain
from securemodel.engines.labels import STEPS
from securemodel.training import checkpoints
from securemodel.training.agreeing import greet
from securemodel.training.checkpoints import Progress
from securemodel.training.job import Job
from securemodel.training.places import Place
from securemodel.training.publics import Update

_STEPS_BYTES = 256
_SCHEDULED = ("lr", "initial_lr", "momentum", "betas", "weight_decay", "eps")


def last_common_step(job: Job, where: Place, folder: Path, shared: str = "") -> int | None:
    """The last step of which all parties have a checkpoint, each in its own folder inside; `shared` as of `greet`. Raises Mismatch."""
    mine = {me: checkpoints.steps_of(folder / me) for me in where.parties}
    told = greet(job, where, STEPS, {me: _packed(steps) for me, steps in mine.items()}, shared)
    common = set.intersection(*(set(steps) for steps in mine.values()))
    for parts in told.values():
        for data in parts.values():
            common &= set(_unpacked(data))
    return max(common, default=None)


def read_all(job: Job, where: Place, folder: Path, step: int) -> tuple[dict[str, dict[str, torch.Tensor]], Progress]:
    """The shares of each party here, and the progress that all have. Raises ConfigError, InputError, Mismatch."""
    found = {}
    for me in where.parties:
        path = folder / me
        found[me] = checkpoints.read(path, me, where.key(me, path), step)
        checkpoints.check_same(found[me][1], job.digest)
    names = {progress.run for _, progress in found.values()}
    told = where.swap(STEPS, {me: progress.run.encode().ljust(64) for me, (_, progress) in found.items()})
    for parts in told.values():
        for peer, data in parts.items():
            if data.decode("ascii", "replace").strip() not in names or len(names) > 1:
                raise Mismatch(peer, explain(f"party {peer!r} has checkpoints of another training", where="resume()",
                                             fix="give each party the folder of the same training"))  # fmt: skip
    return {me: shares for me, (shares, _) in found.items()}, next(iter(found.values()))[1]


def _packed(steps: Sequence[int]) -> bytes:
    return ",".join(map(str, steps[-8:])).encode().ljust(_STEPS_BYTES)


def _unpacked(data: bytes) -> list[int]:
    words = data.decode("ascii", "replace").strip().split(",")
    return [int(word) for word in words if word.isdigit()]


def groups_of(updates: Sequence[Update]) -> list[dict[str, Any]]:
    """The scheduled entries of all groups, as JSON has them."""
    return [
        {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in update.group.items()
            if key in _SCHEDULED
        }
        for update in updates
    ]


def put_groups(updates: Sequence[Update], groups: Sequence[Mapping[str, Any]]) -> None:
    """Puts these entries back."""
    for update, entries in zip(updates, groups, strict=True):
        update.group.update({key: tuple(value) if isinstance(value, list) else value for key, value in entries.items()})
