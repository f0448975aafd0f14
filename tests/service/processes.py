"""All roles of a small service as processes of this machine, for tests."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from click.testing import CliRunner, Result

from securemodel import edge
from securemodel.cli import main
from securemodel.service.local import Roles
from tests.service.engines import command

LIMIT_S = 240.0


@dataclass
class Running:
    """All roles as processes. `key` is a client's, `seed` that of the current weights."""

    folder: Path
    roles: Roles
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    opened: ExitStack = field(default_factory=ExitStack)
    key: str = ""
    seed: int = 1

    def start(self, *names: str) -> None:
        for name in names:
            words = ["serve", self.roles.services[name], "--me", name] if name in self.roles.services else None
            words = words or ["dealer", "--config", self.roles.dealer]
            self.processes[name] = self.opened.enter_context(command(*words, log=self.log(name)))

    def kill(self, *names: str) -> None:
        for name in names:
            self.processes[name].kill()
            self.processes[name].wait()

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def call(self, *words: object) -> Result:
        return CliRunner().invoke(main, [str(word) for word in words])

    def service(self, name: str) -> Path:
        return self.roles.services[name]

    def get(self, name: str, path: str) -> tuple[int, dict]:
        connection = http.client.HTTPConnection(self.roles.urls[name].removeprefix("http://"), timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.load(answer)
        except (OSError, http.client.HTTPException):
            return 0, {}
        finally:
            connection.close()

    def wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not done():
            assert time.monotonic() < deadline, "\n".join(self.log(name).read_text() for name in self.processes)
            time.sleep(0.1)

    def ready(self) -> bool:
        return all(self.get(name, "/v2/health/ready")[0] == 200 for name in self.roles.services)

    def new_key(self, name: str, *options: object) -> str:
        """A key that all parties know."""
        made = self.call("key", "new", self.service("bank"), name, *options)
        assert made.exit_code == 0, made.output
        key, sha256 = (re.search(rf"^{word} +(\S+)", made.output, re.MULTILINE)[1] for word in ("key", "sha256"))
        assert self.call("key", "add", self.service("shop"), sha256, name, *options).exit_code == 0
        return key

    def client(self, **options: object) -> edge.Client:
        return edge.Client(self.get("bank", "/service.json")[1], key=self.key, **options)
