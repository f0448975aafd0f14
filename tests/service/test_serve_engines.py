"""Engine processes of two parties under their fronts' lanes: right results, every end named, back without hands."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from protocols import devices
from protocols.errors import ConfigError
from securemodel.errors import SecureModelError
from securemodel.invocation import current
from securemodel.service import engine_process
from securemodel.service.config import ServiceConfig, load
from securemodel.service.desk import Job, LaneDown
from securemodel.service.engine_process import Engine
from securemodel.service.lanes import EngineLane
from securemodel.service.naming import Lane
from tests.service.engines import SCALE, SCRIPT, command, configurations, network, save, shares, write_service

PARTIES = ("bank", "shop")
LIMIT_S = 240.0
ROWS = np.linspace(-1.9, 1.9, 12).reshape(3, 4)


async def until(done: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not done():
        assert asyncio.get_running_loop().time() < deadline, "it took too long"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def lanes_of(
    configs: dict[str, ServiceConfig], version: int, weights: Path | None
) -> AsyncIterator[dict[str, EngineLane]]:
    """A started lane of each party; only the bank has a file of weights."""
    made = {
        name: EngineLane(config, name, Lane("small", version, 0), weights if name == "bank" else None, lambda *_: None)
        for name, config in configs.items()
    }
    for lane in made.values():
        lane.start()
    try:
        yield made
    finally:
        await asyncio.gather(*(lane.stop() for lane in made.values()))


def job(number: int, rows: np.ndarray, size: int = 4) -> dict[str, Job]:
    manifest = hashlib.sha256(b"%d" % number).digest()
    return {name: Job(number, size, len(rows), manifest, [share]) for name, share in shares(rows, PARTIES).items()}


async def run(lanes: dict[str, EngineLane], number: int, rows: np.ndarray, size: int = 4) -> np.ndarray:
    """What a client would add up."""
    answers = await asyncio.gather(*(lanes[name].run(part) for name, part in job(number, rows, size).items()))
    assert len({run for run, _ in answers}) == 1
    return sum(outputs[0] for _, outputs in answers) / SCALE


def plain(seed: int, rows: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return network(seed)(torch.from_numpy(rows).float()).numpy()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("engines")
    roles = write_service(folder)
    with command("dealer", "--config", roles.dealer, log=folder / "dealer.log"):
        yield folder, configurations(roles)


def test_from_the_owners_file_then_after_a_kill_then_from_stored_shares_alone(service) -> None:
    folder, configs = service

    async def first() -> None:
        async with lanes_of(configs, 1, folder / "small.safetensors") as lanes:
            await until(lambda: all(lane.up for lane in lanes.values()))
            assert {lane.loaded_from for lane in lanes.values()} == {"the owner's file"}
            assert lanes["bank"].card["sizes"] == [1, 4] and lanes["bank"].card == lanes["shop"].card
            assert set(lanes["shop"].seconds) == {1, 4}
            assert np.abs(await run(lanes, 1, ROWS) - plain(1, ROWS)).max() < 0.001
            assert np.abs(await run(lanes, 2, ROWS[:1], 1) - plain(1, ROWS[:1])).max() < 0.001
            os.kill(lanes["shop"].pid, signal.SIGKILL)
            await until(lambda: not any(lane.up for lane in lanes.values()))
            with pytest.raises(LaneDown):
                await lanes["bank"].run(job(3, ROWS)["bank"])
            assert "shop" in lanes["bank"].reason
            await until(lambda: all(lane.up for lane in lanes.values()))
            assert {lane.loaded_from for lane in lanes.values()} == {"stored shares"}
            assert np.abs(await run(lanes, 3, ROWS) - plain(1, ROWS)).max() < 0.001
            assert (lanes["shop"].starts, lanes["bank"].starts) == (2, 1), "the survivor kept its process"

    async def second() -> None:
        async with lanes_of(configs, 1, None) as lanes:
            await until(lambda: all(lane.up for lane in lanes.values()))
            assert np.abs(await run(lanes, 1, ROWS) - plain(1, ROWS)).max() < 0.001

    asyncio.run(first())
    (folder / "small.safetensors").unlink()
    asyncio.run(second())


def test_the_others_know_that_an_engine_compiles(service, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there for the parties and the dealer before it has compiled: `connect_s` is no limit for that."""
    found: list[set[str]] = []

    def compiling(engine: Engine) -> None:
        found.extend(arrival.awaited for arrival in current().arrivals)
        raise SecureModelError("that is all")

    monkeypatch.setattr(Engine, "_read", lambda engine: None)
    monkeypatch.setattr(Engine, "_family", compiling)
    near, far = socket.socketpair()
    with near, far, pytest.raises(SecureModelError, match="that is all"):
        Engine(near, service[1]["shop"], "shop", Lane("small", 1, 0), None).run()
    assert found == [{"bank"}, {"dealer"}] and not current().arrivals


def on_device(config: ServiceConfig, device: str) -> ServiceConfig:
    """The party's SERVICE.toml with a device under [me], read."""
    file = config.path.with_name(f"on_{device}.toml")
    file.write_text(config.path.read_text().replace("[me]\n", f'[me]\ndevice = "{device}"\n'))
    return load(file)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_session_computes_on_the_device_of_its_party(service, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connected(*_: object, **options: object) -> None:
        raise SecureModelError(f"on {options['device']}")

    monkeypatch.setattr(Engine, "_read", lambda engine: None)
    monkeypatch.setattr(Engine, "_family", lambda engine: SimpleNamespace(parties=PARTIES))
    monkeypatch.setattr(engine_process, "connect", connected)
    monkeypatch.setattr(devices, "_gpu", lambda found: found)
    monkeypatch.setattr(devices, "_beside", set())
    near, far = socket.socketpair()
    with near, far, pytest.raises(SecureModelError, match=f"on {device}$"):
        Engine(near, on_device(service[1]["shop"], device), "shop", Lane("small", 1, 0), None).run()


@pytest.mark.parametrize(
    ("device", "told"), [("gpu", "no device is called 'gpu'"), ("mps", "computes on the device 'mps'")]
)
def test_a_device_that_is_none_is_named_before_anything_is_compiled(
    service, device: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "_read", lambda engine: None)
    monkeypatch.setattr(Engine, "_family", lambda engine: pytest.fail("it is compiled"))
    near, far = socket.socketpair()
    with near, far, pytest.raises(ConfigError, match=told):
        Engine(near, on_device(service[1]["shop"], device), "shop", Lane("small", 1, 0), None).run()


@pytest.mark.slow
def test_runs_that_differ_are_refused_by_name_and_the_lane_comes_back(service) -> None:
    _, configs = service

    async def differ() -> None:
        async with lanes_of(configs, 1, None) as lanes:
            await until(lambda: all(lane.up for lane in lanes.values()))
            one, two = job(1, ROWS), job(2, ROWS)
            found = await asyncio.gather(
                lanes["bank"].run(one["bank"]), lanes["shop"].run(two["shop"]), return_exceptions=True
            )
            assert all(isinstance(error, LaneDown) for error in found), found
            await until(lambda: all(lane.up for lane in lanes.values()))
            assert np.abs(await run(lanes, 3, ROWS) - plain(1, ROWS)).max() < 0.001

    asyncio.run(differ())


@pytest.mark.slow
def test_nobody_has_the_weights(service) -> None:
    _, configs = service

    async def missing() -> None:
        async with lanes_of(configs, 7, None) as lanes:
            await until(lambda: all("weights" in lane.reason for lane in lanes.values()))
            assert "bank" in lanes["shop"].reason and "[me] weights" in lanes["bank"].reason
            assert not any(lane.up for lane in lanes.values())

    asyncio.run(missing())


@pytest.mark.slow
def test_a_model_that_is_not_the_compiled_one_is_found_out(service) -> None:
    """load_model gives a network with the right weights whose forward does something else."""
    folder, configs = service
    save(network(1), folder / "small.safetensors")
    shifted = "\nclass Shifted(nn.Sequential):\n    def forward(self, x):\n        return super().forward(x) + 1\n"
    text = SCRIPT.replace("model = network()", "model = Shifted(*network())") + shifted
    (folder / "wrong.py").write_text(text)
    wrong = {}
    for name, config in configs.items():
        file = config.path.with_name("wrong.toml")
        file.write_text(config.path.read_text().replace("/small.py", "/wrong.py"))
        wrong[name] = load(file)

    async def tried() -> None:
        async with lanes_of(wrong, 9, folder / "small.safetensors") as lanes:
            await until(lambda: all("do not give what the model gives" in lane.reason for lane in lanes.values()))

    asyncio.run(tried())
