"""service.json, read strictly: who the parties are and how each is recognized, and the models with their cards.

Whoever gives this file decides who gets the shares. So take it from somebody you trust, and not over a connection that
nobody checks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from securemodel.edge import recipe
from securemodel.edge.errors import InputError, ServiceError, WireError
from securemodel.edge.sealing import is_key
from securemodel.edge.sharing import decode, encode, encode_indices
from securemodel.edge.wire import load

MAX_FILE_BYTES = 4 << 20
_FIX = "ask the service for its service.json again"
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Party:
    """A party's front. It is recognized by its certificate's fingerprint, by its own authority, or as any website is."""

    name: str
    url: str
    certificate: str | None
    """SHA-256 of the certificate in DER, in hex."""
    ca: str | None
    """Certificates in PEM of the authority that its certificate is from."""
    hpke: str | None
    """The public X25519 key that shares are sealed to, in base64url."""


@dataclass(frozen=True)
class Port:
    """An input or output of a model; `shape` is that of one row."""

    name: str
    shape: tuple[int, ...]
    frac_bits: int
    kind: str
    limit: float = math.inf

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Rows of an input in fixed point."""
        if x.shape[1:] != self.shape or len(x) == 0:
            what = f"input {self.name!r} has shape {list(x.shape)}"
            raise InputError(what, why=f"the model takes rows of {list(self.shape)}: shape {['rows', *self.shape]}")
        if self.kind == "index":
            return encode_indices(x, self.limit, self.name)
        return encode(x, self.frac_bits, self.limit, self.name)

    def decode(self, e: np.ndarray) -> np.ndarray:
        """Rows of an output: float64, or int64 where these are classes."""
        values = decode(e, self.frac_bits)
        return np.rint(values).astype(np.int64) if self.kind == "class" else values


@dataclass(frozen=True)
class Model:
    """A model of a service: its inputs, outputs and recipe, and how many rows a request may have."""

    name: str
    version: int
    rows: int
    digest: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    recipe: Mapping[str, Sequence[recipe.Step]] = field(repr=False)
    labels: tuple[str, ...] | None
    card: Mapping[str, Any] = field(repr=False)

    def encode(self, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        """All inputs in fixed point, in the model's order, after its recipe; InputError says what is wrong."""
        names = [port.name for port in self.inputs]
        if set(inputs) != set(names):
            raise InputError(
                f"model {self.name!r} takes the inputs {names}", why=f"given are {sorted(map(str, inputs))}"
            )
        ready = [recipe.apply(self.recipe.get(name, ()), inputs[name], name) for name in names]
        scalars = [name for name, x in zip(names, ready, strict=True) if x.ndim == 0]
        if scalars or len({len(x) for x in ready}) != 1:
            raise InputError("the inputs have different numbers of rows", where=", ".join(scalars or names))
        return [port.encode(x) for port, x in zip(self.inputs, ready, strict=True)]


@dataclass(frozen=True)
class Service:
    """A service: its parties by rank, and its models by name."""

    name: str
    parties: tuple[Party, ...]
    models: Mapping[str, Model]
    leader: str
    keys: bool
    trust: tuple[str, ...]

    def model(self, name: str) -> Model:
        """The model of this name, or a ServiceError that lists those there are."""
        if name not in self.models:
            has = ", ".join(self.models) or "none"
            raise ServiceError(f"the service has no model {name!r}", fix=f"ask one of: {has}")
        return self.models[name]


def open_file(path: str | Path) -> Service:
    """A service out of a file."""
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        what = "the service's file cannot be read"
        raise ServiceError(
            what, where=str(path), why=error.strerror or "", fix="name the file, or its address"
        ) from error
    return parse(text, str(path))


def parse(text: bytes, where: str) -> Service:
    """A service out of the text of its file."""
    try:
        found = load(text, "the service's file", MAX_FILE_BYTES)
    except WireError as error:
        raise ServiceError(error.what, where=where, why=error.why, fix=_FIX) from error
    return read(found, where)


def read(found: Mapping[str, Any], where: str = "service.json") -> Service:
    """A service out of JSON."""
    try:
        return _service(found)
    except _Wrong as error:
        raise ServiceError("the service's file is wrong", where=where, why=str(error), fix=_FIX) from error


class _Wrong(ValueError):
    """What of the file is wrong; its text."""


def _service(found: Mapping[str, Any]) -> Service:
    if _get(found, "securemodel_service", int, "it") != 1:
        raise _Wrong("it is of another version; this program reads version 1")
    parties = tuple(read_party(part, f"parties[{at}]") for at, part in enumerate(_get(found, "parties", list, "it")))
    names = [party.name for party in parties]
    if len(parties) < 2 or len(set(names)) != len(names) or len({party.url for party in parties}) != len(names):
        raise _Wrong("there must be two parties or more, with different names and addresses")
    leader = _get(found, "leader", str, "it")
    if leader != names[0]:
        raise _Wrong(f"the leader is {leader!r}, not the first party")
    models = [_model(part, f"models[{at}]") for at, part in enumerate(_get(found, "models", list, "it"))]
    return Service(
        _get(found, "name", str, "it"),
        parties,
        {model.name: model for model in models},
        leader,
        _get(found, "keys", bool, "it"),
        tuple(map(str, _or(found, "trust", list, "it", []))),
    )


def read_party(found: Any, where: str) -> Party:
    """A party out of JSON. Raises a ValueError that says what of it is wrong."""
    url = _get(found, "url", str, where).rstrip("/")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("https", "http") and parts.hostname and parts.port != 0 and not parts.query
    except ValueError:
        good = False
    if not good or parts.username is not None or parts.fragment or not url.isprintable() or " " in url:
        raise _Wrong(f"the url of {where} is no address such as https://bank.example:8443")
    certificate = _optional(found, "certificate", where)
    if certificate is not None and not _HEX64.fullmatch(certificate):
        raise _Wrong(f"the certificate of {where} is no SHA-256 of 64 hexadecimal digits")
    sealed_to = _optional(found, "hpke", where)
    if sealed_to is not None and not is_key(sealed_to):
        raise _Wrong(f"the hpke of {where} is no public key of 43 characters")
    return Party(
        _get(found, "name", str, where),
        url,
        certificate,
        _optional(found, "ca", where),
        sealed_to,
    )


def _model(found: Any, where: str) -> Model:
    card = _get(found, "card", dict, where)
    digest = _get(card, "digest", str, f"the card of {where}")
    if not _HEX64.fullmatch(digest):
        raise _Wrong(f"the digest of {where} has not 64 hexadecimal digits")
    inputs = tuple(_port(port, f"{where}, an input", True) for port in _get(card, "inputs", list, where))
    outputs = tuple(_port(port, f"{where}, an output", False) for port in _get(card, "outputs", list, where))
    if not inputs or not outputs:
        raise _Wrong(f"{where} has no inputs or no outputs")
    labels = _or(card, "labels", list, where, None)
    return Model(
        _get(found, "name", str, where),
        _get(found, "version", int, where),
        _positive(_get(found, "rows", int, where), where),
        digest,
        inputs,
        outputs,
        {name: recipe.read(steps, name) for name, steps in _or(card, "recipe", dict, where, {}).items()},
        None if labels is None else tuple(map(str, labels)),
        card,
    )


def _port(found: Any, where: str, is_input: bool) -> Port:
    shape, bits = _get(found, "shape", list, where), _get(found, "frac_bits", int, where)
    if not shape or shape[0] != -1 or not all(type(size) is int and 0 < size < 2**31 for size in shape[1:]):
        raise _Wrong(f"the shape of {where} is not -1 and the sizes of a row")
    kind = _get(found, "kind", str, where)
    if kind not in (("real", "index") if is_input else ("scores", "probabilities", "class")):
        raise _Wrong(f"{where} has the unknown kind {kind!r}")
    limit = found.get("limit", math.inf)
    if is_input and (isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0):
        raise _Wrong(f"the limit of {where} is no number above 0")
    if not 0 <= bits <= 62 or (is_input and not limit * 2.0**bits < 2.0**63):
        raise _Wrong(f"the numbers of {where} do not fit 64 bits")
    return Port(_get(found, "name", str, where), tuple(shape[1:]), bits, kind, float(limit) if is_input else math.inf)


def _positive(number: int, where: str) -> int:
    if number < 1:
        raise _Wrong(f"{where} takes no rows")
    return number


def _get(found: Any, name: str, kind: type, where: str) -> Any:
    if not isinstance(found, dict) or type(found.get(name)) is not kind:
        raise _Wrong(f"{where} has no {name}, or one that is no {kind.__name__}")
    return found[name]


def _or(found: Mapping[str, Any], name: str, kind: type, where: str, default: Any) -> Any:
    """A member that may be missing or null."""
    return default if found.get(name) is None else _get(found, name, kind, where)


def _optional(found: Mapping[str, Any], name: str, where: str) -> str | None:
    return _or(found, name, str, where, None)
