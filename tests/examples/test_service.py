"""The example of a service as its README starts it: all roles with one command, clients in Python and JavaScript."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from securemodel import edge
from securemodel.scripts import load_file
from tests.service.engines import ROOT, command

EXAMPLE = ROOT / "examples" / "service"
LIMIT_S = 240.0

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, subprocess.Popen[bytes]]]:
    log = tmp_path_factory.mktemp("service") / "log"
    with command("serve", EXAMPLE / "service.toml", "--local", "--port", 0, log=log) as process:
        found = wait_for(r"The page: (http://[0-9.:]+)/", log)
        yield found[1], log, process


def wait_for(pattern: str, log: Path) -> re.Match[str]:
    deadline = time.monotonic() + LIMIT_S
    while not (found := re.search(pattern, log.read_text())):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return found


def called(*words: object) -> str:
    """What a program prints that ends well."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(
        [*map(str, words)], check=False, capture_output=True, text=True, timeout=LIMIT_S, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_digits_are_read_as_plain_torch_reads_them(started) -> None:
    url, _, _ = started
    client = edge.Client(document(url))
    with np.load(ROOT / "examples" / "lenet_mnist" / "images.npz") as file:
        images = file["images"][:40, None]
    scores = client.infer("lenet5", images, timeout=60)
    sys.modules.pop("model", None)  # of another script
    script = load_file(EXAMPLE / "infer.py")
    with torch.no_grad():
        pixels = (torch.from_numpy(images).float() / 255 - script.MEAN) / script.STD
        plain = script.load_model(ROOT / "examples" / "lenet_mnist" / "lenet5.safetensors")(pixels).numpy()
    assert (scores.argmax(1) == plain.argmax(1)).all() and np.abs(scores - plain).max() < 0.01


def test_the_clients_of_the_readme(started) -> None:
    url, _, _ = started
    assert "4 of 4 right" in called(sys.executable, EXAMPLE / "client.py", url, 4)
    assert re.match("answer 1, computed in run [0-9a-f]+:", called(shutil.which("node"), EXAMPLE / "client.mjs", url))


@pytest.mark.slow
def test_a_role_that_ends_is_started_again_and_all_end_together(started) -> None:
    url, log, process = started
    roles = psutil.Process(process.pid).children()
    next(role for role in roles if role.cmdline()[-1] == "hospital").kill()
    wait_for("hospital [|] ended with exit code -9; it is started again", log)
    deadline = time.monotonic() + LIMIT_S
    while not answers(url):
        assert time.monotonic() < deadline, log.read_text()
    everybody = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    _, left = psutil.wait_procs(everybody, timeout=60)
    assert not left


def answers(url: str) -> bool:
    try:
        return len(edge.Client(document(url)).infer("lenet5", np.zeros((2, 1, 28, 28)), timeout=20)) == 2
    except (edge.EdgeError, OSError):
        return False


def document(url: str) -> dict:
    """service.json of the leader."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{url}/service.json", timeout=30) as answer:
        return json.load(answer)
