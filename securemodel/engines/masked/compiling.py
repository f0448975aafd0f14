"""The masked engine's part of compiling: lowering to its secure graph, and the passes over it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from securemodel.compiler.builder import Builder, FloatCall, Value
from securemodel.compiler.capture import Examples
from securemodel.compiler.ir import Graph, Header
from securemodel.compiler.lowering import Lowered, lower_model
from securemodel.compiler.passes import (
    compare_together,
    fold_owner_scales,
    narrow_masks,
    order_nodes,
    place_masks,
    place_truncations,
)
from securemodel.compiler.postprocess import Reveal
from securemodel.program import Program

lower = lower_model


def assemble(
    header: Header,
    lowered: Lowered,
    model: torch.nn.Module,
    examples: Examples,
    truncate_outputs: bool = False,
    reveal: Reveal = "all",
) -> Program:
    """The program of a lowered model."""
    return Program(header, *run_passes(header, lowered, truncate_outputs), model, examples)


def run_passes(
    header: Header, lowered: Lowered, truncate_outputs: bool, mark: Callable[[Graph], None] = lambda graph: None
) -> tuple[Graph, dict[int, FloatCall]]:
    """The runnable graph of a lowered model, and the calls of its float nodes.

    `mark` may turn nodes, before masks are placed, into gates whose parts another source than the dealer makes.
    """
    if truncate_outputs:
        outs = tuple(lowered.builder.rescale(v) if v.secret and not v.integer else v for v in lowered.outputs)
        lowered = replace(lowered, outputs=outs)
    to, parties = list(header.outputs), len(header.parties)
    builder = lowered.builder
    replaced = fold_owner_scales(builder)
    outputs = [replaced.get(v.id, v.id) for v in lowered.outputs]
    scaled = place_truncations(builder.graph, outputs, to, replaced, header)
    mark(scaled)
    floats, float_ids = _copy_floats(builder)
    masked = compare_together(place_masks(scaled, floats, float_ids, parties))
    narrow_masks(masked)
    _mark_types(masked, lowered.dtypes)
    ordered, ids = order_nodes(masked)
    calls: dict[int, FloatCall] = {}
    for old, call in builder.calls.items():
        new = ids.get(float_ids[old])
        if new is not None:
            rename = lambda v: replace(v, id=ids[float_ids[v.id]])
            calls[new] = FloatCall(call.target, _map(call.args, rename), _map(call.kwargs, rename))
            ordered[new].attrs = {
                **ordered[new].attrs,
                "args": _map_text(ordered[new].attrs["args"], ids, float_ids),
                "kwargs": _map_text(ordered[new].attrs["kwargs"], ids, float_ids),
            }
    return ordered, calls


def _copy_floats(builder: Builder) -> tuple[Graph, dict[int, int]]:
    """The float nodes alone, in a graph of their own."""
    graph = Graph()
    ids: dict[int, int] = {}
    for node in builder.graph.nodes:
        if node.form != "float":
            continue
        args = [ids[a] for a in node.args]
        rest = {"owner": node.owner, "phase": node.phase, "source": node.source}
        ids[node.id] = graph.add(
            node.op,
            args,
            node.shape,
            "float",
            attrs={key: value for key, value in node.attrs.items() if key != "small"},
            **rest,
        ).id
    return graph, ids


def _mark_types(graph: Graph, dtypes: Sequence[str]) -> None:
    for node in graph.nodes:
        if node.op == "reveal":
            node.attrs = {**node.attrs, "dtype": dtypes[node.attrs["index"]]}


def _map(arg: Any, change) -> Any:
    if isinstance(arg, Value):
        return change(arg)
    if isinstance(arg, dict):
        return {k: _map(v, change) for k, v in arg.items()}
    return type(arg)(_map(a, change) for a in arg) if isinstance(arg, (list, tuple)) else arg


def _map_text(arg: Any, ids: dict[int, int], float_ids: dict[int, int]) -> Any:
    if isinstance(arg, str) and arg.startswith("%"):
        return f"%{ids[float_ids[int(arg[1:])]]}"
    if isinstance(arg, dict):
        return {k: _map_text(v, ids, float_ids) for k, v in arg.items()}
    return [_map_text(a, ids, float_ids) for a in arg] if isinstance(arg, list) else arg
