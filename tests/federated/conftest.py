"""Lets the tests of this folder use what they have in common."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
