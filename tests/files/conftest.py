"""Files written into a test's folder, and what is read from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from securemodel.files.reader import Format
from securemodel.files.rows import Choice, Rows, Wanted, open_rows


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def opened() -> Callable[..., Rows]:
    """Opens a file for one input of `numbers` real numbers a row, in batches of two; other options are the reader's."""

    def opened(path: Path, numbers: int = 4, columns=(), id: str = "", check=lambda inputs: None, **form: Any) -> Rows:
        choice = Choice(tuple(columns), id=id, form=Format(**form))
        return open_rows(path, [Wanted((numbers,), torch.float32)], choice, 2, check)

    return opened


@pytest.fixture
def joined() -> Callable[..., torch.Tensor]:
    """The rows of the first input, from a batch on."""
    return lambda rows, start=0: torch.cat([b[0] for b in rows.read(range(start, -(-rows.count // rows.size)))])
