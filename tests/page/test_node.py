"""The page's modules without a browser: what `node --test` says to the files beside this one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.page.conftest import needed

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("name", ["vectors", "client", "table", "picture"])
def test_in_node(name: str) -> None:
    done = subprocess.run(
        [needed("node"), "--test", "--test-reporter=tap", FOLDER / f"{name}.test.mjs"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert "# pass 0\n" not in done.stdout and "# skipped 0\n" in done.stdout


def test_no_file_of_tests_is_forgotten() -> None:
    assert {path.name for path in FOLDER.glob("*.mjs")} == {
        f"{name}.test.mjs" for name in ("vectors", "client", "table", "picture")
    }
