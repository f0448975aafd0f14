"""Joint training: a whole training step as one secure program."""

from securemodel.training.capture import capture_step
from securemodel.training.datasets import Batches, Dataset, Owned, dataset, owned, rows
from securemodel.training.privacy import DP, Privacy
from securemodel.training.publics import PublicInputs
from securemodel.training.reference import as_torch_keeps_them, draws, run_in_float, start_states
from securemodel.training.steps import CapturedStep
from securemodel.training.training import Training, compile_training

__all__ = ["DP", "Batches", "CapturedStep", "Dataset", "Owned", "Privacy", "PublicInputs", "Training", "as_torch_keeps_them", "capture_step", "compile_training", "dataset", "draws", "owned", "rows", "run_in_float", "start_states"]  # fmt: skip
