"""Commands that compute nothing do not import torch, which takes seconds; nor does the front of a service."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from securemodel.cli import main
from tests.service.engines import ROOT, write_service

CODE = """
import importlib.abc, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ImportError("torch is blocked")

sys.meta_path.insert(0, Blocked())
from click.testing import CliRunner
from securemodel.cli import main
service = sys.argv[1]
for words, code in (
    (["--help"], 0), (["--version"], 0), (["status", "--help"], 0), (["serve", "--help"], 0), (["edge", "--help"], 0),
    (["page", "--help"], 0), (["keys", "new", "bank", "--out", sys.argv[2]], 0), (["keys", "show", sys.argv[2]], 0),
    (["key", "new", service, "tablet"], 0), (["key", "list", service], 0), (["key", "revoke", service, "0"], 1),
    (["status", service], 1), (["drain", service], 1), (["publish", service, "small", "--weights", service], 1),
):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code and "blocked" not in result.output, (words, result.output, result.exception)
import securemodel.service.local, securemodel.service.serving
"""


def test_commands_that_look_after_a_service_and_its_front_need_no_torch(tmp_path: Path) -> None:
    service = write_service(tmp_path).services["bank"]
    (service.parent / "data").mkdir(mode=0o700)
    words = [sys.executable, "-c", CODE, str(service), str(tmp_path / "keys")]
    done = subprocess.run(words, check=False, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_each_command_is_where_the_list_says() -> None:
    assert {name: command.name for name, command in main.commands.items()} == {name: name for name in main.commands}
    listed = main.get_help(click.Context(main))
    assert all(f"\n  {name} " in listed for name in main.commands)
