"""The names of `securemodel` come when they are asked for: small clients import it without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import securemodel


def test_every_name_is_there() -> None:
    assert all(getattr(securemodel, name) is not None for name in securemodel.__all__)
    assert set(securemodel.__all__) <= set(dir(securemodel))
    with pytest.raises(AttributeError, match="no attribute 'compil'"):
        securemodel.compil  # noqa: B018


def test_types_and_names_agree() -> None:
    """What editors see, and what is imported when it is asked for."""
    tree = ast.parse(Path(securemodel.__file__).read_text())
    typed = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("securemodel.")
        for alias in node.names
        if alias.name != "__version__"
    }
    assert typed == securemodel._MODULE_OF and sorted(typed) == sorted(securemodel.__all__)


def test_the_package_alone_imports_no_torch() -> None:
    code = (
        "import securemodel, sys; assert 'torch' not in sys.modules; securemodel.compile; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def _given_twice(code: str) -> set[str]:
    """Constants of a module that a later line replaces: functions above it would see the later value."""
    seen: set[str] = set()
    twice: set[str] = set()
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign):
            named = {target.id for target in node.targets if isinstance(target, ast.Name) and target.id.isupper()}
            refined = {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
            twice |= (named & seen) - refined
            seen |= named
    return twice


def test_no_constant_is_replaced() -> None:
    assert _given_twice("A = 1\nB = A\nB = B + 1\nA = [2]\n") == {"A"}
    root = Path(__file__).parents[1]
    folders = ("protocols", "securemodel", "benchmarks", "examples", "tests")
    files = [path for folder in folders for path in (root / folder).rglob("*.py")]
    assert {str(path): names for path in files if (names := _given_twice(path.read_text()))} == {}
