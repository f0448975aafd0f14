"""API keys: 32 random bytes that a client shows; a party keeps their SHA-256 and what they may be used for.

A key is made at one party, and the others are given its SHA-256, so every party checks it, and none can lift a limit
alone. Its id is the beginning of the SHA-256 and the same everywhere.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import hmac
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct, structs

from protocols.errors import ConfigError, explain
from protocols.files import file_errors, read_secret, write_secret

_WHAT = "the list of API keys"
_BYTES, _ID_DIGITS = 32, 16
_TEXT = re.compile(r"[A-Za-z0-9_-]{43}")


class Key(Struct, forbid_unknown_fields=True, frozen=True):
    """What a party knows of a key. No models: all of them. No rows_per_day: what the model's own limit says."""

    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    name: Annotated[str, Meta(max_length=100)]
    created: int
    """In seconds of Unix time."""
    models: tuple[str, ...] = ()
    rows_per_day: Annotated[int, Meta(ge=1)] | None = None
    revoked: bool = False

    @property
    def id(self) -> str:
        return self.sha256[:_ID_DIGITS]

    def allows(self, model: str) -> bool:
        """Whether requests to a model may show this key."""
        return not self.models or model in self.models


def new_key() -> str:
    """A key for one client: 43 letters, digits, '-' and '_' of 32 random bytes."""
    return base64.urlsafe_b64encode(os.urandom(_BYTES)).rstrip(b"=").decode()


def digest_of(key: str) -> str:
    """What parties keep of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyBook:
    """The keys of a party, in one file. A front and the command line both use it: it is read again when it changed."""

    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, (0, 0)
        self._keys: Mapping[str, Key] = {}

    @property
    def keys(self) -> Sequence[Key]:
        """All keys, also revoked ones, in the order they were added. Raises ConfigError."""
        self._refresh()
        return tuple(self._keys.values())

    def lookup(self, bearer: str) -> Key | None:
        """The key that a request shows, if it is valid."""
        if not _TEXT.fullmatch(bearer):
            return None
        self._refresh()
        digest = digest_of(bearer)
        key = self._keys.get(digest[:_ID_DIGITS])
        return key if key and not key.revoked and hmac.compare_digest(key.sha256, digest) else None

    def find(self, id: str) -> Key:
        """The key with this id. Raises ConfigError."""
        self._refresh()
        if id not in self._keys:
            raise ConfigError(explain(f"there is no key {id!r}", where=str(self._path), fix="securemodel key list"))
        return self._keys[id]

    def add(self, sha256: str, name: str, models: Sequence[str] = (), rows_per_day: int | None = None) -> Key:
        """Lets clients use a key from now on. Raises ConfigError for what is no SHA-256, or was added before."""
        given = {
            "sha256": sha256,
            "name": name,
            "created": int(time.time()),
            "models": models,
            "rows_per_day": rows_per_day,
        }
        try:
            key = msgspec.convert(given, Key)
        except msgspec.ValidationError as error:
            what, fix = "this is not the SHA-256 of a key", "give the 64 digits that `securemodel key new` printed"
            if "$.name" in str(error):
                what, fix = "a client's name has at most 100 characters", "choose a shorter one"
            raise ConfigError(explain(what, fix=fix)) from None
        with self._changing() as keys:
            if key.id in keys:
                fix = "it is in the list of `securemodel key list`; a revoked key stays revoked"
                raise ConfigError(explain("this key was added before", where=str(self._path), fix=fix))
            keys[key.id] = key
        return key

    def revoke(self, id: str) -> Key:
        """Refuses a key from now on. Raises ConfigError if there is none."""
        with self._changing() as keys:
            key = keys[id] = structs.replace(self.find(id), revoked=True)
        return key

    def _refresh(self) -> None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._keys, self._seen = {}, (0, 0)
            return
        if (found.st_mtime_ns, found.st_ino) == self._seen:
            return
        try:
            keys = msgspec.json.decode(read_secret(self._path, _WHAT), type=list[Key])
        except msgspec.DecodeError as error:
            fix = "restore it from a backup; until then nobody can ask"
            raise ConfigError(explain(f"{_WHAT} is damaged", where=str(self._path), why=str(error), fix=fix)) from None
        self._keys, self._seen = {key.id: key for key in keys}, (found.st_mtime_ns, found.st_ino)

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Key]]:
        """The keys as they are now, written when they are changed: one process after the other."""
        lock = self._path.with_name(f".{self._path.name}.lock")
        with file_errors(lock):
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(handle, "rb"):
            fcntl.flock(handle, fcntl.LOCK_EX)
            self._refresh()
            keys = dict(self._keys)
            yield keys
            write_secret(self._path, msgspec.json.format(msgspec.json.encode(list(keys.values()))), _WHAT)
