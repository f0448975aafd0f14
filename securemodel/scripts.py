"""Runs people's Python files, and says in which of their lines an error arose."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from protocols.errors import InputError, SecureModelError, explain


class ScriptFailed(SecureModelError):
    """A user's file raised an error of its own."""


def load_file(path: Path) -> ModuleType:
    """Imports a Python file that lies anywhere; files beside it can be imported by it. Raises ScriptFailed."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InputError(explain("not a Python file", where=str(path), fix="give a file that ends in .py"))
    module = importlib.util.module_from_spec(spec)
    with as_main(path, ()), explained(path):
        sys.modules.setdefault(path.stem, module)  # dataclasses and pickling look a module up by its name
        spec.loader.exec_module(module)
    return module


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns errors of a user's file into ScriptFailed, with the line of that file's folder they came from."""
    try:
        yield
    except SecureModelError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        frames = [f for f in traceback.extract_tb(error.__traceback__) if _beside(f.filename, path)]
        where = f"{frames[-1].filename}, line {frames[-1].lineno}, in {frames[-1].name}" if frames else str(path)
        raise ScriptFailed(explain(text, where=where, fix="--traceback shows the whole call stack")) from error


def _beside(filename: str, path: Path) -> bool:
    return path.resolve().parent in Path(filename).resolve().parents


@contextmanager
def as_main(script: Path, args: Sequence[str]) -> Iterator[None]:
    """Inside, arguments and the first folder of imports are those of a script."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = [str(script), *args]
    sys.path.insert(0, str(script.resolve().parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
