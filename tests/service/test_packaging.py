"""The unit and compose files of packaging/ say what they must; they are read here, and not run."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from securemodel.cli import main

PACKAGING = Path(__file__).parents[2] / "packaging"
UNITS = sorted((PACKAGING / "systemd").glob("*.service"))


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str
    parser.read_string(path.read_text())
    return parser


def is_a_command(words: list[str]) -> bool:
    """Whether the command line takes these options; values in it need not exist."""
    shown = CliRunner().invoke(main, [words[0], "--help"]).output
    return bool(shown) and all(word in shown for word in words[1:] if word.startswith("--"))


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_leave_no_shares_behind_and_come_back(path: Path) -> None:
    service = unit(path)["Service"]
    expected = {
        "DynamicUser": "yes", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "LimitCORE": "0",
        "MemorySwapMax": "0", "StateDirectoryMode": "0700", "UMask": "0077",
    }  # fmt: skip
    assert {name: service.get(name) for name in expected} == expected
    assert service["Restart"] in ("on-failure", "always") and service["MemoryMax"]
    program, *words = service["ExecStart"].split()
    assert program.endswith("/bin/securemodel") and is_a_command(words)


def test_the_unit_of_a_party_is_told_when_it_runs_and_has_time_to_drain() -> None:
    service = unit(PACKAGING / "systemd" / "securemodel@.service")["Service"]
    assert service["Type"] == "notify" and int(service["TimeoutStopSec"]) > 30
    assert "LoadCredential=rest.key:" in (PACKAGING / "systemd" / "securemodel@.service").read_text()


def test_the_compose_file_says_first_that_it_protects_nothing() -> None:
    text = (PACKAGING / "compose.yaml").read_text()
    assert re.match("# .*all roles on one host protect nothing", text)
    found = yaml.safe_load(text)["services"]
    assert set(found) == {"bank", "hospital", "dealer"}
    for name, service in found.items():
        assert is_a_command(service["command"]), name
        assert service["cap_drop"] == ["ALL"] and service["read_only"] and service["ulimits"]["core"] == 0
    dockerfile = PACKAGING.parent / found["bank"]["build"]["dockerfile"]
    assert (PACKAGING / found["bank"]["build"]["context"] / "pyproject.toml").is_file() and dockerfile.is_file()
