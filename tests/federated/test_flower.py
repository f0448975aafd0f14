"""Flower apps: cases over a grid in one process, Flower's simulation, and its real deployment.

Flower asks for other releases of packages than the ones here, so all of it runs in processes of its own, which find it
in build/flower.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocols.channel.testing import free_addresses

ROOT = Path(__file__).parents[2]
FLOWER = ROOT / "build" / "flower"
APP = ROOT / "examples" / "federated_flower"
IMAGES = ROOT / "examples" / "lenet_mnist" / "images.npz"

pytestmark = pytest.mark.skipif(sys.version_info < (3, 11), reason="Flower 1.42 asks for Python 3.11")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Finds Flower, this project and its tests' helpers; Flower tells its makers nothing."""
    assert (FLOWER / "flwr").is_dir(), "make test installs Flower; by hand: make build/flower/.installed"
    paths = os.pathsep.join(map(str, [ROOT, FLOWER, ROOT / "tests" / "federated", APP]))
    return os.environ | {
        "PYTHONPATH": paths,
        "PATH": f"{FLOWER / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path_factory.mktemp("flower")),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }


def test_cases(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--show-capture=no", "--tb=short"]
    done = subprocess.run(
        [*command, "tests/federated/flower_cases.py"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout


SIMULATION = """
import sys
from flwr.app import Context, UserConfig
from flwr.simulation import run_simulation
from digits import client_app, server_app, task
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

def with_config(app, data):
    def call(*given):
        *rest, told = given
        config = UserConfig({"data": data, "rounds": 1})
        return app(*rest, Context(told.run_id, told.node_id, told.node_config, told.state, config))
    return call
server, client = ServerApp(), ClientApp()
server.main()(with_config(server_app.app, sys.argv[1]))
client.train()(with_config(client_app.app, sys.argv[1]))
run_simulation(
    server, client, num_supernodes=3,
    backend_config={"client_resources": {"num_cpus": 1.0, "num_gpus": 0.0}, "init_args": {"num_cpus": 1}},
)
"""


FOR_CLIENTS_ALONE = """
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from digits import task
from securemodel.edge.flower import SecureMod
from securemodel.federated import weighted_mean
from securemodel.federated.flower import SecureStrategy, insecure_local

server, client = ServerApp(), ClientApp(mods=[SecureMod(insecure_trust_server=True)])
model_of = lambda message: {name: x.numpy().copy() for name, x in message.content["arrays"].items()}

@client.train()
def _(message, context):
    model, own = model_of(message), context.node_config
    images, labels = task.of_site(DATA, int(own["partition-id"]), int(own["num-partitions"]))
    task.train(model, images, labels)
    arrays = ArrayRecord({name: Array(x) for name, x in model.items()})
    return Message(RecordDict({"arrays": arrays, "m": MetricRecord({"num-examples": len(labels)})}), reply_to=message)

@client.evaluate()
def _(message, context):
    images, labels = (rows[: task.HELD_OUT] for rows in task.load(DATA))
    found = task.accuracy(model_of(message), images, labels)
    return Message(RecordDict({"m": MetricRecord({"num-examples": 1, "accuracy": found})}), reply_to=message)

@server.main()
def _(grid, context):
    training = insecure_local(weighted_mean(), slots=10, limit=4.0, max_weight=1000, reveal="clients")
    evaluation = insecure_local(weighted_mean(), slots=10)
    strategy = SecureStrategy(FedAvg(), training, evaluate=evaluation, evaluate_metrics={"accuracy": 1.0})
    start = ArrayRecord({name: Array(x) for name, x in task.new_model().items()})
    result = strategy.start(grid, start, num_rounds=2)
    print("the server's model moved:", any(x.numpy().any() for x in result.arrays.values()))
    print("accuracy of the last round:", result.evaluate_metrics_clientapp[2]["accuracy"])

run_simulation(
    server, client, num_supernodes=3,
    backend_config={"client_resources": {"num_cpus": 1.0, "num_gpus": 0.0}, "init_args": {"num_cpus": 1}},
)
"""


@pytest.mark.slow
def test_a_model_for_clients_alone_in_flowers_simulation(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "simulate.py"
    script.write_text(FOR_CLIENTS_ALONE.replace("DATA", repr(str(IMAGES))))
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-8000:]
    assert "revealed: to clients" in told and "model moved: False" in told, told[-8000:]
    assert float(told.rsplit("accuracy of the last round: ", 1)[1].split()[0]) > 0.5


def test_the_example_in_flowers_simulation(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "simulate.py"
    script.write_text(SIMULATION)
    done = subprocess.run(
        [sys.executable, str(script), str(IMAGES)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == 0, told[-8000:]
    assert "3 clients are in; revealed: to aggregators" in told, told[-8000:]
    assert float(told.rsplit("accuracy of the last round: ", 1)[1].split()[0]) > 0.5


@pytest.fixture
def ports() -> list[int]:
    """Three free ports of loopback."""
    return [int(address.rpartition(":")[2]) for address in free_addresses(3)]


@pytest.fixture
def link(environment: dict[str, str], ports: list[int], tmp_path: Path) -> Iterator[Path]:
    """A SuperLink and two SuperNodes; the folder of their logs."""
    home = Path(environment["FLWR_HOME"])
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "loop"\n[superlink.loop]\naddress = "127.0.0.1:{ports[0]}"\ninsecure = true\n'
    )
    commands = [
        ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(ports[0]),
         "--disable-runtime-dependency-installation"],
        *(
            ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{ports[0]}", "--host", "127.0.0.1",
             "--port", str(ports[1 + node]), "--node-config", f"partition-id={node} num-partitions=2"]
            for node in range(2)
        ),
    ]  # fmt: skip
    processes = []
    for number, command in enumerate(commands):
        with open(tmp_path / f"{number}.log", "wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(FLOWER / "bin" / command[0]), *command[1:]],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        if number == 0:
            _wait_for(ports[0], processes[0])
    yield tmp_path
    for process in processes:
        os.killpg(process.pid, signal.SIGTERM)
    for process in processes:
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the SuperLink does not listen")


@pytest.mark.slow
def test_the_example_in_flowers_deployment(environment: dict[str, str], link: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FLOWER / "bin" / "flwr"), "run", str(APP), "loop", "--stream",
         "--run-config", f"data='{IMAGES}' rounds=1"],
        cwd=link, env=environment, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    told = done.stdout + "".join(path.read_text() for path in sorted(link.glob("*.log")))
    assert done.returncode == 0, told[-8000:]
    assert "2 clients are in; revealed: to aggregators" in done.stdout, told[-8000:]
    assert float(done.stdout.rsplit("accuracy of the last round: ", 1)[1].split()[0]) > 0.5
