"""Weights at rest: a party's additive share of them, encrypted, so that a service starts without their owner's file.

The file is a head in JSON, which says what the shares are of, then AES-256-GCM (NIST SP 800-38D) of the shares under
the party's own key and a fresh nonce, with the head as associated data. Additive shares are stored and never a masked
form: its mask would then be used in two sessions.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocols.errors import ConfigError, DecodeError, explain
from protocols.files import file_errors, read_secret, write_secret
from protocols.strict import strict_fields, typed

KEY_BYTES = 32
_MAGIC, _NONCE_BYTES, _MOST_HEAD = b"securemodel weights 1\n", 12, 1 << 24
_HEAD = {"program": str, "model": str, "version": int, "sharing": str, "tensors": list}
_TENSOR = {"name": str, "shape": list}
_WHAT, _CREDENTIAL = "a party's share of weights", "credential:"


def new_key_file(path: Path) -> None:
    """A new key of 32 random bytes, in a file of this user's alone. FileExistsError where there is one."""
    write_secret(path, os.urandom(KEY_BYTES), "a key", new=True)


def is_credential(source: str | None) -> bool:
    """Whether a key is one of systemd's credentials, by name, and not a file."""
    return source is not None and source.startswith(_CREDENTIAL)


def read_key(source: str | None, command: tuple[str, ...] | None = None) -> bytes:
    """The key of the files: from a file, a systemd credential (credential:NAME) or what a command prints (32 bytes).

    Raises ConfigError.
    """
    where = source or " ".join(command or ())
    try:
        if command:
            key = subprocess.run(command, check=True, capture_output=True, timeout=30, stdin=subprocess.DEVNULL).stdout
        elif source and is_credential(source):
            folder = os.environ.get("CREDENTIALS_DIRECTORY", "")
            key = (Path(folder) / source.removeprefix(_CREDENTIAL)).read_bytes()
        else:
            key = read_secret(Path(source or ""), "the key of weights at rest")
    except (OSError, subprocess.SubprocessError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        fix = "name a file, credential:NAME, or a command that prints the key"
        raise ConfigError(explain("the key of weights at rest cannot be read", where=where, why=why, fix=fix)) from None
    if len(key) != KEY_BYTES:
        why = f"it has {len(key)} bytes, expected {KEY_BYTES}"
        fix = f"make one: head -c {KEY_BYTES} /dev/urandom > FILE, and chmod 600 FILE"
        raise ConfigError(explain("the key of weights at rest is not a key", where=where, why=why, fix=fix))
    return key


def save(
    path: Path, key: bytes, shares: Mapping[str, np.ndarray], program: str, model: str, version: int, sharing: bytes
) -> None:
    """Writes int64 shares, whole or not at all. `sharing` names the sharing that they belong to, at all parties alike.

    Raises FileError where the disk does not take it.
    """
    tensors = [{"name": name, "shape": list(share.shape)} for name, share in shares.items()]
    fields = {"program": program, "model": model, "version": version, "sharing": sharing.hex(), "tensors": tensors}
    head = json.dumps(fields).encode()
    data = b"".join(np.ascontiguousarray(share, "<i8").tobytes() for share in shares.values())
    nonce = os.urandom(_NONCE_BYTES)
    sealed = AESGCM(key).encrypt(nonce, data, head)
    with file_errors(path):
        write_secret(path, _MAGIC + len(head).to_bytes(4, "little") + head + nonce + sealed, _WHAT)


def read(path: Path, key: bytes, program: str, version: int) -> tuple[dict[str, np.ndarray], bytes]:
    """The shares of a file, and the sharing that they belong to.

    Raises FileError where it cannot be read, DecodeError where it is damaged, of another key, program or version.
    """
    with file_errors(path):
        raw = read_secret(path, _WHAT)
    size = int.from_bytes(raw[len(_MAGIC) :][:4], "little")
    start = len(_MAGIC) + 4
    head, nonce, sealed = (
        raw[start : start + size],
        raw[start + size :][:_NONCE_BYTES],
        raw[start + size + _NONCE_BYTES :],
    )
    if not raw.startswith(_MAGIC) or size > _MOST_HEAD or len(sealed) < 16:
        raise _unusable(path, "it is not a file of weights, or was cut short")
    try:
        data = AESGCM(key).decrypt(nonce, sealed, head)
    except InvalidTag:
        raise _unusable(path, "it is damaged, or encrypted under another key") from None
    fields = strict_fields(head, "the head of weights at rest", _HEAD, _MOST_HEAD)
    if (fields["program"], fields["version"]) != (program, version):
        raise _unusable(path, "its weights are of another program or version")
    shares, at = {}, 0
    for tensor in fields["tensors"]:
        typed(tensor, "the head of weights at rest", _TENSOR)
        count = int(np.prod(tensor["shape"], dtype=np.int64))
        shares[tensor["name"]] = np.frombuffer(data, "<i8", count, at).reshape(tensor["shape"])
        at += 8 * count
    return shares, bytes.fromhex(fields["sharing"])


def _unusable(path: Path, why: str) -> DecodeError:
    fix = "restore it, or the key that it was made with; or remove it, and the weights' owner loads them again"
    return DecodeError(explain("stored weights cannot be used", where=str(path), why=why, fix=fix))
