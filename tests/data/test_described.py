"""Files that say how a table's file is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from securemodel import data
from securemodel.errors import ConfigError, FileError, InputError

SCHEMA = data.Schema.parse("""
[table]
keys = ["email"]
[columns.income]
owner = "bank"
kind = "number"
low = 0
high = 100000
""")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    (tmp_path / "clients.csv").write_text("E-MAIL;income\nann@example.org;1000,5\nbob@example.org;-\n")
    return tmp_path


def described(folder: Path, text: str) -> data.Source:
    (folder / "clients.toml").write_text(text)
    return data.table("bank", folder / "clients.toml")


GOOD = 'file = "clients.csv"\nsep = ";"\ndecimal = ","\nna_values = ["-"]\nrename = {"E-MAIL" = "email"}\n'


def test_it_is_the_same_as_settings(written):
    schema = data.Schema.parse(SCHEMA_WITH_MISSING)
    settings = {"sep": ";", "decimal": ",", "na_values": ["-"], "rename": {"E-MAIL": "email"}}
    one = data.read(described(written, GOOD), schema)
    other = data.read(data.table("bank", written / "clients.csv", **settings), schema)
    assert one.digest == other.digest and one.columns["income"].tolist() == [1000.5, 0]


SCHEMA_WITH_MISSING = """
[table]
keys = ["email"]
[columns.income]
owner = "bank"
kind = "number"
low = 0
high = 100000
missing = true
"""


@pytest.mark.parametrize("text, kind, says", [
    ("sep = ", ConfigError, "not valid TOML"),
    ('sep = ";"', ConfigError, "names no file"),
    ("file = 5", ConfigError, "names no file"),
    ('file = "clients.toml"', ConfigError, "names no file"),
    (GOOD + "header = 0", ConfigError, "no setting 'header'"),
    (GOOD.replace('","', '"x"'), ConfigError, "decimal='x'"),
    (GOOD.replace('["-"]', '"-"'), ConfigError, "list of texts"),
    (GOOD.replace("clients.csv", "gone.csv"), InputError, "no such file"),
])  # fmt: skip
def test_what_describes_nothing(written, text, kind, says):
    with pytest.raises(kind, match=says):
        data.read(described(written, text), SCHEMA)


def test_it_is_not_there(written):
    with pytest.raises(FileError, match="gone.toml"):
        data.read(data.table("bank", written / "gone.toml"), SCHEMA)


def test_settings_may_be_given_once(written):
    described(written, GOOD)
    with pytest.raises(InputError, match="and so does table"):
        data.read(data.table("bank", written / "clients.toml", sep=";"), SCHEMA)
