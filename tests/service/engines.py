"""For tests: a small service on this machine, its files, and what a client of it would send and expect."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from securemodel.service import config as configs
from securemodel.service.config import ServiceConfig
from securemodel.service.local import Roles, write_roles

ROOT = Path(__file__).parents[2]
SCALE = 1 << 16
SCRIPT = """
import torch
from safetensors.torch import load_file
from torch import nn
import securemodel

def network():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()

def make_family(**options):
    return securemodel.compile_service(
        network(), torch.zeros(1, 4), weights="bank", parties=("bank", "shop"), **{"clamp": (-2.0, 2.0), **options}
    )

def load_model(weights):
    model = network()
    model.load_state_dict(load_file(weights))
    return model
"""
SERVICE = """
[service]
name = "small"
leader = "bank"
keys = {keys}
[me]
data = "data"
weights = {{ small = "small.safetensors" }}
[limits]
drain_s = 20
restart_wait_s = 60
[[model]]
name = "small"
script = "small.py"
sizes = [1, 4]
rows_per_day = {rows_per_day}
lanes = {lanes}
"""
FRONT = """
[fronts.{name}]
url = "https://{name}.example"
control = "{name}.example:7101"
"""


def network(seed: int) -> nn.Module:
    """The service's model with weights of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def save(model: nn.Module, path: Path) -> Path:
    """Its weights as a file."""
    save_file(model.state_dict(), path)
    return path


def write_service(
    folder: Path,
    port: int = 0,
    keys: str = "false",
    rows_per_day: int = 100_000,
    parties: tuple[str, ...] = ("bank", "shop"),
    lanes: int = 1,
) -> Roles:
    """Files of all roles of a small service, with weights of seed 1."""
    (folder / "small.py").write_text(SCRIPT.replace('("bank", "shop")', repr(parties)))
    fronts = "".join(FRONT.format(name=name) for name in parties)
    text = SERVICE.format(keys=keys, rows_per_day=rows_per_day, lanes=lanes)
    (folder / "service.toml").write_text(text + fronts)
    save(network(1), folder / "small.safetensors")
    roles = folder / "roles"
    roles.mkdir(mode=0o700)
    return write_roles(folder / "service.toml", roles, port)


def configurations(roles: Roles) -> dict[str, ServiceConfig]:
    """SERVICE.toml of each party, read."""
    found = {name: configs.load(path) for name, path in roles.services.items()}
    for config in found.values():
        config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    return found


@contextmanager
def command(*words: object, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command of `securemodel` as a process of its own, killed at the end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "securemodel.cli", *map(str, words)], env=environment, stdout=out, stderr=out
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


def shares(rows: np.ndarray, parties: tuple[str, ...]) -> Mapping[str, np.ndarray]:
    """Rows of reals in fixed point, as a share for each party."""
    encoded = np.rint(rows * SCALE).astype(np.int64)
    made = {
        name: np.frombuffer(secrets.token_bytes(8 * encoded.size), np.int64).reshape(encoded.shape)
        for name in parties[1:]
    }
    return {parties[0]: encoded - sum(made.values()), **made}
