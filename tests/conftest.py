"""For all tests: no ledger of the user who runs them is written; every compiled program is checked like one from outside."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
import torch

from securemodel.compiler.ops import verify
from securemodel.engines.masked import compiling as masked


def pytest_configure(config: pytest.Config) -> None:
    """Tests that run side by side have a core each: threads that wait for each other there take more time than they save."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What was imported and collected stays: to look through a million such objects again and again took a third of the
    time of all tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(autouse=True, scope="session")
def own_state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sessions that name no ledger write into a folder of this test run, also those of other processes."""
    before = os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))
    yield
    if before is None:
        del os.environ["XDG_STATE_HOME"]
    else:
        os.environ["XDG_STATE_HOME"] = before


@pytest.fixture(autouse=True, scope="session")
def every_program_is_verified() -> Iterator[None]:
    """The table of operators is true: all that the passes make agrees with it."""

    def check(draft: masked.Draft) -> None:
        verify(draft.header, draft.graph)

    passes = masked.PASSES
    narrowed = passes.index(masked.Draft.narrow_masks) + 1
    with pytest.MonkeyPatch.context() as patch:
        after = [part for made in passes[narrowed:] for part in (check, made)]
        patch.setattr(masked, "PASSES", (*passes[:narrowed], *after, check))
        yield
