"""Finds out whether a model treats the rows of a batch independently, by trying it in the clear."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from securemodel.compiler.builder import is_whole
from securemodel.compiler.capture import (
    ONE_AT_A_TIME,
    Examples,
    apart,
    call,
    example_tensors,
    model_state,
    tensors_in,
    unchecked,
)

Row = list[torch.Tensor]
_TRIALS = 4
_EXTREME = 2.0**14


def made_up_state(model: torch.nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Positive weights of small sums, so that no activation goes dead and no variance is negative."""
    state = {}
    for name, tensor in model_state(model).items():
        if is_whole(tensor.dtype):
            state[name] = torch.zeros_like(tensor, device="cpu")
            continue
        fan_in = max(1, tensor.numel() // max(1, tensor.shape[0]) if tensor.ndim > 1 else 1)
        state[name] = (_drawn(tensor, tensor.shape, generator) + 0.5) / fan_in
    return state


def made_up_inputs(given: Examples, generator: torch.Generator) -> Row:
    """Inputs of the shapes of the examples."""
    return [_made_up(x, generator) for x in example_tensors(given)]


def _made_up(example: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Whole numbers that are all different, as positions are, change their places and stay different."""
    if is_whole(example.dtype) and example.ndim == 1 and 1 < len(example) == len(example.unique()):
        return example[torch.randperm(len(example), generator=generator)]
    return _filled(example, example.shape, generator)


def _row(examples: Sequence[torch.Tensor], generator: torch.Generator) -> Row:
    """One made-up row of each input."""
    return [_filled(example, (1, *example.shape[1:]), generator) for example in examples]


def _filled(example: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Numbers of the example's kind, and whole ones within its bounds."""
    if not is_whole(example.dtype):
        return _drawn(example, shape, generator) + 0.1
    low, high = _bounds(example)
    return torch.randint(low, high + 1, tuple(shape), generator=generator).to(example.dtype)


def _drawn(example: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Numbers in [0, 1), or pairs of them where the example is complex."""
    kind = torch.complex64 if example.is_complex() else torch.float32
    return torch.rand(tuple(shape), generator=generator, dtype=kind)


def _bounds(example: torch.Tensor) -> tuple[int, int]:
    """Whole numbers that the model takes, as far as its example tells; two of them at least, to tell rows apart."""
    if example.dtype == torch.bool or not example.numel():
        return 0, 1
    low, high = int(example.min()), int(example.max())
    return (low, high) if low < high else (min(low, 0), max(high, 1))


def _extreme(examples: Sequence[torch.Tensor], row: Row, place: int) -> Row:
    """The row with large numbers throughout, below or above all others: what comparisons tell apart."""
    return [
        torch.full_like(x, _bounds(example)[place] if is_whole(x.dtype) else (2 * place - 1) * _EXTREME)
        for example, x in zip(examples, row, strict=True)
    ]


def _unknown(row: Row) -> Row:
    """The row with NaN for every real number: whatever is computed from it is NaN too, for any weights."""
    return [x if is_whole(x.dtype) else torch.full_like(x, float("nan")) for x in row]


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(
        torch.allclose(x.to(torch.complex128), y.to(torch.complex128), rtol=1e-4, atol=1e-6, equal_nan=True)
        for x, y in zip(a, b, strict=True)
    )


def rows_are_independent(model: torch.nn.Module, given: Examples) -> bool:
    """Runs the model on pairs of rows: does a row give the same whatever stands beside it, and at either place?

    Weights and rows are made up: the answer depends on the model's structure alone. The generator is
    seeded because nothing here hides anything.
    """
    return _rows_agree(model, given, False)


def rows_stand_alone(model: torch.nn.Module, given: Examples) -> bool:
    """Whether rows are independent, and a row alone gives its row of the result: no `squeeze` drops the first axis."""
    return _rows_agree(model, given, True)


def _rows_agree(model: torch.nn.Module, given: Examples, also_alone: bool) -> bool:
    examples = example_tensors(given)
    if any(x.ndim == 0 for x in examples) or len({x.shape[0] for x in examples}) != 1:
        return False
    generator = torch.Generator().manual_seed(0)
    state = made_up_state(model, generator)

    def at(place: int, rows: tuple[Row, ...]) -> list[torch.Tensor]:
        inputs = tuple(torch.cat(parts) for parts in zip(*rows, strict=True))
        run = lambda *args, **named: torch.func.functional_call(model, state, args, named)
        outputs = tensors_in(call(run, given, inputs))
        if any(t.ndim == 0 or t.shape[0] != len(rows) for t in outputs):
            raise ValueError("an output has no row for each row of the inputs")
        return [t[place] for t in outputs]

    try:
        with ONE_AT_A_TIME, torch.no_grad(), unchecked():
            model = apart(model)
            known = False
            for trial in range(_TRIALS):
                mine, other, third = (_row(examples, generator) for _ in range(3))
                if trial < 2:  # whole numbers that are the smallest, and the largest, of all
                    edge = _extreme(examples, mine, trial)
                    mine = [e if is_whole(m.dtype) else m for m, e in zip(mine, edge, strict=True)]
                usual = at(0, (mine, other))
                known |= not any(bool(x.isnan().any()) for x in usual)  # of a mask that forbids all, a softmax is NaN
                beside = [
                    (mine, third),
                    (mine, _unknown(other)),
                    *[(mine, _extreme(examples, other, i)) for i in (0, 1)],
                ]
                if not all(_same(usual, at(0, pair)) and _same(usual, at(1, pair[::-1])) for pair in beside):
                    return False
                if also_alone and not _same(usual, at(0, (mine,))):
                    return False
    except Exception:  # a model that cannot run on two rows is not one to be split by rows
        return False
    return known
