"""compile and check: from a model and the names of the parties to a program."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from securemodel.compiler.builder import PUBLIC, Builder, FloatCall, Value
from securemodel.compiler.capture import capture
from securemodel.compiler.ir import Graph, Header
from securemodel.compiler.lowering import Lowered, lower_model
from securemodel.compiler.passes import fold_owner_scales, order_nodes, place_masks, place_truncations
from securemodel.compiler.report import Report
from securemodel.errors import CompileError, UnsupportedOperator
from securemodel.program import Program, receivers

_RESERVED = frozenset({PUBLIC, "all", "dealer"})
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def compile(
    model: torch.nn.Module,
    example_inputs: Sequence[torch.Tensor],
    *,
    weights: str,
    inputs: str | Sequence[str],
    outputs: str | Sequence[str],
    parties: Sequence[str] | None = None,
    frac_bits: int = 16,
    width: int = 64,
    truncate_outputs: bool = False,
) -> Program:
    """Compiles a model into a program that parties run together without showing each other their data.

    `weights` names the party that owns the parameters and buffers, `inputs` the owner of each input (one
    name for all, or a tuple), `outputs` who learns each output (a party, "all", or a tuple). "public" marks
    what everybody knows. `parties` orders the online parties; by default the weights' owner is first.
    The weights need not be real at any party but their owner: a model on the meta device will do.
    Reals have `frac_bits` fractional bits. `width` bounds what is compared: magnitudes stay below
    2^(width - 1 - frac_bits); smaller is faster. Results of products are revealed with 2 frac_bits
    fractional bits; `truncate_outputs` cuts them to frac_bits first, for one more round.

    Raises UnsupportedOperator (with the report of `check`), CompileError, InputError.
    """
    example_inputs = _as_tuple(example_inputs)
    owners = [inputs] * len(example_inputs) if isinstance(inputs, str) else list(inputs)
    names = _party_names(weights, owners, outputs, parties)
    _check_arguments(example_inputs, owners, frac_bits, width)
    captured = capture(model, example_inputs)
    lowered = lower_model(captured, weights, owners, frac_bits)
    if lowered.problems:
        raise UnsupportedOperator(_report(model, lowered))
    to = receivers(outputs, len(lowered.outputs))
    if len(to) != len(lowered.outputs):
        raise CompileError(f"outputs names {len(to)} receivers, but the model returns {len(lowered.outputs)} values")
    header = Header(names, frac_bits, width, weights, tuple(owners), tuple(tuple(x.shape) for x in example_inputs), ())
    if truncate_outputs:
        outs = tuple(lowered.builder.rescale(v) if v.secret and not v.integer else v for v in lowered.outputs)
        lowered = replace(lowered, outputs=outs)
    graph, calls = _run_passes(lowered, to, frac_bits, width, len(names))
    return Program(replace(header, outputs=tuple(to)), graph, calls, model, example_inputs, captured)


def check(model: torch.nn.Module, example_inputs: Sequence[torch.Tensor]) -> Report:
    """Every operator of a model that has no secure version, with source line, reason and remedy.

    Assumes the usual case: one party owns the weights, another the inputs.
    """
    example_inputs = _as_tuple(example_inputs)
    lowered = lower_model(capture(model, example_inputs), "model owner", ["data owner"] * len(example_inputs))
    return _report(model, lowered)


def _as_tuple(example_inputs: Any) -> tuple[torch.Tensor, ...]:
    return (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)


def _report(model: torch.nn.Module, lowered: Lowered) -> Report:
    return Report(type(model).__name__, lowered.problems, lowered.operators, lowered.approximated)


def _party_names(weights: str, owners: Sequence[str], outputs, parties) -> tuple[str, ...]:
    to = [outputs] if isinstance(outputs, str) else list(outputs)
    given = [n for n in (weights, *owners) if n != PUBLIC] + [n for n in to if n not in (PUBLIC, "all")]
    used = list(dict.fromkeys(given))
    names = tuple(parties) if parties is not None else tuple(used)
    missing = [n for n in used if n not in names]
    if missing:
        raise CompileError(
            f"unknown party {', '.join(missing)}: the parties are {', '.join(names)}. "
            "Name every owner and receiver in `parties`."
        )
    bad = [n for n in names if n in _RESERVED or not _NAME.fullmatch(n)]
    if bad or len(set(names)) != len(names):
        raise CompileError(
            f"bad party names {', '.join(map(repr, bad or names))}: use different names of letters, digits, '_' and "
            f"'-' that start with a letter, none of {', '.join(sorted(_RESERVED))}"
        )
    if len(names) < 2:
        raise CompileError(
            f"a secure program needs at least two online parties, got {', '.join(names) or 'none'}. "
            "Name a further one in `parties`."
        )
    return names


def _check_arguments(example_inputs, owners, frac_bits: int, width: int) -> None:
    if len(owners) != len(example_inputs):
        raise CompileError(f"inputs names {len(owners)} owners for {len(example_inputs)} example inputs")
    if not all(isinstance(x, torch.Tensor) for x in example_inputs):
        raise CompileError("example_inputs must be tensors (their values do not matter, their shapes do)")
    if not 4 <= frac_bits <= 24:
        raise CompileError(f"frac_bits = {frac_bits} is outside 4..24: products need 2 frac_bits plus the integer part")
    if not frac_bits + 8 <= width <= 64:
        raise CompileError(f"width = {width} is outside {frac_bits + 8}..64 for {frac_bits} fractional bits")


def _run_passes(
    lowered: Lowered, to: list[str], frac_bits: int, width: int, parties: int
) -> tuple[Graph, dict[int, FloatCall]]:
    builder = lowered.builder
    replaced = fold_owner_scales(builder)
    outputs = [replaced.get(v.id, v.id) for v in lowered.outputs]
    scaled = place_truncations(builder.graph, outputs, to, replaced, frac_bits, width)
    floats, float_ids = _copy_floats(builder)
    masked = place_masks(scaled, floats, float_ids, parties)
    _mark_types(masked, lowered.dtypes)
    ordered, ids = order_nodes(masked)
    calls = {}
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
    """The float nodes alone, in a graph of their own, marked by whether they need the run's inputs."""
    graph, ids, per_run = Graph(), {}, set()
    for node in builder.graph.nodes:
        if node.form != "float":
            continue
        if node.attrs.get("name", "").startswith("input:") or any(a in per_run for a in node.args):
            per_run.add(node.id)
        args = [ids[a] for a in node.args]
        rest = {"owner": node.owner, "load": node.id not in per_run, "source": node.source}
        ids[node.id] = graph.add(node.op, args, node.shape, "float", attrs=dict(node.attrs), **rest).id
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
