"""What tests of commands on joint tables share: columns of a bank and a shop, and words that name their files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

COLUMNS = """
[columns.income]
owner = "bank"
kind = "number"
low = 0
high = 1000
[columns.orders]
owner = "shop"
kind = "integer"
low = 0
high = 100
"""


def words(command: str, files: Mapping[str, Path]) -> list[str]:
    """A command on joint.toml, clients.csv of the bank and orders.csv of the shop."""
    tables = ["--table", f"bank={files['clients.csv']}", "--table", f"shop={files['orders.csv']}"]
    return [command, str(files["joint.toml"]), *tables]
