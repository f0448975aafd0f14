"""Finds out whether a model treats the rows of a batch independently, by trying it in the clear."""

from __future__ import annotations

from typing import Any, Sequence

import torch

from securemodel.compiler.capture import model_state

_ROWS = 2


def _probe_state(model: torch.nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Positive weights of small sums, so that no activation goes dead and no variance is negative."""
    state = {}
    for name, tensor in model_state(model).items():
        if not tensor.is_floating_point():
            state[name] = torch.zeros_like(tensor, device="cpu")
            continue
        fan_in = max(1, tensor.numel() // max(1, tensor.shape[0]) if tensor.ndim > 1 else 1)
        state[name] = (torch.rand(tensor.shape, generator=generator) + 0.5) / fan_in
    return state


def _rows(example: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    shape = (_ROWS, *example.shape[1:])
    if example.is_floating_point():
        return torch.rand(shape, generator=generator) + 0.1
    flat = example.reshape(-1)
    return flat[torch.randint(flat.numel(), shape, generator=generator)]


def _tensors(out: Any) -> list[torch.Tensor]:
    return [out] if isinstance(out, torch.Tensor) else [t for o in out for t in _tensors(o)]


def rows_are_independent(model: torch.nn.Module, examples: Sequence[torch.Tensor]) -> bool:
    """Runs the model on two rows, changes the second row and sees whether the first one's results stay.

    Weights and rows are made up: the answer depends on the model's structure alone. The generator is
    seeded because nothing here hides anything.
    """
    if any(x.ndim == 0 for x in examples) or len({x.shape[0] for x in examples}) != 1:
        return False
    generator = torch.Generator().manual_seed(0)
    state = _probe_state(model, generator)
    first = [_rows(x, generator) for x in examples]
    second = [torch.cat([a[:1], _rows(a, generator)[1:]]) for a in first]
    try:
        with torch.no_grad():
            one, two = (_tensors(torch.func.functional_call(model, state, tuple(x))) for x in (first, second))
    except Exception:  # a model that cannot run on two rows is not one to be split by rows
        return False
    return all(
        a.ndim > 0 and a.shape[0] == _ROWS and torch.allclose(a[0].double(), b[0].double(), rtol=1e-4, atol=1e-6)
        for a, b in zip(one, two, strict=True)
    )
