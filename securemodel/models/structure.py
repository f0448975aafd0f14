"""What is public of a model of this package, as text: with it the other parties compile the same program.

public = securemodel.models.structure(model)              # at the weights' owner, who hands the text to the others
model = securemodel.models.from_structure(public)         # at the others: buffers on the meta device
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from protocols.errors import InputError, explain
from securemodel.models import (
    forest,
    heads,
    lightgbm,
    sklearn,
    sklearn_ensembles,
    sklearn_steps,
    sklearn_trees,
    sources,
    xgboost,
)

_FORMAT = "securemodel-structure 1"
_MODULES = {
    name: kind
    for file in (forest, heads, lightgbm, sklearn, sklearn_ensembles, sklearn_steps, sklearn_trees, sources, xgboost)
    for name, kind in vars(file).items()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == file.__name__
}
_SOURCES = {kind.__name__: kind for kind in (sources.Coded, sources.Number, sources.Equals, sources.Above)}
_TYPES = {str(kind).removeprefix("torch."): kind for kind in (torch.float64, torch.int64)}
_PLAIN = (bool, int, float, str, type(None))


def structure(module: nn.Module) -> str:
    """Kinds of modules, public numbers, and shapes of buffers, as JSON; no value of a buffer."""
    return json.dumps({"format": _FORMAT, "model": _described(module)}, separators=(",", ":"))


def _described(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return [_described(part) for part in value]
    if type(value) in _SOURCES.values():
        return {"source": type(value).__name__, **asdict(value)}
    if isinstance(value, nn.ModuleList):
        return {"list": [_described(part) for part in value]}
    if type(value) not in _MODULES.values():
        raise InputError(explain(f"{type(value).__name__} is no part of a model of securemodel.models"))
    public = {name: _described(v) for name, v in vars(value).items() if not name.startswith("_") and name != "training"}
    buffers = {name: [str(b.dtype).removeprefix("torch."), *b.shape] for name, b in value.named_buffers(recurse=False)}
    parts = {name: None if part is None else _described(part) for name, part in value.named_children()}
    return {"module": type(value).__name__, "public": public, "buffers": buffers, "parts": parts}


def from_structure(text: str) -> nn.Module:
    """The module of `structure`, with buffers on the meta device. Raises InputError for other texts."""
    try:
        whole = json.loads(text)
        if whole["format"] != _FORMAT:
            raise InputError(
                explain(f"a structure of the format {whole['format']!r}", fix=f"this version reads {_FORMAT!r}")
            )
        made = _made(whole["model"])
        if not isinstance(made, nn.Module):
            raise TypeError("no module")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as problem:
        raise InputError(explain("this is no structure of a model", why=f"{type(problem).__name__}",
                                 fix="make it with securemodel.models.structure(model)")) from problem  # fmt: skip
    return made.eval()


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return [_made(part) for part in value]
    if not isinstance(value, dict):
        return value
    if "source" in value:
        return _SOURCES[value["source"]](**{name: v for name, v in value.items() if name != "source"})
    if "list" in value:
        return nn.ModuleList([_made(part) for part in value["list"]])
    kind = _MODULES[value["module"]]
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    for name, public in value["public"].items():
        setattr(module, name, _made(public))
    for name, (dtype, *shape) in value["buffers"].items():
        module.register_buffer(name, torch.empty(shape, dtype=_TYPES[dtype], device="meta"))
    for name, part in value["parts"].items():
        setattr(module, name, None if part is None else _made(part))
    return module
