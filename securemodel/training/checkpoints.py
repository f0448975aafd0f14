"""Checkpoints: each party's shares of all states, encrypted and authenticated under a key of its own.

A file is whole or absent. Shares are hidden by fresh shares of zero before they are written, so files of different
times in different hands give nothing together.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocols.errors import ConfigError, explain
from protocols.files import create_secret, file_errors, read_secret, write_secret
from protocols.strict import strict_fields
from securemodel.errors import InputError

_MAGIC = b"securemodel checkpoint 1\n"
_NONCE_BYTES, _KEPT = 12, 2
_NAME = re.compile(r"step-(\d{12})\.checkpoint")
_WHAT = "a checkpoint's key"
_META_BYTES = 1 << 24
_TYPES: dict[str, type | tuple[type, ...]] = {
    "run": str, "program": str, "step": int, "seed": int, "memory": dict, "groups": list,
    "scheduler": (dict, type(None)), "taken": dict,
}  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """Where a training is, beside its shares: all of it public. `run` names the training in hexadecimal; `memory` is that
    of PublicInputs, `groups` the scheduled entries of the optimizers' groups, `scheduler` its state_dict; `taken` says
    how often rows were in steps (privacy.TakenPart).
    """

    run: str
    program: str
    step: int
    seed: int
    memory: Mapping[str, Mapping[str, float]]
    groups: list[dict[str, Any]]
    scheduler: Mapping[str, Any] | None = None
    taken: Mapping[str, Any] = field(default_factory=dict)


def key_for(secret: bytes, party: str) -> bytes:
    """A key for checkpoints out of another secret of the party's (RFC 5869)."""
    return HKDF(hashes.SHA256(), 32, None, f"securemodel checkpoint of {party}".encode()).derive(secret)


def key_in(folder: Path) -> bytes:
    """The key in a folder, made there if there is none: for sessions with all parties in one process."""
    path = folder / "checkpoint.key"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with create_secret(path, _WHAT) as file:
            file.write(os.urandom(32))
    except FileExistsError:
        pass
    return read_secret(path, _WHAT)


def steps_of(folder: Path) -> list[int]:
    """The steps of which a party has checkpoints."""
    found = [_NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in found if match)


def path_of(folder: Path, step: int) -> Path:
    """The file of a step."""
    return folder / f"step-{step:012d}.checkpoint"


def write(folder: Path, party: str, key: bytes, shares: Mapping[str, torch.Tensor], progress: Progress) -> Path:
    """Writes a checkpoint whole, then removes all but the last two. Raises FileError."""
    meta = json.dumps(asdict(progress), sort_keys=True, allow_nan=False)
    tensors = {name: share.contiguous() for name, share in shares.items()}
    data = safetensors.torch.save(tensors, {"securemodel": meta})
    nonce, path = os.urandom(_NONCE_BYTES), path_of(folder, progress.step)
    sealed = _MAGIC + nonce + AESGCM(key).encrypt(nonce, data, _bound(party, progress.step))
    with file_errors(path):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_secret(path, sealed, "a checkpoint")
        for step in steps_of(folder)[:-_KEPT]:
            path_of(folder, step).unlink(missing_ok=True)
    return path


def read(folder: Path, party: str, key: bytes, step: int) -> tuple[dict[str, torch.Tensor], Progress]:
    """The shares and the progress of a checkpoint. Raises ConfigError for files of others, damaged or changed ones."""
    path = path_of(folder, step)
    with file_errors(path):
        sealed = read_secret(path, "a checkpoint")
    start = len(_MAGIC) + _NONCE_BYTES
    try:
        if not sealed.startswith(_MAGIC):
            raise InvalidTag
        data = AESGCM(key).decrypt(sealed[len(_MAGIC) : start], sealed[start:], _bound(party, step))
    except InvalidTag:
        raise ConfigError(
            explain(
                "a checkpoint cannot be used", where=str(path),
                why=f"it is damaged, or not of party {party!r}, this step and this key",
                fix="give the folder and the identity that it was written with",
            )
        ) from None  # fmt: skip
    tensors = safetensors.torch.load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    fields = strict_fields(header["__metadata__"]["securemodel"], "a checkpoint", _TYPES, _META_BYTES)
    return tensors, Progress(**fields)


def _bound(party: str, step: int) -> bytes:
    return f"{party} {step}".encode()


def check_same(progress: Progress, program: str) -> None:
    """Raises InputError where a checkpoint is of another program."""
    if progress.program != program:
        raise InputError(
            explain(
                f"the checkpoint is of program {progress.program[:12]}, this is {program[:12]}",
                fix="resume with the script, data sizes and versions that wrote it",
            )
        )
