"""Publishing among three parties without processes: who owns the weights may follow, and whatever fails leaves the old version."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from securemodel.service import publishing
from securemodel.service.messages import Publish
from securemodel.service.publishing import NotPublished, Publishing, Versions

PARTIES = ("bank", "shop", "clinic")
MODEL = SimpleNamespace(name="small", version=1, lanes=1)


@dataclass
class Lane:
    """A lane that is up, or failed, when the test says so."""

    model: str
    version: int
    state: str = "starting"
    reason: str = ""
    up: bool = False


class Desk:
    """Passes messages on, in order, as the links do."""

    leader, parties = "bank", PARTIES

    def __init__(self, me: str, fronts: dict[str, Front]) -> None:
        self.me, self._fronts = me, fronts
        self.switched: list[tuple[str, int]] = []
        self.away: set[str] = set()
        self.on_publish: Callable[[str, Publish], None] | None = None
        self.on_link: Callable[[str, bool], None] | None = None

    def tell(self, party: str, message: Publish) -> None:
        assert self.leader in (party, self.me), "followers have a link to the leader alone"
        asyncio.get_running_loop().call_soon(self._fronts[party].desk.on_publish, self.me, message)

    @property
    def connected(self) -> dict[str, bool]:
        linked = [name for name in PARTIES if name != self.me] if self.me == self.leader else [self.leader]
        return {name: name not in self.away for name in linked}

    def switch(self, model: str, version: int) -> None:
        self.switched.append((model, version))

    async def idle(self, model: str, version: int) -> None:
        await asyncio.sleep(0)


@dataclass
class Front:
    """What publishing needs of a party; `broken` parties cannot load."""

    me: str
    config: Any
    fronts: dict[str, Front]
    broken: bool = False
    lanes: dict[tuple[str, int], list[Lane]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.desk, self.versions = Desk(self.me, self.fronts), Versions(self.config)
        self.publishing = Publishing(self)
        self.lanes["small", 1] = [Lane("small", 1, "ready", up=True)]

    def begin(self, model: str, version: int) -> list[Lane]:
        lane = Lane(model, version)
        self.lanes[model, version] = [lane]
        asyncio.get_running_loop().call_soon(self._loaded, lane)
        return [lane]

    def _loaded(self, lane: Lane) -> None:
        lane.up, lane.state = not self.broken, "ended" if self.broken else "ready"
        lane.reason = "no such file\nmore" if self.broken else ""
        self.publishing.lane_changed(lane)

    async def end(self, model: str, version: int) -> None:
        del self.lanes[model, version]

    @property
    def loaded(self) -> list[int]:
        return sorted(version for _, version in self.lanes)


@pytest.fixture
def fronts(tmp_path: Path) -> dict[str, Front]:
    made: dict[str, Front] = {}
    for name in PARTIES:
        data = tmp_path / name
        data.mkdir()

        def model(asked: str, own: Any = MODEL) -> Any:
            assert asked == own.name
            return own

        config = SimpleNamespace(data=data, models=(MODEL,), model=model, own=SimpleNamespace(weights={}))
        made[name] = Front(name, config, made)
    (tmp_path / "new").write_bytes(b"weights")
    return made


async def settled(fronts: dict[str, Front]) -> None:
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("owner", PARTIES)
def test_a_version_becomes_current_at_all_parties(fronts: dict[str, Front], tmp_path: Path, owner: str) -> None:
    async def publish() -> Any:
        done = await fronts[owner].publishing.publish("small", tmp_path / "new", lambda text: None)
        await settled(fronts)
        return done

    for version in (2, 3):
        assert asyncio.run(publish()) == {"model": "small", "version": version}
        assert all(
            front.loaded == [version] and front.versions.current("small") == version for front in fronts.values()
        )
    assert fronts["bank"].desk.switched == [("small", 2), ("small", 3)]
    assert all(Versions(front.config).current("small") == 3 for front in fronts.values()), "also after a restart"
    kept = [file.name for file in (tmp_path / owner / "weights" / "small").iterdir()]
    assert kept == ["3.weights"], "files of versions before are removed"


@pytest.mark.parametrize("broken", PARTIES)
def test_what_one_party_cannot_load_is_given_up_by_all(fronts: dict[str, Front], tmp_path: Path, broken: str) -> None:
    fronts[broken].broken = True

    async def publish() -> None:
        rest = (
            "\n *more" if broken == "shop" else "\n *→"
        )  # who asked sees all that its own engine said, and no other's
        with pytest.raises(NotPublished, match=f"{broken} could not load it: no such file{rest}"):
            await fronts["shop"].publishing.publish("small", tmp_path / "new", lambda text: None)
        await settled(fronts)

    asyncio.run(publish())
    assert all(front.loaded == [1] and front.versions.current("small") == 1 for front in fronts.values())
    assert not fronts["bank"].desk.switched and not list((tmp_path / "shop" / "weights" / "small").iterdir())
    fronts[broken].broken = False
    done = asyncio.run(_publish_and_settle(fronts, tmp_path))
    assert done["version"] == 2 and all(front.loaded == [2] for front in fronts.values())


def test_an_engine_of_a_try_before_that_ends_late_is_no_failure_of_the_next(fronts, tmp_path: Path) -> None:
    late, begin = Lane("small", 2, "ended", "of the file before"), fronts["shop"].begin

    def begin_and_hear_of_the_other(model: str, version: int) -> list[Lane]:
        made = begin(model, version)
        fronts["shop"].publishing.lane_changed(late)
        return made

    fronts["shop"].begin = begin_and_hear_of_the_other
    assert asyncio.run(_publish_and_settle(fronts, tmp_path))["version"] == 2


async def _publish_and_settle(fronts: dict[str, Front], folder: Path) -> Any:
    done = await fronts["shop"].publishing.publish("small", folder / "new", lambda text: None)
    await settled(fronts)
    return done


def test_two_owners_at_once_do_not_mix(fronts: dict[str, Front], tmp_path: Path) -> None:
    async def both() -> list[Any]:
        asked = [
            fronts[name].publishing.publish("small", tmp_path / "new", lambda text: None) for name in ("shop", "clinic")
        ]
        found = await asyncio.gather(*asked, return_exceptions=True)
        await settled(fronts)
        return found

    found = asyncio.run(both())
    assert [isinstance(one, NotPublished) for one in found].count(True) <= 1
    assert all(front.loaded == [2] for front in fronts.values())


def test_a_party_that_missed_a_switch_is_told_when_it_connects(fronts: dict[str, Front], tmp_path: Path) -> None:
    fronts["bank"].versions.set_current("small", 2)
    fronts["bank"].lanes = {("small", 2): [Lane("small", 2, "ready", up=True)]}

    async def connect() -> None:
        fronts["bank"].desk.on_link("shop", True)
        await settled(fronts)

    asyncio.run(connect())
    assert fronts["shop"].loaded == [2] and fronts["shop"].versions.current("small") == 2
    assert fronts["clinic"].loaded == [1]


def test_a_party_that_never_answers_is_waited_for_so_long(
    fronts: dict[str, Front], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "_WAIT_S", 0.2)
    fronts["clinic"].begin = lambda model, version: []

    async def publish() -> None:
        with pytest.raises(NotPublished, match="not all parties were ready"):
            await fronts["shop"].publishing.publish("small", tmp_path / "new", lambda text: None)
        await settled(fronts)

    asyncio.run(publish())
    assert fronts["bank"].loaded == fronts["shop"].loaded == [1]


@pytest.mark.parametrize(("asks", "away"), [("bank", "clinic"), ("shop", "clinic"), ("shop", "bank")])
@pytest.mark.parametrize("leaves", ["before", "meanwhile"])
def test_who_cannot_be_reached_is_named_at_once(
    fronts: dict[str, Front], tmp_path: Path, asks: str, away: str, leaves: str
) -> None:
    """The leader sees that a follower leaves, and every follower that the leader does."""
    witness = fronts["shop" if away == "bank" else "bank"].desk

    async def publish() -> None:
        if leaves == "before":
            witness.away.add(away)
        else:
            fronts[away].begin = lambda model, version: witness.on_link(away, False) or []
        with pytest.raises(NotPublished, match=f"{away} cannot be reached"):
            await asyncio.wait_for(fronts[asks].publishing.publish("small", tmp_path / "new", lambda text: None), 60)
        if away == "bank" and leaves == "meanwhile":  # what became of it, the leader says when it is back
            return
        await settled(fronts)
        assert fronts[asks].loaded == [1] and fronts[asks].versions.current("small") == 1

    asyncio.run(publish())


def test_what_keeps_the_version_before_from_running_is_said(fronts: dict[str, Front], tmp_path: Path) -> None:
    fronts["shop"].lanes["small", 1] = [Lane("small", 1, "down", "the dealer cannot be reached\nat all")]
    said: list[str] = []
    asyncio.run(fronts["shop"].publishing.publish("small", tmp_path / "new", said.append))
    assert said[0] == "version 1 is not ready here: the dealer cannot be reached" and "loading version 2" in said[1]


def test_followers_obey_the_leader_alone(fronts: dict[str, Front]) -> None:
    async def lie() -> None:
        for stage in ("load", "current", "given up", "nonsense"):
            fronts["shop"].desk.on_publish("clinic", Publish("small", 9, stage))
            fronts["shop"].desk.on_publish("bank", Publish("other", 9, stage))
        fronts["bank"].desk.on_publish("clinic", Publish("small", 9, "loaded"))
        await settled(fronts)

    asyncio.run(lie())
    assert all(front.loaded == [1] and front.versions.current("small") == 1 for front in fronts.values())
