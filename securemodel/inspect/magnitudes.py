"""Which values of a model may be too large for the ring, or too small to keep their digits, before anything runs.

What an operator may give follows from the weights, which their owner has, and from the ranges of the inputs. A bound is
never too small but often too large: a network without norms multiplies the worst case of all its layers. So what is listed
is not wrong but not shown to be right, and `compare` tells on data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from protocols.errors import explain
from securemodel.compiler.builder import Builder
from securemodel.compiler.capture import Captured, Examples, example_tensors, source_line
from securemodel.compiler.ir import Graph
from securemodel.compiler.report import Magnitudes, Suspect
from securemodel.errors import InputError
from securemodel.inspect.bounds import of_operator
from securemodel.inspect.intervals import INFINITE, Interval, as_interval, between, unbounded

Range = tuple[float | torch.Tensor, float | torch.Tensor]
Ranges = Range | Mapping[str, Range] | Sequence[Range | None] | None
"""(least, largest) of all inputs, or of each by name or in order; numbers, or tensors that broadcast to an input."""
_USUAL = 1.0


def magnitudes(
    captured: Captured,
    graph: Graph,
    state: Mapping[str, torch.Tensor],
    examples: Examples,
    ranges: Ranges,
    frac_bits: int = 16,
    width: int = 64,
) -> Magnitudes | None:
    """What is not shown to fit, of the secret values of a captured model; `graph` is what it was lowered to.

    Inputs without a range are taken within ±1, or as far as their examples go. None where weights have no values.
    Raises InputError for ranges that fit no input.
    """
    if any(state[name].is_meta for name in captured.states.values()):
        return None
    given = _given(captured, examples, ranges)
    walk = _Walk(captured, state, given)
    most, few = Builder(frac_bits=frac_bits, width=width).most, 2.0 ** -(frac_bits // 2)
    secret = {mark.name for node in graph.nodes for mark in node.marks if mark.low is None}
    suspects: list[Suspect] = []
    for node in captured.graph.nodes:
        if node.op != "call_function":
            continue
        made = walk.step(node)
        if node.name not in secret or not isinstance(made, Interval) or not made.low.numel():
            continue
        operands = [x for x in map(walk.env.get, node.all_input_nodes) if isinstance(x, Interval)]
        if str(node.target) in walk.without:
            continue
        if made.largest > most and all(x.largest <= most for x in operands):
            suspects.append(_suspect(node, made, most))
        elif 0 < made.largest < few and not any(0 < x.largest < few for x in operands):
            suspects.append(_suspect(node, made, few))
    for node in _shown_as_infinite(captured.graph, walk.env):
        number = max(map(_huge, _known_of(node, walk.env)))
        suspects.append(Suspect(str(node.target), source_line(node), -number, number, INFINITE))
    said = None if ranges is not None else _assumed(captured, given)
    return Magnitudes(tuple(suspects), tuple(walk.without), said)


def _shown_as_infinite(graph: torch.fx.Graph, env: Mapping[torch.fx.Node, Any]) -> list[torch.fx.Node]:
    """Where a finite number that stands for infinity, as in masks, is put to secrets and goes into a result itself: by sums,
    factors and places alone, past nothing that would make a mask of it."""
    results = next(node for node in graph.nodes if node.op == "output").all_input_nodes
    open_, seen = list(results), set(results)
    while open_:
        node = open_.pop()
        if getattr(node.target, "overloadpacket", None) in _LINEAR:
            more = [x for x in node.all_input_nodes if isinstance(env.get(x), Interval) and x not in seen]
            open_ += more
            seen.update(more)
    reached = [node for node in graph.nodes if node in seen and getattr(node.target, "overloadpacket", None) in _LINEAR]
    return [
        node
        for node in reached
        if any(isinstance(env.get(x), Interval) for x in node.all_input_nodes) and any(map(_huge, _known_of(node, env)))
    ]


aten = torch.ops.aten
_LINEAR = frozenset(
    getattr(aten, name)
    for name in (
        "add", "sub", "rsub", "mul", "neg", "sum", "mean", "view", "_unsafe_view", "reshape", "permute", "transpose", "t",
        "unsqueeze", "squeeze", "expand", "slice", "select", "clone", "cat", "_to_copy", "alias",
    )
)  # fmt: skip


def _known_of(node: torch.fx.Node, env: Mapping[torch.fx.Node, Any]) -> list[Any]:
    """The numbers that an operator is given, as arguments or in tensors that are known."""
    given = [env.get(x) if isinstance(x, torch.fx.Node) else x for x in node.args]
    return [
        x for x in given if isinstance(x, torch.Tensor) or (isinstance(x, (int, float)) and not isinstance(x, bool))
    ]


def _huge(x: Any) -> float:
    """The largest finite magnitude of numbers that stand for infinity; 0 if there is none."""
    known = torch.as_tensor(x).double().abs()
    return float(torch.where(known.isfinite() & (known >= INFINITE), known, 0.0).amax()) if known.numel() else 0.0


def _suspect(node: torch.fx.Node, made: Interval, limit: float) -> Suspect:
    return Suspect(str(node.target), source_line(node), float(made.low.min()), float(made.high.max()), limit)


class _Walk:
    """The interval of every value of a captured graph, in its order; what is known stays a tensor."""

    def __init__(self, captured: Captured, state: Mapping[str, torch.Tensor], given: Mapping[str, Interval]) -> None:
        self.env: dict[torch.fx.Node, Any] = {}
        self.without: dict[str, None] = {}
        """Operators that no rule bounds."""
        kept = {part.placeholder: part.start for part in captured.kept}
        for node in captured.graph.nodes:
            if node.op != "placeholder":
                continue
            if kept.get(node.name) is not None or node.name in kept:
                self.env[node] = unbounded(node.meta["val"].shape)
            elif node.name in captured.constants:
                self.env[node] = captured.constants[node.name]
            elif node.name in captured.states:
                self.env[node] = state[captured.states[node.name]]
            else:
                self.env[node] = given.get(node.name)

    @torch.no_grad()
    def step(self, node: torch.fx.Node) -> Any:
        """The value of the next operator."""
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self.env.get)
        operands = [self.env.get(n) for n in node.all_input_nodes]
        example = node.meta.get("val")
        if not any(_has_interval(x) for x in operands):
            self.env[node] = self._known(node, args, kwargs)
        elif not isinstance(example, (torch.Tensor, tuple, list)):
            self.env[node] = None
        else:
            self.env[node] = self._bounded(node, args, kwargs, example)
        return self.env[node]

    def _known(self, node: torch.fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        try:
            return cast(Any, node.target)(*args, **kwargs)
        except Exception:  # of something that is no tensor, or that has no value before inputs are known
            return self._unknown(node)

    def _bounded(self, node: torch.fx.Node, args: Sequence[Any], kwargs: dict[str, Any], example: Any) -> Any:
        try:
            made = of_operator(node.target, args, kwargs, example)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            made = None  # arguments of another form than its rule knows
        return self._unknown(node) if made is None else made

    def _unknown(self, node: torch.fx.Node) -> Any:
        example = node.meta.get("val")
        if isinstance(example, (torch.Tensor, tuple, list)):
            self.without[str(node.target)] = None
        return _anything(example)


def _anything(example: Any) -> Any:
    """Unbounded numbers of a shape, or of several; None for what is no tensor or has a size that depends on values."""
    if isinstance(example, (tuple, list)):
        return tuple(map(_anything, example))
    if isinstance(example, torch.Tensor) and all(isinstance(size, int) for size in example.shape):
        return unbounded(example.shape)
    return None


def _has_interval(x: Any) -> bool:
    return any(map(_has_interval, x)) if isinstance(x, (tuple, list)) else isinstance(x, Interval)


# ---- of the inputs
def _given(captured: Captured, examples: Examples, ranges: Ranges) -> dict[str, Interval]:
    tensors = example_tensors(examples)
    names = list(examples) if isinstance(examples, Mapping) else [str(at) for at in range(len(tensors))]
    wanted = _by_input(names, ranges)
    return {
        placeholder: _of_input(name, example, one)
        for placeholder, name, example, one in zip(captured.inputs, names, tensors, wanted, strict=True)
    }


def _by_input(names: Sequence[str], ranges: Ranges) -> Sequence[Range | None]:
    """The range of each input, None where there is none."""
    if ranges is None:
        return [None] * len(names)
    if isinstance(ranges, Mapping):
        if unknown := [name for name in ranges if str(name) not in names]:
            _wrong(f"an input is called {unknown[0]!r}", f"the inputs are {', '.join(names)}")
        known = {str(name): one for name, one in ranges.items()}
        return [known.get(name) for name in names]
    if len(ranges) == 2 and not any(isinstance(end, (tuple, list, type(None))) for end in ranges):
        return [cast(Range, ranges)] * len(names)
    if len(ranges) != len(names):
        _wrong(f"there are {len(ranges)} of them", f"the model takes {len(names)} inputs")
    return cast(Sequence[Range | None], ranges)


def _of_input(name: str, example: torch.Tensor, one: Range | None) -> Interval:
    if one is None:
        return _as_far_as(example)
    try:
        low, high = (torch.as_tensor(end).double().expand(example.shape) for end in one)
    except (RuntimeError, TypeError, ValueError) as problem:
        _wrong(f"that of input {name} is {one!r:.60}", f"no pair for the shape {list(example.shape)}: {problem}")
    if not bool((low <= high).all()):
        _wrong(f"that of input {name} is {one!r:.60}", "its least number is above its largest one")
    return between(low, high)


def _as_far_as(example: torch.Tensor) -> Interval:
    """Real numbers within ±1, or as large as the example's; whole ones from the least to the largest of 0, 1 and these."""
    known = as_interval(example.detach().cpu())
    most = max(_USUAL, known.largest)
    low, high = -most, most
    if not example.is_floating_point():
        low = min(0.0, float(known.low.min()) if example.numel() else 0.0)
        high = max(1.0, float(known.high.max()) if example.numel() else 1.0)
    made = torch.zeros(example.shape, dtype=torch.float64)
    return Interval(made + low, made + high)


def _assumed(captured: Captured, given: Mapping[str, Interval]) -> float:
    """How far inputs were taken to go."""
    return max((x.largest for x in given.values()), default=_USUAL)


def _wrong(what: str, why: str) -> Any:
    fix = "give (least, largest) for all inputs, or one such pair for each, by name or in order"
    raise InputError(explain(f"ranges fit no inputs: {what}", why=why, fix=fix))
