"""All roles of a service on one machine, for a look: identities, keys and a SERVICE.toml for each, in one folder.

Nothing is protected then: who has the machine has all shares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs

from protocols.channel.testing import free_addresses, loopback_parties
from protocols.errors import ConfigError, explain
from protocols.identity import DEALER, Timeouts
from securemodel.service import rest
from securemodel.service.tables import Front, read_file

_TIMEOUTS = Timeouts(connect_s=60.0, receive_s=60.0)
_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Roles:
    """The files of a service on this machine: a SERVICE.toml by party, the leader first; the dealer's parties file."""

    services: Mapping[str, Path]
    dealer: Path
    urls: Mapping[str, str]


def write_roles(path: Path, folder: Path, port: int) -> Roles:
    """Writes what the roles of a SERVICE.toml need into an empty folder. Clients reach the parties on ports from `port`
    on (0: free ones), over plain HTTP, which stays on this machine. Raises ConfigError.
    """
    path = path.absolute()
    file, _ = read_file(path)
    names = _names(path, file.service.leader, file.fronts)
    models = [structs.replace(model, script=str(path.parent / model.script)) for model in file.model]
    lanes = sum(2 * model.lanes for model in models)
    roster, _ = loopback_parties(names, folder, dealer=True, timeouts=_TIMEOUTS, lanes=lanes)
    roster_text = Path(str(roster.path)).read_text()
    addresses = [f"{_HOST}:{port + n}" for n in range(len(names))] if port else free_addresses(len(names))
    fronts = {
        name: Front(url=f"http://{address}", control=control)
        for name, address, control in zip(names, addresses, free_addresses(len(names)), strict=True)
    }
    weights = {name: str(path.parent / kept) for name, kept in (file.me.weights if file.me else {}).items()}
    services = {}
    for name, address in zip(names, addresses, strict=True):
        own = folder / name
        parties = own / "parties.toml"
        text = roster_text.replace('certificate = "', f'certificate = "{folder}/')
        parties.write_text(f'{text}[me]\nidentity = "."\n')
        rest.new_key_file(own / "rest.key")
        me = {"data": str(own / "data"), "listen": address, "weights": weights, "rest_key": str(own / "rest.key")}
        tables = {
            "service": msgspec.to_builtins(structs.replace(file.service, parties=str(parties))),
            **{f"fronts.{other}": msgspec.to_builtins(front) for other, front in fronts.items()},
            "limits": msgspec.to_builtins(file.limits),
            "me": me,
        }
        services[name] = own / "service.toml"
        services[name].write_text(_toml(tables, [msgspec.to_builtins(model) for model in models]))
    dealer = folder / f"{DEALER}.toml"
    dealer.write_text(f'{roster_text}[me]\nidentity = "{DEALER}"\n')
    return Roles(services, dealer, {name: front.url for name, front in fronts.items()})


def _names(path: Path, leader: str, fronts: Mapping[str, Any]) -> tuple[str, ...]:
    """Who the parties are, the leader first, by the tables [fronts] alone. Raises ConfigError."""
    if leader not in fronts or len(fronts) < 2:
        fix = "add [fronts.NAME] for the leader and at least one more party"
        raise ConfigError(explain("the tables [fronts] do not name the parties", where=str(path), fix=fix))
    return (leader, *(name for name in fronts if name != leader))


def _toml(tables: Mapping[str, Mapping[str, Any]], models: Sequence[Mapping[str, Any]]) -> str:
    """Tables of plain values as TOML; what is None is left out."""
    headed = [*((f"[{name}]", table) for name, table in tables.items()), *(("[[model]]", model) for model in models)]
    return "\n".join("\n".join([heading, *_lines(table), ""]) for heading, table in headed)


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in table.items() if value is not None]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_value(part)}" for key, part in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
