"""What the most expensive layers of a program spend their time on, and what would make them cheaper.

A hint names a saving only where it is counted, on the graph that would result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from protocols.gates import numel
from protocols.gates.sign import digit_count, groups, layer_of, leaf_planes, opened_planes
from protocols.shares import words
from securemodel.compiler.ir import Graph, Header, Node
from securemodel.compiler.passes.masks import narrow_masks
from securemodel.compiler.positions import is_table
from securemodel.planning.costs import Cost, Expense, Layer, Network
from securemodel.planning.layer_names import INPUTS, OUTPUTS, layer_names
from securemodel.planning.units import bytes_text, seconds_text

NARROW = 32
"""A width that most networks' comparisons fit; as many rounds as 64."""
_SHOWN = 3
_WORTH = 0.05  # of a layer's time: what a hint has to save
_SMOOTH = re.compile(r"\b(gelu|silu|mish|softplus|[cs]?elu)", re.IGNORECASE)


def most_expensive(
    graph: Graph,
    header: Header,
    layers: Sequence[Layer],
    narrow: Sequence[Layer],
    network: Network,
    seconds: Callable[[Cost], float],
) -> tuple[Expense, ...]:
    """The three layers that take most time; `narrow` are the layers of `narrowed(graph)`."""
    times = {layer.name: seconds(layer.cost) for layer in layers}
    total, narrow_cost = sum(times.values()), {layer.name: layer.cost for layer in narrow}
    names, out, told = layer_names(graph), [], False
    inner = [layer for layer in layers if layer.name not in (INPUTS, OUTPUTS) and times[layer.name] > 0]
    for layer in sorted(inner, key=lambda layer: -times[layer.name])[:_SHOWN]:
        time = times[layer.name]
        mostly, nodes = _mostly(layer.cost, time, network), [n for n in graph.nodes if names[n.id] == layer.name]
        hints = [
            *_not_in_shares(graph, nodes),
            *_piecewise(layer, nodes),
            *_narrow(header, layer.cost, narrow_cost.get(layer.name), time, seconds),
        ]
        if mostly == "rounds" and not told:
            hints.append(_more_rows(layer.cost, time, network))
            told = True
        out.append(Expense(layer.name, time / total, mostly, tuple(hints)))
    return tuple(out)


def _mostly(cost: Cost, time: float, network: Network) -> str:
    """Rounds, bytes or computing."""
    waiting = cost.rounds * network.latency
    sending = 8 * max(max(c.sent_bytes, c.received_bytes) for c in cost.parties.values()) / network.bandwidth
    parts = {"rounds": waiting, "bytes": sending, "computing": time - waiting - sending}
    return max(parts, key=parts.__getitem__)


def _more_rows(cost: Cost, time: float, network: Network) -> str:
    ten = 10 * time - 9 * cost.rounds * network.latency
    return (
        f"give a run more rows: it takes its {cost.rounds} rounds once, so 10 times the rows take about "
        f"{seconds_text(ten)} here, not {seconds_text(10 * time)}"
    )


def _narrow(
    header: Header, cost: Cost, narrow: Cost | None, time: float, seconds: Callable[[Cost], float]
) -> list[str]:
    """A smaller width, where this layer's comparisons gain by it."""
    if narrow is None or time - seconds(narrow) < _WORTH * time:
        return []
    before, after = (max(c.sent_bytes.values()) for c in (cost, narrow))
    bound = f"2^{NARROW - 1 - header.frac_bits}"
    sends = f"sends {bytes_text(after)}, not {bytes_text(before)}"
    return [f"compile with width={NARROW}, if what is compared stays below {bound}: {sends}"]


def _piecewise(layer: Layer, nodes: Sequence[Node]) -> list[str]:
    """ReLU in place of a smooth activation."""
    splines = [n for n in nodes if n.op == "spline"]
    digits = [n for n in nodes if n.op == "digits"]
    if not _SMOOTH.search(layer.name) or len(splines) != 1 or not digits:
        return []
    count, openings = numel(splines[0].shape), _sign_planes(max(n.attrs["low_bits"] for n in digits))
    sent = (len(layer.cost.parties) - 1) * 8 * (count + words(count) * sum(openings))
    now = f"{bytes_text(max(layer.cost.sent_bytes.values()))} in {layer.cost.rounds}"
    return [f"train it with ReLU in its place: sends {bytes_text(sent)} in {1 + len(openings)} rounds, not {now}"]


def _not_in_shares(graph: Graph, nodes: Sequence[Node]) -> list[str]:
    """Where only the receiver reads a layer without weights, it could compute it from the layer's input."""
    own = {n.id for n in nodes}
    weights: set[int] = set()
    for node in graph.nodes:
        given = node.op in ("input", "own") and not is_table(graph, node)
        if node.phase == "load" and (given or weights & set(node.args)):
            weights.add(node.id)
    if any(weights & set(n.args) for n in nodes) or not any(n.op in ("spline", "digits") for n in nodes):
        return []
    readers = {n.op for n in graph.nodes if n.id not in own and own & set(n.args)}
    if readers != {"reveal"}:
        return []
    return ["return what goes into it, if the receiver may see that, and let the receiver compute it: saves all of it"]


# ---- the same program with narrower comparisons
def narrowed(graph: Graph, frac_bits: int, width: int = NARROW) -> Graph:
    """The graph that compiling with a smaller width gives, where it takes as many layers of bits.

    Of a text from outside, comparisons may be no signs that compile() writes: those stay as they are.
    """
    windows, tops = _windows(graph, frac_bits, width)
    out, digits = Graph(), {}
    for node in graph.nodes:
        attrs, shape = dict(node.attrs), node.shape
        if node.op == "digits":
            attrs.update(windows.get(node.id, {}))
            digits[node.id] = digit_count(attrs["low_bits"])
            shape = (leaf_planes(digits[node.id]), shape[1])
        elif node.op == "top_bit":
            attrs["bit"] = tops.get(node.id, node.attrs["bit"])
        elif node.op in ("mask_bits", "combine") and "digits" in attrs and node.args[-1] in digits:
            attrs["digits"], apart = digits[node.args[-1]], attrs.get("apart", 0)
            if attrs["digits"] <= max(apart, 1):
                return graph  # no comparison that compile() writes
            if node.op == "mask_bits":
                shape = (len(opened_planes(*layer_of(attrs))), shape[1])
            else:
                digits[node.id] = len(groups(*layer_of(attrs)))
                shape = (leaf_planes(digits[node.id]), shape[1])
        elif node.op == "mask_bits" and node.args[0] in digits:
            shape = (leaf_planes(digits[node.args[0]]), shape[1])
        out.nodes.append(replace(node, attrs=attrs, shape=shape))
    narrow_masks(out)
    return out


def _windows(graph: Graph, frac_bits: int, width: int) -> tuple[dict[int, dict], dict[int, list[int]]]:
    """What the digits of signs see at a smaller width, and their top bits, by node."""
    begins: dict[int, int] = {}
    apart, windows, tops = set(), {}, {}
    for node in graph.nodes:
        if node.op == "digits":
            begins[node.id] = node.id
        elif node.op in ("mask_bits", "combine") and node.args[0] in begins:
            begins[node.id] = begins[node.args[0]]
            if "apart" in node.attrs:
                apart.add(begins[node.id])
        elif node.op == "xor" and node.form == "bits" and node.args[0] in begins:
            digits, top = graph[begins[node.args[0]]], graph[node.args[1]]
            if top.op != "top_bit" or top.args != digits.args:
                continue
            more = [max(0, (graph[a].frac or 0) - frac_bits) for a in digits.args]
            bits = [min(bit, width - 1 + m) for bit, m in zip(top.attrs["bit"], more, strict=True)]
            shifts = digits.attrs["shift"]
            low_bits = max(bit - shift for bit, shift in zip(bits, shifts, strict=True))
            if low_bits < 1:
                continue
            shifts = shifts if digits.id in apart else [bit - low_bits for bit in bits]
            windows[digits.id], tops[top.id] = {"low_bits": low_bits, "shift": shifts}, bits
    return windows, tops


def _sign_planes(low_bits: int) -> list[int]:
    """Planes of bits in each opening of a comparison."""
    digits, planes = digit_count(low_bits), []
    while digits > 1:
        planes.append(len(opened_planes(digits)))
        digits = len(groups(digits))
    return [*planes, 1]
