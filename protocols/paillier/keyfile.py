"""Paillier keys as text: JSON with a version and a checksum. Reading checks everything that `keys` checks.

The text of a private key holds its primes: it belongs on its owner's disk, readable by its owner only.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

from protocols.errors import ConfigError, DecodeError, explain, reason_of
from protocols.files import write_secret
from protocols.paillier.keys import PrivateKey, PublicKey
from protocols.strict import strict_json

VERSION = 1
_PUBLIC, _PRIVATE = "securemodel paillier public key", "securemodel paillier private key"
_LONGEST = 1 << 16


def dump_public(key: PublicKey) -> str:
    """The public key as text."""
    return _sealed({"format": _PUBLIC, "version": VERSION, **_public_fields(key)})


def load_public(text: str, insecure_size: bool = False) -> PublicKey:
    """The key in a text that `dump_public` made. Raises ConfigError for anything else.

    insecure_size: also take test keys of sizes that can be broken.
    """
    return _public(_opened(text, _PUBLIC), insecure_size)


def dump_private(key: PrivateKey) -> str:
    """The private key as text, for its owner's disk only; better written with `save_private`."""
    p, q = key.insecure_primes()
    return _sealed({"format": _PRIVATE, "version": VERSION, **_public_fields(key.public), "p": f"{p:x}", "q": f"{q:x}"})


def load_private(text: str, insecure_size: bool = False) -> PrivateKey:
    """The key in a text that `dump_private` made. Raises ConfigError for anything else; see `load_public`."""
    fields = _opened(text, _PRIVATE)
    return PrivateKey(_number(fields, "p"), _number(fields, "q"), _public(fields, insecure_size))


def save_private(key: PrivateKey, path: Path | str) -> None:
    """Write a private key to a new file that only its owner may read. FileExistsError where there is a file."""
    write_secret(Path(path), dump_private(key).encode(), "a private key", new=True)


def _public_fields(key: PublicKey) -> dict[str, object]:
    base = {} if key.h is None else {"h": f"{key.h:x}"}
    return {"bits": key.bits, "n": f"{key.n:x}", **base}


def _public(fields: dict[str, object], insecure_size: bool) -> PublicKey:
    base = _number(fields, "h") if "h" in fields else None
    key = PublicKey(_number(fields, "n"), base, insecure_size)
    if key.bits != fields.get("bits"):
        _refuse(f"it says that its modulus has {fields.get('bits')!r} bits, but it has {key.bits}")
    return key


def _check(fields: dict[str, object]) -> str:
    return sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _sealed(fields: dict[str, object]) -> str:
    return json.dumps({**fields, "sha256": _check(fields)}, indent=1) + "\n"


def _opened(text: str, kind: str) -> dict[str, object]:
    try:
        fields = strict_json(text, kind, _LONGEST, max_depth=1)
    except DecodeError as error:
        _refuse(reason_of(error))
    if not isinstance(fields, dict) or fields.get("format") != kind:
        _refuse(f"it does not say that it is a {kind}")
    if fields.get("version") != VERSION:
        _refuse(f"its version is {str(fields.get('version'))[:20]}, this program reads version {VERSION}")
    if fields.pop("sha256", None) != _check(fields):
        _refuse("its checksum does not fit: it was changed or damaged")
    return fields


def _number(fields: dict[str, object], name: str) -> int:
    digits = fields.get(name)
    if not isinstance(digits, str) or not digits or set(digits) - set("0123456789abcdef"):
        _refuse(f"its field {name!r} is missing or no hexadecimal number")
    return int(digits, 16)


def _refuse(why: str) -> NoReturn:
    fix = "ask its owner for the file again"
    raise ConfigError(explain("this text is not a Paillier key", why=why, fix=fix)) from None
