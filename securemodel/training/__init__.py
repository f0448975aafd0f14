"""Joint training: a whole training step as one secure program."""

from securemodel.training.capture import capture_step
from securemodel.training.publics import PublicInputs
from securemodel.training.reference import as_torch_keeps_them, draws, run_in_float, start_states
from securemodel.training.steps import CapturedStep

__all__ = [
    "CapturedStep",
    "PublicInputs",
    "as_torch_keeps_them",
    "capture_step",
    "draws",
    "run_in_float",
    "start_states",
]
