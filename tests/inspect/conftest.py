"""Lets the tests of this folder use what those of the compiler run programs with, and the table of operators."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "compiler"))
