"""Vectors of what client and parties send each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from securemodel.cli import main

VECTORS = Path(__file__).parents[2] / "vectors"


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    return json.loads((VECTORS / "share-v1.json").read_text(encoding="utf-8"))


@pytest.fixture
def call() -> Callable[..., Result]:
    """Calls `securemodel` with these words."""
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])
