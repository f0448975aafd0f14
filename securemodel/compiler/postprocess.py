"""What is done with a model's result before anybody sees it: so that no more is revealed than was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from securemodel.compiler.capture import Captured, Examples, capture, tensors_in
from securemodel.errors import CompileError

Reveal = str | tuple[str, int] | tuple[str, int, str]
"""One of `MEANINGS`."""

MEANINGS = (
    '"all" (what the model returns), "probabilities", "class", '
    '("top", k) for k classes and their probabilities, or ("top", k, "scores") for k classes and their scores'
)


class Probabilities(nn.Module):
    """Softmax over the last axis. float [..., classes] -> float [..., classes]."""

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.softmax(-1)


class Class(nn.Module):
    """Index of the largest score, the first of equals. float [..., classes] -> int64 [...]."""

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.argmax(-1)


class Top(nn.Module):
    """The k largest, largest first. float [..., classes] -> int64 [..., k] and float [..., k].

    The first result is the classes; the second their scores, or their probabilities among all classes.
    """

    def __init__(self, k: int, scores: bool) -> None:
        super().__init__()
        self.k, self.scores = k, scores

    def forward(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.k > scores.shape[-1]:
            raise CompileError(f'reveal=("top", {self.k}) asks for more than the model has: {scores.shape[-1]} classes')
        top, classes = scores.topk(self.k, -1)
        if self.scores:
            return classes, top
        # Besides topk, not after it: both read the scores, so they share rounds.
        return classes, (top - scores.logsumexp(-1, keepdim=True)).exp()


class Revealing(nn.Module):
    """A model and what is done with its result."""

    def __init__(self, model: nn.Module, reveal: nn.Module) -> None:
        super().__init__()
        self.model, self.reveal = model, reveal

    def forward(self, *inputs: torch.Tensor, **named: torch.Tensor) -> Any:
        return self.reveal(_scores(self.model(*inputs, **named)))


def _scores(result: Any) -> torch.Tensor:
    """The model's only result. Raises CompileError for anything that cannot be scores of classes."""
    parts = tensors_in(result)
    if len(parts) != 1:
        raise CompileError('the model returns several results; reveal other than "all" wants one tensor of scores')
    if not parts[0].is_floating_point() or parts[0].ndim < 1:
        raise CompileError(f'the model returns {parts[0].dtype} {list(parts[0].shape)}; reveal other than "all" '
                           "wants real scores of classes, on the last axis")  # fmt: skip
    return parts[0]


def _step(reveal: Reveal) -> nn.Module | None:
    if reveal in ("all", "probabilities", "class"):
        steps: dict[str, Callable[[], nn.Module | None]]
        steps = {"all": lambda: None, "probabilities": Probabilities, "class": Class}
        return steps[str(reveal)]()
    if isinstance(reveal, Sequence) and not isinstance(reveal, str) and len(reveal) in (2, 3):
        name, k, *kind = reveal
        if name == "top" and type(k) is int and k >= 1 and kind in ([], ["scores"]):
            return Top(k, bool(kind))
    raise CompileError(f"reveal = {reveal!r} means nothing: give {MEANINGS}")


def revealing(model: nn.Module, reveal: Reveal) -> nn.Module:
    """The model with what `reveal` asks for behind it; the model itself for "all". Raises CompileError."""
    step = _step(reveal)
    return model if step is None else Revealing(model, step)


@dataclass(frozen=True)
class Source:
    """What a program is compiled from."""

    model: nn.Module
    examples: Examples = ()
    reveal: Reveal = "all"


def capture_revealing(model: nn.Module, examples: Examples, reveal: Reveal) -> Captured:
    """Captures the model with what `reveal` asks for behind it; its weights and layers keep their own names."""
    whole = revealing(model, reveal)
    captured = capture(whole, examples)
    if whole is model:
        return captured
    for node in captured.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {key: (_own(path), kind) for key, (path, kind) in stack.items()}
    return replace(captured, states={node: _own(name) for node, name in captured.states.items()})


def _own(name: str) -> str:
    return "" if name == "model" else name.removeprefix("model.")


def result_names(reveal: Reveal, count: int) -> tuple[str, ...]:
    """What each of a program's results is, for files and tables."""
    if reveal in ("probabilities", "class"):
        return ("probability",) if reveal == "probabilities" else ("class",)
    if reveal != "all":
        return "class", "score" if len(reveal) == 3 else "probability"
    return ("output",) if count == 1 else tuple(f"output{index}" for index in range(count))
