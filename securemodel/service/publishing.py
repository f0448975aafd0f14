"""New weights for a model that is being served: loaded beside the old ones, tried, and then current everywhere at once.

The weights' owner asks the leader, who tells all parties to load; each says when its lanes are ready (or that they
failed), and the leader makes the version current. Requests that have a version keep it: the old one is unloaded when
nobody waits for it. The program stays the same; another program is another entry of SERVICE.toml, at all parties.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from protocols.errors import ConfigError, SecureModelError, explain
from protocols.files import file_errors, write_atomically, write_secret
from securemodel.service.config import ServiceConfig
from securemodel.service.messages import Publish
from securemodel.service.naming import weights_folder

if TYPE_CHECKING:
    from securemodel.service.admin import Say
    from securemodel.service.lanes import EngineLane
    from securemodel.service.party import PartyDesk

_WAIT_S, _LONGEST_WHY = 300.0, 500


class NotPublished(SecureModelError):
    """A version was not made current; the old one is as it was."""


class Versions:
    """Which version of each model is current at this party, on disk, and where its weights are if this party owns them."""

    def __init__(self, config: ServiceConfig) -> None:
        self._config, self._path = config, config.data / "versions.json"
        self._current: dict[str, int] = {}
        if self._path.exists():
            try:
                self._current = msgspec.json.decode(self._path.read_bytes(), type=dict[str, int])
            except msgspec.DecodeError as error:
                fix = "restore it, or remove it: then versions are those of SERVICE.toml"
                what = "the list of versions is damaged"
                raise ConfigError(explain(what, where=str(self._path), why=str(error), fix=fix)) from None

    def current(self, model: str) -> int:
        """The version that was last made current, or that of SERVICE.toml where that is later."""
        return max(self._current.get(model, 0), self._config.model(model).version)

    def set_current(self, model: str, version: int) -> None:
        """Writes down that a version is current; files of those before are removed."""
        self._current[model] = version
        write_atomically(self._path, msgspec.json.encode(self._current))
        for file in weights_folder(self._config, model).glob("*.*"):
            number = re.match("[0-9]+", file.name)
            if number and int(number[0]) < version:
                file.unlink(missing_ok=True)

    def weights(self, model: str, version: int) -> Path | None:
        """The file of a version's weights, where this party has one."""
        published = self._published(model, version)
        if published.exists():
            return published
        named = self._config.own.weights.get(model)
        return Path(named) if named and version == self._config.model(model).version else None

    def card(self, model: str, version: int) -> Mapping[str, Any] | None:
        """The card of a version, as it was when its engine was last ready here."""
        path = weights_folder(self._config, model) / f"{version}.card"
        return json.loads(path.read_bytes()) if path.exists() else None

    def keep_card(self, model: str, version: int, card: Mapping[str, Any]) -> None:
        """Keeps a card, so that a front that restarts knows what to answer before its engine is there."""
        write_atomically(weights_folder(self._config, model) / f"{version}.card", json.dumps(card).encode())

    def keep(self, model: str, version: int, weights: Path) -> None:
        """Copies the weights of a version into the data folder, for restarts."""
        path = self._published(model, version)
        with file_errors(weights):
            write_secret(path, weights.read_bytes(), "a file of weights")

    def forget(self, model: str, version: int) -> None:
        """Removes what was kept of a version that did not become current."""
        folder = weights_folder(self._config, model)
        for file in (*folder.glob(f"{version}.*"), *folder.glob(f"{version}-*.shares")):
            file.unlink(missing_ok=True)

    def _published(self, model: str, version: int) -> Path:
        return weights_folder(self._config, model) / f"{version}.weights"


class Serving(Protocol):
    """What publishing needs of a party."""

    config: ServiceConfig
    me: str
    desk: PartyDesk
    versions: Versions
    lanes: dict[tuple[str, int], list[EngineLane]]

    def begin(self, model: str, version: int) -> list[EngineLane]: ...

    async def end(self, model: str, version: int) -> None: ...


class Publishing:
    """A party's side of it; the leader also counts who is ready."""

    def __init__(self, party: Serving) -> None:
        self._party = party
        self._loading: dict[str, int] = {}
        self._ready: dict[tuple[str, int], set[str]] = {}
        self._asked: dict[tuple[str, int], asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        party.desk.on_publish, party.desk.on_link = self._hear, self._linked

    async def publish(self, model: str, weights: Path, say: Say) -> Mapping[str, Any]:
        """At the owner: makes a file of weights the current version at all parties. Raises NotPublished, ConfigError."""
        versions = self._party.versions
        self._party.config.model(model)
        version = versions.current(model) + 1
        if self._busy(model):
            fix = "wait until `securemodel status` shows one version of it"
            raise NotPublished(explain(f"two versions of {model!r} are loaded already", fix=fix))
        if away := self._away():
            raise _not_published(away)
        versions.keep(model, version, weights)
        for lane in self._party.lanes.get((model, version - 1), []):
            if not lane.up:  # what stands in its way, such as a dealer who is away, may be in the new one's, too
                say(f"version {version - 1} is not ready here: {lane.reason.partition(chr(10))[0] or lane.state}")
        asked = self._asked[model, version] = asyncio.get_running_loop().create_future()
        say(f"loading version {version} of {model} beside version {version - 1}")
        try:
            self._tell_leader(Publish(model, version, "ask"))
            await asyncio.wait_for(asked, _WAIT_S)
        except asyncio.TimeoutError:
            self._tell_leader(Publish(model, version, "failed", "its owner has waited too long"))
            fix = "look at `securemodel status` at every party"
            raise NotPublished(explain(f"not all parties were ready within {_WAIT_S:g} s", fix=fix)) from None
        finally:
            del self._asked[model, version]
        return {"model": model, "version": version}

    def lane_changed(self, lane: EngineLane) -> None:
        """A lane of a version that is being loaded is ready, or its engine found something wrong."""
        lanes = self._party.lanes.get((lane.model, lane.version), [])
        if self._loading.get(lane.model) != lane.version or lane not in lanes:  # of a try before, which is being ended
            return
        if all(one.up for one in lanes):
            self._tell_leader(Publish(lane.model, lane.version, "loaded"))
        elif lane.state == "ended":
            self._tell_leader(Publish(lane.model, lane.version, "failed", lane.reason.split("\n")[0][:_LONGEST_WHY]))

    # ---- messages
    def _busy(self, model: str) -> bool:
        return model in self._loading or sum(name == model for name, _ in self._party.lanes) > 1

    @property
    def _leads(self) -> bool:
        return self._party.me == self._party.desk.leader

    def _tell_leader(self, message: Publish) -> None:
        self._tell(self._party.desk.leader, message)

    def _tell(self, name: str, message: Publish) -> None:
        if name == self._party.me:
            self._hear(name, message)
        else:
            self._party.desk.tell(name, message)

    def _tell_all(self, message: Publish) -> None:
        for name in self._party.desk.parties:
            self._tell(name, message)

    def _linked(self, party: str, up: bool) -> None:
        """The leader tells a party that connects which versions are current, as it may have missed that, and gives up
        what is being loaded where one leaves. Without the leader nobody knows what became of it."""
        if self._leads and up:
            for model in self._party.config.models:
                self._tell(party, Publish(model.name, self._party.versions.current(model.name), "current"))
        elif self._leads:
            for key in list(self._ready):
                self._give_up_everywhere(key, _unreachable([party]))
        elif not up:
            what = f"{party} cannot be reached any more, and may have made the version current, or not"
            fix = "once the link is up, `securemodel status` says which version is current"
            for asked in self._asked.values():
                _refuse(asked, NotPublished(explain(what, fix=fix)))

    def _away(self) -> str:
        """Which of the parties that this one has links to are not there, in words; nothing where all are."""
        away = [name for name, up in self._party.desk.connected.items() if not up]
        return _unreachable(away) if away else ""

    def _hear(self, party: str, message: Publish) -> None:
        """What a follower says to the leader, and what the leader says to all, itself included."""
        key = (message.model, message.version)
        if message.model not in {model.name for model in self._party.config.models}:
            return
        if self._leads and message.stage == "ask":
            self._ask(party, key)
        elif self._leads and message.stage in ("loaded", "failed") and key in self._ready:
            self._count(party, key, message)
        elif party == self._party.desk.leader and message.stage in ("load", "current", "given up", "refused"):
            self._follow(key, message)

    def _ask(self, party: str, key: tuple[str, int]) -> None:
        model, version = key
        if self._busy(model) or version != self._party.versions.current(model) + 1:
            self._tell(party, Publish(model, version, "refused", "another version is being loaded, or was published"))
            return
        if away := self._away():
            self._tell(party, Publish(model, version, "refused", away))
            return
        self._ready[key] = set()
        self._tell_all(Publish(model, version, "load"))

    def _count(self, party: str, key: tuple[str, int], message: Publish) -> None:
        ready = self._ready[key]
        if message.stage == "failed":
            self._give_up_everywhere(key, _blame(party) + message.why)
            return
        ready.add(party)
        if ready == set(self._party.desk.parties):
            del self._ready[key]
            self._party.versions.set_current(*key)
            self._party.desk.switch(*key)
            self._tell_all(Publish(*key, "current"))

    def _give_up_everywhere(self, key: tuple[str, int], why: str) -> None:
        del self._ready[key]
        self._tell_all(Publish(*key, "given up", why[:_LONGEST_WHY]))

    def _follow(self, key: tuple[str, int], message: Publish) -> None:
        if message.stage == "load" and key not in self._party.lanes:
            self._loading[key[0]] = key[1]
            self._party.begin(*key)
        elif message.stage == "current":
            self._make_current(*key)
        elif message.stage == "given up":
            self._give_up(*key, message.why)
        elif message.stage == "refused":
            self._fail(*key, message.why)

    def _make_current(self, model: str, version: int) -> None:
        """A version is current: it is loaded if it is not, and the others are ended once nobody waits for them."""
        self._loading.pop(model, None)
        self._party.versions.set_current(model, version)
        if (model, version) not in self._party.lanes:
            self._party.begin(model, version)
        if (asked := self._asked.get((model, version))) and not asked.done():
            asked.set_result(None)
        for name, old in list(self._party.lanes):
            if name == model and old != version:
                self._later(self._end(name, old))

    async def _end(self, model: str, version: int) -> None:
        await self._party.desk.idle(model, version)
        await self._party.end(model, version)

    def _give_up(self, model: str, version: int, why: str) -> None:
        """The version before goes on. Whoever asked here is told all that its own engine said, the others a line."""
        if why.startswith(own := _blame(self._party.me)):
            lanes = self._party.lanes.get((model, version), [])
            why = next((own + lane.reason for lane in lanes if lane.state == "ended"), why)
        self._fail(model, version, why)
        if self._loading.get(model) == version:
            del self._loading[model]
            self._later(self._party.end(model, version))
        if version > self._party.versions.current(model):
            self._party.versions.forget(model, version)

    def _fail(self, model: str, version: int, why: str) -> None:
        """Tells whoever asked for it here."""
        if asked := self._asked.get((model, version)):
            _refuse(asked, _not_published(why))

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _refuse(asked: asyncio.Future[None], error: NotPublished) -> None:
    if not asked.done():
        asked.set_exception(error)


def _not_published(why: str) -> NotPublished:
    fix = "correct that and publish again; the version before is still served"
    return NotPublished(explain("the version was not published", why=why, fix=fix))


def _unreachable(parties: Sequence[str]) -> str:
    return f"{' and '.join(parties)} cannot be reached; `securemodel status` shows the links"


def _blame(party: str) -> str:
    return f"{party} could not load it: "
