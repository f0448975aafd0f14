"""Imports the examples as their own scripts do: the folder on the path, modules by short names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], ModuleType]]:
    """example(folder, module); forgets the modules afterwards, as other examples have the same names."""

    def load(folder: str, name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(EXAMPLES / folder))
        return importlib.import_module(name)

    for path in EXAMPLES.glob("*/*.py"):  # other tests' scripts have modules of the same names
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    before = set(sys.modules)
    yield load
    for name in set(sys.modules) - before:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Runs a script with all its parties as processes; returns what they say. AssertionError unless it ends well."""
    from securemodel.cli.launch import run_local

    def run(script: Path | str, args: list[str], parties: tuple[str, ...]) -> list[str]:
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        said: list[str] = []
        outcome = run_local(Path(script), args, parties, lambda who, text, error: said.append(f"{who} | {text}"))
        assert outcome.code == 0, "\n".join(said)
        return said

    return run
