"""Messages between processes of one party on one machine: words as JSON, and tensors. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch


def pack(words: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> bytes:
    """A message: the length of its JSON, the JSON, the tensors."""
    head = json.dumps(words).encode()
    return b"".join((len(head).to_bytes(8, "little"), head, safetensors.torch.save(dict(tensors))))


def unpack(message: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What `pack` packed."""
    end = 8 + int.from_bytes(message[:8], "little")
    return json.loads(message[8:end]), safetensors.torch.load(message[end:])
