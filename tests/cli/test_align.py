"""securemodel align: what it says before it connects, what it writes, and each way to go wrong."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocols.channel.testing import loopback_parties
from protocols.identity import Timeouts
from securemodel.data import Schema, connecting, read, table
from securemodel.data.aligned_files import load
from securemodel.errors import InputError
from securemodel.ledger import read_ledger
from tests.cli import joint

SCHEMA = f"""
[table]
keys = ["email"]
minimum = 2
{joint.COLUMNS}"""
CLIENTS = "email,income\nann@x,1\nBob@x,2\neve@x,3\nzoe@x,4\n"
ORDERS = "email,orders\n eve@x,7\nbob@x,8\njoe@x,9\nANN@x,1\n"


@pytest.fixture
def files(write: Callable[[str, str], Path]) -> dict[str, Path]:
    texts = {"joint.toml": SCHEMA, "clients.csv": CLIENTS, "orders.csv": ORDERS}
    return {name: write(name, text) for name, text in texts.items()}


@pytest.fixture
def words(files: dict[str, Path]) -> list[Any]:
    return joint.words("align", files)


@pytest.fixture
def configs(tmp_path: Path) -> dict[str, Path]:
    """A parties file for each party."""
    roster, _ = loopback_parties(("bank", "shop"), tmp_path, timeouts=Timeouts(connect_s=20, receive_s=20))
    text, out = roster.path.read_text(), {}
    for name in ("bank", "shop"):
        out[name] = tmp_path / f"{name}.toml"
        out[name].write_text(f'{text}[me]\nidentity = "{name}"\n')
    return out


def ended(words: list[Any], **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "securemodel.cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def test_two_parties_with_their_own_files_and_ledgers(words, files, configs, tmp_path: Path) -> None:
    running = {
        name: ended([*words[:2], "--table", files[file], "--learns", "bank", "--me", name, "--config", configs[name],
                     "--ledger", tmp_path / name / "ledger", "--out", tmp_path / name])
        for name, file in (("bank", "clients.csv"), ("shop", "orders.csv"))
    }  # fmt: skip
    said = {name: process.communicate(timeout=200)[0] for name, process in running.items()}
    for name, process in running.items():
        assert process.returncode == 0, said[name]
        lines = said[name].splitlines()
        revealed = [line for line in lines if line.startswith("revealed")]
        assert revealed == [
            "revealed to all: each party's number of rows",
            "revealed to bank: which of its ids each other party has",
        ]
        assert lines[2].startswith(f"4 rows of {name}; if others have as many: at most 4 rounds, 1.3 KB sent")
        assert re.match(r"took 4 rounds, 1\.3 KB sent, 1\.3 KB received, [0-9.]+ m?s", lines[3])
        (line,) = read_ledger(tmp_path / name / "ledger").lines
        assert line.fields["protocol"] == "alignment" and line.fields["sets"]["shop"]["rows"] == 4
    assert "4 joint rows, 3 of them common to all" in said["bank"] and "common to all" not in said["shop"]
    schema = Schema.load(files["joint.toml"])
    bank = load(
        tmp_path / "bank", "bank", schema=schema.digest, table=read(table("bank", files["clients.csv"]), schema).digest
    )
    shop = load(tmp_path / "shop", "shop")
    assert bank.id == shop.id and bank.positions.tolist() == [0, 1, 2, 3]
    assert bank.presence.tolist() == [1, 1, 1, 0] and shop.positions is None
    assert [shop.outcome.order[place] if place >= 0 else -1 for place in bank.outcome.links["shop"]] == [3, 1, 0, -1]
    assert stat.S_IMODE((tmp_path / "bank" / "bank.aligned").stat().st_mode) == 0o600
    files["clients.csv"].write_text(CLIENTS.replace("zoe", "zoa"))
    with pytest.raises(InputError, match="not one of this table"):
        load(tmp_path / "bank", "bank", table=read(table("bank", files["clients.csv"]), schema).digest)


@pytest.mark.slow
def test_all_parties_on_this_machine(words, tmp_path: Path) -> None:
    done = ended([*words, "--learns", "all", "--local", "--out", tmp_path / "out"])
    said = done.communicate(timeout=200)[0]
    assert done.returncode == 0, said
    assert said.count("3 joint rows") == 2 and "which of its ids all parties have" in said
    bank, shop = (load(tmp_path / "out", name) for name in ("bank", "shop"))
    pairs = {(int(a), int(b)) for a, b in zip(bank.positions, shop.positions, strict=True)}
    assert pairs == {(0, 3), (1, 1), (2, 0)}


def test_all_parties_and_a_dealer_on_this_machine(words, tmp_path: Path) -> None:
    done = ended([*words, "--learns", "shop", "--dealer", "--local", "--out", tmp_path / "out"])
    said = done.communicate(timeout=200)[0]
    assert done.returncode == 0, said
    assert "revealed to dealer: about how many rows" in said and said.count("4 joint rows") == 2
    bank, shop = (load(tmp_path / "out", name) for name in ("bank", "shop"))
    assert bank.terms.dealer and [bank.outcome.order[at] if at >= 0 else -1 for at in shop.outcome.links["bank"]] == [2, 1, -1, 0]  # fmt: skip


@pytest.mark.parametrize("learns", ["nobody", "count"])
def test_a_dealer_cannot_help_where_none_learns(call, words, learns: str) -> None:
    result = call(*words, "--learns", learns, "--dealer", "--local")
    assert result.exit_code == 1 and "cannot be made with a dealer" in result.output


@pytest.mark.parametrize(
    "extra, text",
    [
        (["--learns", "all"], "give --local, or both"),
        (["--learns", "all", "--local", "--me", "bank"], "--local is for all parties"),
        (["--learns", "all", "--local", "--table", "bank=x.csv"], "'bank' has two files"),
        (["--learns", "all", "--local", "--table", "clinic=x.csv"], "no columns of 'clinic'"),
        (["--learns", "all", "--local", "--table", "x.csv"], "NAME=FILE"),
        (["--local"], "Missing option '--learns'"),
        (["--learns", "all", "--unmatched", "maybe", "--local"], "'maybe' is not"),
    ],
)
def test_calls_that_are_wrong(call, words, extra: list[str], text: str) -> None:
    result = call(*words, *extra)
    assert result.exit_code == 2 and text in result.output


def test_a_table_is_missing(call, words) -> None:
    result = call(*words[:4], "--learns", "all", "--local")
    assert result.exit_code == 2 and "no --table is given for shop" in result.output


def test_nobody_of_that_name_can_learn(call, words) -> None:
    result = call(*words, "--learns", "clinic", "--local")
    assert result.exit_code == 1 and "learns='clinic' is none of all, nobody, count, bank, shop" in result.output


@pytest.mark.parametrize(
    "old, new, text",
    [
        ('keys = ["email"]', "", "rows without ids cannot be aligned"),
        ('keys = ["email"]', 'keys = ["email"]\nsplit = "rows"', "split by rows is not aligned"),
    ],
)
def test_schemas_without_anything_to_align(call, words, files, old: str, new: str, text: str) -> None:
    schema = SCHEMA.replace(old, new)
    if "split" in new:
        schema = schema.replace('owner = "bank"\n', "").replace('owner = "shop"\n', "")
    files["joint.toml"].write_text(schema)
    result = call(*words, "--learns", "all", "--local")
    assert result.exit_code == 1 and text in result.output


def test_what_is_wrong_with_a_file_is_said_before_anybody_is_connected(
    call, words, files, configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "there", lambda *rest, **options: pytest.fail("connected"))
    files["clients.csv"].write_text(CLIENTS + "ann@x,many\n,5\n")
    result = call(*words, "--learns", "all", "--me", "bank", "--config", configs["bank"])
    assert result.exit_code == 1
    assert "revealed to all" in result.output and "rows without an id" in result.output and "many" not in result.stdout
