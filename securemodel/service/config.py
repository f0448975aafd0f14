"""SERVICE.toml: what a service is, the same file at all its parties but for [me]. Every error names its line.

    [service]
    name = "digits"
    leader = "bank"                  # the first party of the programs: it decides which requests form a batch
    parties = "parties.toml"         # the engines' addresses, certificates, and this party's identity
    keys = true                      # false: no API key is asked for
    [fronts.bank]                    # one for each party
    url = "https://bank.example"     # where clients reach it
    control = "bank.example:7101"    # where the other parties' fronts do
    [me]
    listen = "0.0.0.0:8443"
    data = "/var/lib/securemodel"
    tls_certificate = "web.crt"
    tls_key = "web.key"
    [[model]]
    name = "lenet5"
    script = "infer.py"              # defines make_family(), and load_model(weights) for their owner
    sizes = [1, 8, 32, 128]

Paths are relative to the file. docs/operations.md has all keys.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, structs

from protocols import identity
from protocols.errors import ConfigError, explain
from protocols.identity import PartiesConfig
from protocols.names import NAME_RULE, is_name
from securemodel.service.rest import is_credential

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Count = Annotated[int, Meta(ge=1, le=2**31)]
ModelName = Annotated[str, Meta(pattern="^[a-z][a-z0-9_-]{0,63}$")]
Address = Annotated[str, Meta(pattern=r"^(\[[0-9A-Fa-f:.%]+\]|[^\[\]:/ ]+):[0-9]{1,5}$")]
Seconds = Annotated[float, Meta(gt=0, le=3600)]
CLIENT = "client"


class _Table(Struct, forbid_unknown_fields=True, frozen=True):
    """A table of the file: keys that are not listed are an error."""


class Service(_Table, frozen=True):
    """What all parties have in common."""

    name: ModelName
    leader: str
    parties: str = "parties.toml"
    keys: bool = True


class Front(_Table, frozen=True):
    """Where a party's front is reached. `certificate` or `ca` (PEM files) is what clients are to expect of an https url."""

    url: str
    control: Address
    certificate: str | None = None
    ca: str | None = None


class Me(_Table, frozen=True):
    """What is this party's alone. `weights` names the files of the models that it owns.

    With `rest_key` (a file, or credential:NAME of systemd) or `rest_key_command` its shares of all weights are kept.
    """

    data: Annotated[str, Meta(min_length=1)]
    listen: Address | None = None
    control_listen: Address | None = None
    tls_certificate: str | None = None
    tls_key: str | None = None
    metrics: Address | None = None
    weights: dict[str, str] = {}
    rest_key: str | None = None
    rest_key_command: Annotated[tuple[str, ...], Meta(min_length=1)] | None = None


class Limits(_Table, frozen=True):
    """What a party takes on at most. The same at all parties: what one refuses, no other can compute alone."""

    queue_rows: Count = 2048
    rows_per_day: Count = 1_000_000
    requests_per_second: Annotated[float, Meta(gt=0)] = 1000.0
    share_wait_s: Seconds = 0.5
    restart_wait_s: Seconds = 30.0
    drain_s: Seconds = 30.0


class Model(_Table, frozen=True):
    """A model that is served. What is None is as the script's make_family() has it."""

    name: ModelName
    script: str
    version: Count = 1
    sizes: tuple[Count, ...] | None = None
    clamp: tuple[float, float] | None = None
    reveal: str | None = None
    labels: tuple[str, ...] | None = None
    rows_per_day: Count | None = None
    lanes: Annotated[int, Meta(ge=1, le=64)] = 1

    @property
    def options(self) -> dict[str, Any]:
        """What make_family() is called with."""
        given = {name: getattr(self, name) for name in ("sizes", "clamp", "reveal", "labels")}
        if self.reveal and (top := re.fullmatch("top([1-9][0-9]*)", self.reveal)):
            given["reveal"] = "class" if top[1] == "1" else ("top", int(top[1]))
        return {name: value for name, value in given.items() if value is not None}


class File(_Table, frozen=True):
    """The tables of a SERVICE.toml. `fronts` are `Front` once they were read."""

    service: Service
    fronts: dict[str, Any]
    model: tuple[Model, ...]
    me: Me | None = None
    limits: Limits = Limits()


@dataclass(frozen=True)
class ServiceConfig:
    """A SERVICE.toml, checked. Paths inside are absolute; `parties` has the engines' addresses and certificates."""

    path: Path
    service: Service
    fronts: Mapping[str, Front]
    models: tuple[Model, ...]
    limits: Limits
    me: Me | None
    parties: PartiesConfig

    @property
    def ranks(self) -> tuple[str, ...]:
        """The parties in the order of the programs: the leader, then the others as the parties file lists them."""
        leader = self.service.leader
        return (leader, *(name for name in self.parties.parties if name != leader))

    @property
    def own(self) -> Me:
        """The table [me]. Raises ConfigError where there is none."""
        if self.me is None:
            fix = 'add [me] with data = "FOLDER", or start all roles here with --local'
            raise ConfigError(
                explain("the file does not say what is this party's alone", where=str(self.path), fix=fix)
            )
        return self.me

    @property
    def data(self) -> Path:
        """The folder where this party keeps its journal, API keys and weights."""
        return Path(self.own.data)

    def model(self, name: str) -> Model:
        """The model of that name. Raises ConfigError."""
        for model in self.models:
            if model.name == name:
                return model
        known = ", ".join(model.name for model in self.models)
        raise ConfigError(explain(f"there is no model {name!r}", where=str(self.path), why=f"it lists {known}"))

    def digest(self) -> bytes:
        """32 bytes that are equal for two files that describe the same service; [me] and places of files do not count."""
        models = [structs.replace(model, script=Path(model.script).name) for model in self.models]
        fronts = {name: structs.replace(front, certificate=None, ca=None) for name, front in self.fronts.items()}
        service = structs.replace(self.service, parties="")
        text = msgspec.json.encode([service, dict(sorted(fronts.items())), models, self.limits])
        return hashlib.sha256(text + self.parties.roster_digest()).digest()


def load(path: str | Path) -> ServiceConfig:
    """Reads a SERVICE.toml and the parties file that it names. Raises ConfigError with the line of what is wrong."""
    path = Path(path).absolute()
    file, text = read_file(path)
    base = path.parent

    def wrong(what: str, keys: tuple[str | int, ...], fix: str, why: str = "") -> ConfigError:
        return ConfigError(explain(what, where=_place(path, text, keys), why=why, fix=fix))

    parties = identity.load_config(base / file.service.parties)
    for name in parties.parties:
        if name == CLIENT or not is_name(name):
            fix = "choose another name"
            raise wrong(f"a party of a service cannot be called {name!r}", ("service", "parties"), fix, NAME_RULE)
        if name not in file.fronts:
            raise wrong(f"nothing says where clients reach {name!r}", ("fronts",), f"add [fronts.{name}]")
    for name, front in file.fronts.items():
        if name not in parties.parties:
            known = f"{parties.path} lists {', '.join(parties.parties)}"
            raise wrong(f"{name!r} is not a party", ("fronts", name), "use the names of the parties file", known)
        if (problem := _url_problem(front.url)) is not None:
            fix = 'write, for example, url = "https://bank.example:8443"'
            raise wrong(f"{front.url!r} is no address for clients", ("fronts", name, "url"), fix, problem)
    for address, keys in _addresses(file):
        if int(address.rpartition(":")[2]) > 65535:
            raise wrong(f"{address!r} has no port that exists", keys, "write HOST:PORT, with a port up to 65535")
    for address, keys in _once(file):
        raise wrong(f"two fronts are at {address!r}", keys, "give each party its own address")
    if file.me and file.me.metrics and file.me.metrics.rpartition(":")[0] not in ("127.0.0.1", "localhost"):
        why, fix = "metrics are for this machine alone", 'write, for example, metrics = "127.0.0.1:9464"'
        raise wrong(f"{file.me.metrics!r} is not 127.0.0.1", ("me", "metrics"), fix, why)
    if file.service.leader not in parties.parties:
        fix = f"name one of {', '.join(parties.parties)}"
        raise wrong(f"the leader {file.service.leader!r} is not a party", ("service", "leader"), fix)
    names = [model.name for model in file.model]
    for index, model in enumerate(file.model):
        if model.name in names[:index]:
            raise wrong(f"two models are called {model.name!r}", ("model", index, "name"), "choose another name")
        if not (base / model.script).is_file():
            fix = "name the Python file that defines make_family()"
            raise wrong(f"there is no file {model.script}", ("model", index, "script"), fix)
        if model.clamp and not model.clamp[0] < model.clamp[1]:
            fix = "write clamp = [lowest, highest]"
            raise wrong("the clamp's lowest value is not below its highest", ("model", index, "clamp"), fix)
        if model.reveal and not re.fullmatch("all|probabilities|class|top[1-9][0-9]{0,3}", model.reveal):
            fix = 'write "all", "probabilities", "class", or "top3" for three classes'
            raise wrong(f"reveal = {model.reveal!r} means nothing", ("model", index, "reveal"), fix)
        if model.sizes and list(model.sizes) != sorted(set(model.sizes)):
            raise wrong("sizes are not in rising order", ("model", index, "sizes"), "write sizes = [1, 8, 32, 128]")
    if not file.model:
        raise wrong("a service without a model", (), "add [[model]] with name and script")
    for name in file.me.weights if file.me else ():
        if name not in names:
            raise wrong(f"weights are named for {name!r}, which is no model", ("me", "weights"), "correct the name")
    if file.me and bool(file.me.tls_certificate) != bool(file.me.tls_key):
        raise wrong("a certificate goes with its key", ("me",), "give both tls_certificate and tls_key")
    if file.me and file.me.rest_key and file.me.rest_key_command:
        raise wrong("both rest_key and rest_key_command are given", ("me", "rest_key"), "keep one")
    for name, keys in _files(file):
        if not (base / name).is_file():
            raise wrong(f"there is no file {name}", keys, "name the PEM file")
    return ServiceConfig(
        path,
        file.service,
        {name: _absolute(front, base, "certificate", "ca") for name, front in file.fronts.items()},
        tuple(_absolute(model, base, "script") for model in file.model),
        file.limits,
        file.me and _own(file.me, base),
        parties,
    )


def read_file(path: Path) -> tuple[File, str]:
    """The tables of a SERVICE.toml, of the right kinds and no more, and its text. Raises ConfigError."""
    try:
        text = path.read_text("utf-8")
        tables = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(explain("a file cannot be read", where=str(path), why=error.strerror or "")) from None
    except (ValueError, RecursionError) as error:  # also of numbers that are too long, and tables that are too deep
        raise ConfigError(explain("a service file is not valid TOML", where=str(path), why=str(error))) from None
    file = _converted(tables, File, path, text)
    fronts = {name: _converted(table, Front, path, text, "fronts", name) for name, table in file.fronts.items()}
    return structs.replace(file, fronts=fronts), text


def _converted(value: Any, kind: Any, path: Path, text: str, *inside: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `")
        keys = [int(part) if part.isdecimal() else part for part in re.findall(r"[^.\[\]`$]+", place)]
        named = re.search("field `(.*)`", what)
        where = _place(path, text, (*inside, *keys, *([named[1]] if named else [])))
        fix = "correct it; docs/operations.md lists all keys"
        raise ConfigError(explain(what[:1].lower() + what[1:], where=where, fix=fix)) from None


def _place(path: Path, text: str, keys: tuple[str | int, ...]) -> str:
    """The file, and the line of a key, or of the table that it would be in: keys are names, and numbers in lists."""
    best, counts = (0, 0), Counter[str]()
    table: tuple[str | int, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        found: tuple[str | int, ...]
        if heading := re.match(r"\s*(\[\[?)\s*([^\[\]]+?)\s*\]", line):
            found = tuple(part.strip(' "') for part in heading[2].split("."))
            if heading[1] == "[[":
                found = (*found, counts[heading[2]])
                counts[heading[2]] += 1
            table = found
        elif key := re.match(r"\s*\"?([\w-]+)\"?\s*=", line):
            found = (*table, key[1])
        else:
            continue
        same = min(len(found), len(keys))
        if same > best[0] and found[:same] == keys[:same]:
            best = (same, number)
    return f"{path}, line {best[1]}" if best[1] else str(path)


def _addresses(file: File) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every address where a front listens or is reached by others, and its keys in the file."""
    for name, front in file.fronts.items():
        yield front.control, ("fronts", name, "control")
    for key in ("listen", "control_listen", "metrics"):
        if file.me and (address := getattr(file.me, key)):
            yield address, ("me", key)


def _once(file: File) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Addresses of fronts that another front has as well."""
    for key in ("url", "control"):
        counts = Counter(getattr(front, key).rstrip("/") for front in file.fronts.values())
        for name, front in file.fronts.items():
            if counts[getattr(front, key).rstrip("/")] > 1:
                yield getattr(front, key), ("fronts", name, key)


def _files(file: File) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The PEM files that are named, and their keys in the file."""
    tables: list[tuple[Any, tuple[str, ...], tuple[str, ...]]] = [
        (front, ("certificate", "ca"), ("fronts", name)) for name, front in file.fronts.items()
    ]
    for table, names, where in [*tables, (file.me, ("tls_certificate", "tls_key"), ("me",))]:
        for key in names:
            if table and (name := getattr(table, key)):
                yield name, (*where, key)


def _url_problem(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        return str(error)
    if re.search(r"[\s\x00-\x1f]", url):
        return "it holds a space"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "it does not begin with https://HOST"
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
        return "it has more than a host and a port"
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        return "shares without TLS could be read on their way, and whoever reads all of them has the input"
    return None


def _absolute(table: Any, base: Path, *keys: str) -> Any:
    return structs.replace(table, **{key: str(base / value) for key in keys if (value := getattr(table, key))})


def _own(me: Me, base: Path) -> Me:
    weights = {name: str(base / file) for name, file in me.weights.items()}
    files = ["data", "tls_certificate", "tls_key", *(["rest_key"] if not is_credential(me.rest_key) else [])]
    return structs.replace(_absolute(me, base, *files), weights=weights)
