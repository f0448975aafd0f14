"""Lets the tests of this folder use the table of operators, and find out whether CrypTen is there."""

import sys
from pathlib import Path

import pytest

from securemodel.engines.crypten.adapter import missing

sys.path.insert(0, str(Path(__file__).parents[1] / "compiler"))


def pytest_collection_modifyitems(items):
    absent = missing()
    for item in items:
        if absent and item.get_closest_marker("needs_crypten"):
            reason = f"CrypTen is not installed (no package {', '.join(absent)}): make setup-crypten"
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_configure(config):
    config.addinivalue_line("markers", "needs_crypten: runs CrypTen, which is optional (make setup-crypten)")
