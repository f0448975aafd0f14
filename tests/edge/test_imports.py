"""The client needs numpy and the standard library, and finds out itself whether there is AES."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in {"torch", "httpx", "requests", "pydantic", "msgspec", "starlette", "uvicorn", "protocols", BLOCKED} \\
                or name == "securemodel.api":
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import numpy as np
from securemodel.edge import Client, sharing
e = np.array([[5, -7]])
shares = sharing.split(e, 3, bytes(16), 0)
values = [sharing.values_of(share, bytes(16), 0, 2) for share in shares]
assert sharing.add(values).tolist() == [5, -7]
print(*(share.form for share in shares))
"""


@pytest.mark.parametrize(
    ("blocked", "forms"), [("nothing", "values seed seed"), ("cryptography", "values values values")]
)
def test_numpy_and_the_standard_library_are_enough(blocked: str, forms: str) -> None:
    code = BLOCK.replace("BLOCKED", repr(blocked))
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == forms.split()
