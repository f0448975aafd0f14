"""Names of all that a step keeps: they are the same at every party and in every process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from protocols.errors import explain
from securemodel.errors import CompileError


def named(things: Any, word: str) -> dict[str, Any]:
    """One thing is called `word`, those of a sequence `word0`, `word1`; those of a mapping have their names."""
    if isinstance(things, Mapping):
        return {str(name): thing for name, thing in things.items()}
    if isinstance(things, (list, tuple)) and len(things) != 1:
        return {f"{word}{i}": thing for i, thing in enumerate(things)}
    return {word: things[0] if isinstance(things, (list, tuple)) else things}


def check(models: Mapping[str, Any], optimizers: Mapping[str, Any], evaluates: bool = False) -> None:
    """Raises CompileError unless these are models and optimizers, with different names, and belong together.

    `evaluates`: there is nothing to update.
    """
    for things, kind, word in ((models, nn.Module, "model"), (optimizers, torch.optim.Optimizer, "optimizer")):
        if not things and not (evaluates and word == "optimizer"):
            raise CompileError(
                explain(f"no {word} is given", fix=f"give one {word}, a list of them, or a dict by name")
            )
        for name, thing in things.items():
            if not isinstance(thing, kind):
                raise CompileError(explain(f"{name} is a {type(thing).__name__} and no {word}", fix=f"give a {word}"))
    if both := sorted(set(models) & set(optimizers)):
        raise CompileError(explain(f"a model and an optimizer have the same name: {', '.join(both)}", fix="rename one"))
    known = {id(p) for model in models.values() for p in model.parameters()}
    for name, optimizer in optimizers.items():
        if any(id(p) not in known for group in optimizer.param_groups for p in group["params"]):
            what = "it updates parameters that belong to none of the models"
            raise CompileError(explain(what, where=name, fix="give all models whose parameters are trained"))
    for name, module in (
        (f"{name}.{path}", part) for name, model in models.items() for path, part in model.named_modules()
    ):
        if isinstance(module, torch.jit.ScriptModule):
            what = "a module of torch.jit has no code to trace"
            raise CompileError(explain(what, where=name.strip("."), fix="give the module that it was made of"))
    for name, tensor in tensors(models):
        if nn.parameter.is_lazy(tensor):
            what, fix = "a parameter has no shape yet", "run the model once, or use modules that are not lazy"
            raise CompileError(explain(what, where=name, fix=fix))
        if getattr(tensor, "_backward_hooks", None) or getattr(tensor, "_post_accumulate_grad_hooks", None):
            raise CompileError(
                explain("hooks on gradients would not be run", where=name, fix="write them into the step")
            )


def places(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(full name, the dict of a module that holds it, the key there) of every parameter and buffer, ties included."""
    for name, model in models.items():
        for path, module in model.named_modules():
            prefix = f"{name}.{path}." if path else f"{name}."
            for holder in (module._parameters, module._buffers):
                for key in holder:
                    yield prefix + key, holder, key


def tensors(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer once, by its first name."""
    seen: set[int] = set()
    for name, holder, key in places(models):
        tensor = holder[key]
        if tensor is not None and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor
