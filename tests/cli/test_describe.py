"""securemodel describe: what it says before it connects, what it prints, drafts of schemas, and each way to go wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from securemodel.data import Schema
from tests.cli import joint

SCHEMA = f"""
[table]
split = "columns"
minimum = 3
{joint.COLUMNS}[columns.city]
owner = "shop"
kind = "category"
values = ["Ghent", "Utrecht"]
"""


def frame() -> pd.DataFrame:
    random = np.random.default_rng(2)
    made = {"income": random.uniform(0, 1000, 30).round(2), "orders": random.integers(0, 101, 30)}
    return pd.DataFrame({**made, "city": random.choice(["Ghent", "Utrecht"], 30)})


@pytest.fixture
def files(write: Callable[[str, str], Path]) -> dict[str, Path]:
    data = frame()
    clients, orders = data[["income"]].to_csv(index=False), data[["orders", "city"]].to_csv(index=False)
    texts = {"joint.toml": SCHEMA, "clients.csv": clients, "orders.csv": orders}
    return {name: write(name, text) for name, text in texts.items()}


@pytest.fixture
def words(files: dict[str, Path]) -> list[Any]:
    return joint.words("describe", files)


def test_all_parties_on_this_machine(words) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "securemodel.cli", *map(str, words), "--local", "--quantiles", "0.5", "--correlation"],
        check=False, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    plans = said.index("reveals numbers of income"), said.index("reveals income among each other")
    assert "30 joint rows of bank, shop" in said and " rounds, about " in said
    wanted = frame()[["income", "orders"]]
    mean, r = f"{wanted.income.mean():.6f}", f"{wanted.corr().loc['income', 'orders']:.6f}"
    assert said.count(mean) == 2 and said.count(r) == 4  # both parties print both
    assert max(plans) < said.index(mean)


def test_a_plan_reaches_nobody(call, words) -> None:
    result = call(*words, "--local", "--plan", "--reveal", "bank")
    assert result.exit_code == 0
    assert "describe income, orders: 3 rounds" in result.output and "to bank" in result.output
    assert "mean" not in result.output.replace("means", "")


def test_a_draft_of_a_schema(call, files) -> None:
    result = call("describe", "--propose", f"shop={files['orders.csv']}")
    assert result.exit_code == 0
    (orders,) = Schema.parse(result.output).columns.values()  # cities are of fewer than 20 rows
    assert (orders.name, orders.kind, orders.owner) == ("orders", "integer", "shop")


@pytest.mark.parametrize(
    "extra, text",
    [
        ([], "give --local, or both"),
        (["--local", "--me", "bank"], "--local is for all parties"),
        (["--local", "--plan", "--quantiles", "half"], "give numbers such as 0.25"),
        (["--propose", "orders.csv"], "NAME=FILE"),
        (["--local", "--bins", "1"], "x>=2"),
        (["--local", "--table", "clinic=x.csv"], "no columns of 'clinic'"),
    ],
)
def test_calls_that_are_wrong(call, words, extra: list[str], text: str) -> None:
    result = call(*words, *extra)
    assert result.exit_code == 2 and text in result.output


@pytest.mark.parametrize(
    "extra, text",
    [
        (["--columns", "town"], "no column 'town'"),
        (["--columns", "city"], "has categories"),
        (["--quantiles", "1"], "not between 0 and 1"),
        (["--reveal", "clinic"], "is no party"),
    ],
)
def test_what_cannot_be_told(call, words, extra: list[str], text: str) -> None:
    result = call(*words, "--local", "--plan", *extra)
    assert result.exit_code == 1 and text in result.output


def test_rows_with_ids_are_aligned_first(call, words, files) -> None:
    files["joint.toml"].write_text(SCHEMA.replace("[table]", '[table]\nkeys = ["email"]'))
    result = call(*words, "--local")
    assert result.exit_code == 1 and "securemodel align" in result.output
    assert call("describe", "--local").exit_code == 2
