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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import structs

from protocols import identity
from protocols.errors import ConfigError, explain
from protocols.identity import PartiesConfig
from protocols.names import NAME_RULE, is_name
from securemodel.service.rest import is_credential
from securemodel.service.tables import File, Front, Keys, Limits, Me, Model, Service, named, place, read_file

CLIENT = "client"
_NETLOC = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?")


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

    def check_sizes(self, name: str, sizes: Sequence[int]) -> None:
        """Raises ConfigError where a model's programs are of more rows than may wait."""
        if max(sizes) > self.limits.queue_rows:
            what, fix = _no_room(name, max(sizes), self.limits)
            raise ConfigError(explain(what, where=str(self.path), fix=fix))

    def digest(self) -> bytes:
        """32 bytes that are equal for two files that describe the same service; [me] and places of files do not count."""
        models = [structs.replace(model, script=Path(model.script).name) for model in self.models]
        fronts = {name: structs.replace(front, certificate=None, ca=None) for name, front in self.fronts.items()}
        service = structs.replace(self.service, parties="")
        text = msgspec.json.encode([service, dict(sorted(fronts.items())), models, self.limits])
        return hashlib.sha256(text + self.parties.roster_digest()).digest()


class _Mistake(NamedTuple):
    """Something that is wrong in a file whose tables are of the right kinds, where it is, and what to do."""

    what: str
    keys: Keys
    fix: str
    why: str = ""


def load(path: str | Path) -> ServiceConfig:
    """Reads a SERVICE.toml and the parties file that it names. Raises ConfigError with the line of what is wrong."""
    path = Path(path).absolute()
    file, text = read_file(path)
    base = path.parent
    parties = identity.load_config(base / file.service.parties)
    for what, keys, fix, why in _mistakes(file, base, parties):
        where = ", ".join(filter(None, [place(path, text, keys), named(keys)]))
        raise ConfigError(explain(what, where=where, why=why, fix=fix))
    return ServiceConfig(
        path,
        file.service,
        {name: _absolute(front, base, "certificate", "ca") for name, front in file.fronts.items()},
        tuple(_absolute(model, base, "script") for model in file.model),
        file.limits,
        file.me and _own(file.me, base),
        parties,
    )


def _mistakes(file: File, base: Path, parties: PartiesConfig) -> Iterator[_Mistake]:
    """What is wrong, first what the rest builds on."""
    yield from _of_fronts(file.fronts, parties)
    yield from _of_addresses(file)
    if file.service.leader not in parties.parties:
        fix = f"name one of {', '.join(parties.parties)}"
        yield _Mistake(f"the leader {file.service.leader!r} is not a party", ("service", "leader"), fix)
    yield from _of_models(file.model, base, file.limits)
    if file.me:
        yield from _of_me(file.me, base, [model.name for model in file.model])
    for name, keys in _files(file):
        if not _is_file(base / name):
            yield _Mistake(f"there is no file {name}", keys, "name the PEM file")


def _of_fronts(fronts: Mapping[str, Front], parties: PartiesConfig) -> Iterator[_Mistake]:
    for name in parties.parties:
        if name == CLIENT or not is_name(name):
            what = f"a party of a service cannot be called {name!r}"
            yield _Mistake(what, ("service", "parties"), "choose another name", NAME_RULE)
        if name not in fronts:
            yield _Mistake(f"nothing says where clients reach {name!r}", ("fronts",), f"add [fronts.{name}]")
    for name, front in fronts.items():
        if name not in parties.parties:
            known = f"{parties.path} lists {', '.join(parties.parties)}"
            yield _Mistake(f"{name!r} is not a party", ("fronts", name), "use the names of the parties file", known)
        if (problem := _url_problem(front.url)) is not None:
            fix = 'write, for example, url = "https://bank.example:8443"'
            yield _Mistake(f"{front.url!r} is no address for clients", ("fronts", name, "url"), fix, problem)


def _of_addresses(file: File) -> Iterator[_Mistake]:
    for address, keys in _addresses(file):
        if not 0 < int(address.rpartition(":")[2]) < 65536:
            yield _Mistake(f"{address!r} has no port that exists", keys, "write HOST:PORT, with a port from 1 to 65535")
    for address, keys in _once(file):
        yield _Mistake(f"two fronts are at {address!r}", keys, "give each party its own address")


def _of_models(models: Sequence[Model], base: Path, limits: Limits) -> Iterator[_Mistake]:
    names = [model.name for model in models]
    for index, model in enumerate(models):
        at: Keys = ("model", index)
        if model.name in names[:index]:
            yield _Mistake(f"two models are called {model.name!r}", (*at, "name"), "choose another name")
        if not _is_file(base / model.script):
            fix = "name the Python file that defines make_family()"
            yield _Mistake(f"there is no file {model.script}", (*at, "script"), fix)
        if model.clamp and not model.clamp[0] < model.clamp[1]:
            fix = "write clamp = [lowest, highest]"
            yield _Mistake("the clamp's lowest value is not below its highest", (*at, "clamp"), fix)
        if model.reveal is not None and not re.fullmatch("all|probabilities|class|top[1-9][0-9]{0,3}", model.reveal):
            fix = 'write "all", "probabilities", "class", or "top3" for three classes'
            yield _Mistake(f"reveal = {model.reveal!r} means nothing", (*at, "reveal"), fix)
        if model.sizes and list(model.sizes) != sorted(set(model.sizes)):
            yield _Mistake("sizes are not in rising order", (*at, "sizes"), "write sizes = [1, 8, 32, 128]")
        if model.sizes and model.sizes[-1] > limits.queue_rows:
            what, fix = _no_room(model.name, model.sizes[-1], limits)
            yield _Mistake(what, (*at, "sizes"), fix)
        if twice := [label for label, count in Counter(model.labels or ()).items() if count > 1]:
            yield _Mistake(f"two classes are called {twice[0]!r}", (*at, "labels"), "give each class a name of its own")
    if not models:
        yield _Mistake("a service without a model", (), "add [[model]] with name and script")


def _no_room(name: str, rows: int, limits: Limits) -> tuple[str, str]:
    """What is wrong, and what to do, where not even one request of the largest size may wait."""
    what = f"limits.queue_rows = {limits.queue_rows} is less than the largest of {name!r}'s sizes, {rows}"
    return what, f"write queue_rows = {rows} or more, or leave out the largest of sizes"


def _of_me(me: Me, base: Path, models: Sequence[str]) -> Iterator[_Mistake]:
    for name in me.weights:
        if name not in models:
            what = f"weights are named for {name!r}, which is no model"
            yield _Mistake(what, ("me", "weights"), "correct the name")
    if me.metrics and me.metrics.rpartition(":")[0] not in ("127.0.0.1", "localhost"):
        why, fix = "metrics are for this machine alone", 'write, for example, metrics = "127.0.0.1:9464"'
        yield _Mistake(f"{me.metrics!r} is not 127.0.0.1", ("me", "metrics"), fix, why)
    if bool(me.tls_certificate) != bool(me.tls_key):
        yield _Mistake("a certificate goes with its key", ("me",), "give both tls_certificate and tls_key")
    if me.rest_key and me.rest_key_command:
        yield _Mistake("both rest_key and rest_key_command are given", ("me", "rest_key"), "keep one")
    if not _may_be_folder(base / me.data):
        yield _Mistake(f"{me.data} is no folder", ("me", "data"), "name a folder for this party's files")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # of a name that is too long
        return False


def _may_be_folder(path: Path) -> bool:
    """Whether a folder is there, or can be made."""
    try:
        return path.is_dir() or not path.exists()
    except OSError:
        return False


def _addresses(file: File) -> Iterator[tuple[str, Keys]]:
    """Every address where a front listens or is reached by others, and its keys in the file."""
    for name, front in file.fronts.items():
        yield front.control, ("fronts", name, "control")
    for key in ("listen", "control_listen", "metrics"):
        if file.me and (address := getattr(file.me, key)):
            yield address, ("me", key)


def _once(file: File) -> Iterator[tuple[str, Keys]]:
    """Addresses of fronts that another front has as well."""
    for key in ("url", "control"):
        counts = Counter(getattr(front, key).rstrip("/") for front in file.fronts.values())
        for name, front in file.fronts.items():
            if counts[getattr(front, key).rstrip("/")] > 1:
                yield getattr(front, key), ("fronts", name, key)


def _files(file: File) -> Iterator[tuple[str, Keys]]:
    """The PEM files that are named, and their keys in the file."""
    tables: list[tuple[Any, tuple[str, ...], Keys]] = [
        (front, ("certificate", "ca"), ("fronts", name)) for name, front in file.fronts.items()
    ]
    for table, names, where in [*tables, (file.me, ("tls_certificate", "tls_key"), ("me",))]:
        for key in names:
            if table and (name := getattr(table, key)):
                yield name, (*where, key)


def _url_problem(url: str) -> str | None:
    if re.search(r"[\s\x00-\x1f]", url):
        return "it holds a space"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "it does not begin with https://HOST"
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        return "it has more than a host and a port"
    if not _NETLOC.fullmatch(parts.netloc) or port == 0:
        return "a host is letters, digits, '.', '-' and '_' (other alphabets as xn--...), and a port is 1 to 65535"
    if parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        return "shares without TLS could be read on their way, and whoever reads all of them has the input"
    return None


def _absolute(table: Any, base: Path, *keys: str) -> Any:
    return structs.replace(table, **{key: str(base / value) for key in keys if (value := getattr(table, key))})


def _own(me: Me, base: Path) -> Me:
    weights = {name: str(base / file) for name, file in me.weights.items()}
    files = ["data", "tls_certificate", "tls_key", *(["rest_key"] if not is_credential(me.rest_key) else [])]
    return structs.replace(_absolute(me, base, *files), weights=weights)
