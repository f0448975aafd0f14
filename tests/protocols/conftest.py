"""For tests of protocols: what may use several threads does."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def several_threads() -> Iterator[None]:
    """Kernels divide their work, also where tests that run side by side have a core each."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    yield
    torch.set_num_threads(before)
