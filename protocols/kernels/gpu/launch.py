"""What every kernel in Triton needs when it is called."""

from contextlib import AbstractContextManager, nullcontext

import torch


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Inside, kernels run on this GPU; in main memory they are interpreted, for tests."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
