"""PyTorch's state dicts as Flower's records and back, with types that NumPy has not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord

from securemodel.edge.flower import record_of


def state_to_record(state: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """A state dict as a record. Tensors of bfloat16, which Flower refuses, are sent as float32, which has all their values."""
    wide = {name: x.float() if x.dtype == torch.bfloat16 else x for name, x in state.items()}
    return record_of({name: x.detach().cpu().numpy() for name, x in wide.items()})


def record_to_state(record: ArrayRecord, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A record as a state dict, each tensor of the type and on the device that it has in `like`."""
    return {name: torch.from_numpy(record[name].numpy()).to(x.device, x.dtype) for name, x in like.items()}
