"""A plan as text: one line a layer, aligned, at most 110 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from securemodel.compiler.plan import Cost, Layer, Network, Plan

_COLUMNS = 110
_SHOWN_PARTIES = 3
_ROUNDING = {
    "exact": "rounding exact: results follow from the inputs alone",
    "fast": "rounding fast: results tell their receiver about digits that were cut off (docs/threat-model.md)",
}


def plan_text(plan: Plan) -> str:
    """The table that `print(plan)` shows. Every column adds up to its total.

    Up to three parties have a column of what they send; of more, the one that sends most. Rounds, products and
    seconds are those of the party that has most of them.
    """
    costs = plan.total.parties
    names = sorted(costs, key=lambda name: -costs[name].sent_bytes)[:1] if len(costs) > _SHOWN_PARTIES else list(costs)
    heading = ["layer", "rounds", *(_shortened(name, 10) for name in names), "cessing", "adds", "seconds"]
    above = ["", "", *["sent by"] * len(names), "prepro-", "multiply-", ""]
    rows = [_row(plan, _with_steps(layer), layer.cost, names) for layer in plan.layers]
    table = _aligned([above, heading, *rows, _row(plan, "total", plan.total, names)])
    rule = "-" * max(map(len, table))
    title = f"program {plan.digest[:12]}, parties {', '.join(costs)}; {network_text(plan.network)}"
    return "\n".join([title, *table[:2], rule, *table[2:-1], rule, table[-1], *_footer(plan), *_expenses(plan)])


def _with_steps(layer: Layer) -> str:
    """A layer's name; of a recurrent one also its steps and what one takes."""
    return f"{layer.name} ({layer.steps} steps of {layer.rounds_per_step:.0f} rounds)" if layer.steps else layer.name


def _row(plan: Plan, name: str, cost: Cost, shown: Sequence[str]) -> list[str]:
    total = plan.total.parties
    rounds = cost.parties[max(total, key=lambda p: total[p].rounds)].rounds
    products = cost.parties[max(total, key=lambda p: total[p].multiply_adds)].multiply_adds
    slowest = max(total, key=lambda p: total[p].seconds(plan.network, plan.machine))
    return [
        name,
        str(rounds),
        *(bytes_text(cost.parties[p].sent_bytes) for p in shown),
        bytes_text(cost.preprocessing_bytes),
        count_text(products),
        seconds_text(cost.parties[slowest].seconds(plan.network, plan.machine)),
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with the first column to the left, cut to what the others leave of the width, and the rest to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(1, len(rows[0]))]
    first = min(max(len(row[0]) for row in rows), _COLUMNS - sum(widths) - 2 * len(widths))
    lines = []
    for name, *cells in rows:
        right = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("  ".join([_shortened(name, first).ljust(first), *right]).rstrip())
    return lines


def _footer(plan: Plan) -> list[str]:
    sent, memory = _by_party(plan.sent_bytes), _by_party(plan.peak_bytes)
    return [
        f"one run sends: {sent}",
        f"loading the weights, once: rounds {plan.load.rounds}, sends {_by_party(plan.load.sent_bytes)}",
        f"preparing a run, ahead of its inputs: about {seconds_text(plan.preparing_seconds)}",
        f"memory for shares, about: {memory}",
        _ROUNDING[plan.rounding],
        "rounds and bytes are exact; seconds and memory are estimates (docs/costs.md)",
    ]


def _expenses(plan: Plan) -> list[str]:
    """The most expensive layers, and what would make them cheaper."""
    lines = ["most expensive:"] if plan.most_expensive else []
    for expense in plan.most_expensive:
        rest = f", {expense.share:.0%} of the time, mostly {expense.mostly}"
        lines.append(f"  {_shortened(expense.layer, _COLUMNS - 2 - len(rest))}{rest}")
        for hint in expense.hints:
            lines += wrap(hint, _COLUMNS, initial_indent="    -> ", subsequent_indent="       ")
    return lines


def _by_party(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {bytes_text(count)}" for name, count in counts.items())


def network_text(network: Network) -> str:
    """`lan: 1 Gbit/s, 0.25 ms one way`."""
    speed = f"{network.bandwidth / 1e9:g} Gbit/s" if network.bandwidth >= 1e9 else f"{network.bandwidth / 1e6:g} Mbit/s"
    return f"{network.name}: {speed}, {network.latency * 1e3:g} ms one way"


def bytes_text(count: int) -> str:
    """`12.3 KB`, with thousands as units."""
    return f"{count} B" if count < 1000 else _scaled(count) + "B"


def count_text(count: int) -> str:
    """`12.3 M`, with thousands as units."""
    return str(count) if count < 1000 else _scaled(count)


def _scaled(count: int) -> str:
    number, units = float(count), iter(["", "K", "M", "G", "T", "P"])
    unit = next(units)
    while number >= 999.5 and unit != "P":
        number, unit = number / 1000, next(units)
    return f"{number:.{0 if number >= 99.95 else 1}f} {unit}"


def seconds_text(seconds: float) -> str:
    """`1.25 s` or `3.10 ms`."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"


def _shortened(name: str, columns: int) -> str:
    name = " ".join(name.split())
    return name if len(name) <= columns else name[: columns - 3] + "..."
