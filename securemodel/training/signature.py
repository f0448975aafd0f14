"""Names of a step's inputs and results, out of its signature and its `return`; which states are counts."""

from __future__ import annotations

import ast
import inspect
import textwrap
import tokenize
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, keystr, tree_flatten_with_path, tree_unflatten

from securemodel.training.steps import TENSOR, Input


def batch(step: Callable, leaves: Sequence[Any], nest: TreeSpec) -> tuple[Input, ...]:
    """The tensors of a batch under the names of the step's arguments, such as `x`, `labels` or `rest.0`."""
    given = tree_unflatten(list(leaves), nest)
    paths = [path for path, _ in tree_flatten_with_path(given)[0]]
    arguments = [] if isinstance(given, dict) else _arguments(step, len(given))
    out = []
    for path, leaf in zip(paths, leaves, strict=True):
        if isinstance(leaf, torch.Tensor):
            parts = _parts(path)
            if arguments:
                parts[0] = arguments[int(parts[0])]
            out.append(Input(".".join(parts), tuple(leaf.shape), leaf.dtype))
    return tuple(out)


def _arguments(step: Callable, count: int) -> list[str]:
    """The names of the first arguments; those of *args by number."""
    try:
        parameters = list(inspect.signature(step).parameters.values())
    except (TypeError, ValueError):
        return [f"input{i}" for i in range(count)]
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), "input")
    return [*names[:count], *(f"{rest}.{i}" for i in range(count - len(names)))]


def names(step: Callable, leaves: Sequence[Any], nest: TreeSpec) -> tuple[str, ...]:
    """The names of what a step returns: keys of dicts, else the variables after `return`, else numbers."""
    result = tree_unflatten(list(leaves), nest)
    paths = [path for path, _ in tree_flatten_with_path(result)[0]]
    variables = _returned_variables(step)
    out = []
    for path, leaf in zip(paths, leaves, strict=True):
        if leaf is TENSOR:
            parts = _parts(path)
            if isinstance(result, tuple) and type(result) is tuple and len(variables) == len(result):
                parts[0] = variables[int(parts[0])]
            elif not parts:
                parts = variables if len(variables) == 1 else ["result"]
            out.append(".".join(parts))
    return tuple(out)


def _parts(path: Sequence[Any]) -> list[str]:
    return [keystr((part,)).strip(".[]'\"") for part in path]


def _returned_variables(step: Callable) -> list[str]:
    """The variables of the only `return` of a function, if these are all there is in it and its source is at hand."""
    try:
        function = ast.parse(textwrap.dedent(inspect.getsource(step))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError, tokenize.TokenError):
        return []
    if getattr(function, "name", None) != getattr(step, "__name__", ""):  # the file is another one by now
        return []
    inner = [n for n in ast.walk(function) if isinstance(n, (ast.FunctionDef, ast.Lambda)) and n is not function]
    hidden = {id(part) for other in inner for part in ast.walk(other)}
    returns = [n for n in ast.walk(function) if isinstance(n, ast.Return) and id(n) not in hidden]
    if len(returns) != 1 or returns[0].value is None:
        return []
    values = returns[0].value.elts if isinstance(returns[0].value, ast.Tuple) else [returns[0].value]
    found = [value.id for value in values if isinstance(value, ast.Name)]
    return found if len(found) == len(values) == len(set(found)) else []


def counts(nodes: Mapping[str, torch.fx.Node], ends: Mapping[str, torch.fx.Node], states: set[str]) -> set[str]:
    """The states that count steps: whole numbers whose new value follows from such states and constants alone."""
    found = {name for name in ends if name in states and not nodes[name].meta["val"].is_floating_point()}
    of = {node: name for name, node in nodes.items()}
    while True:
        bad = {name for name in found if not _reads(ends[name], of) <= found}
        if not bad:
            return found
        found -= bad


def _reads(node: torch.fx.Node, of: Mapping[torch.fx.Node, str]) -> set[str]:
    """The names of all placeholders that a node depends on."""
    seen, todo, names = set(), [node], set()
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            names |= {of[node]} if node in of else set()
            todo += node.all_input_nodes
    return names
