"""A plan, and its text: one line a layer, aligned, at most 110 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

from protocols.identity import MOST_LANES
from securemodel.compiler.ir import Rounding
from securemodel.planning.costs import Cost, Expense, Layer, Machine, Network
from securemodel.planning.units import bytes_text, count_text, network_text, seconds_text
from securemodel.shown import Shown

_COLUMNS = 110
_SHOWN_PARTIES = 3
_ROUNDING = {
    "exact": "rounding exact: results follow from the inputs alone",
    "fast": "rounding fast: results tell their receiver about digits that were cut off (docs/threat-model.md)",
}


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """The costs of one run with the compiled number of rows, layer by layer; print it for a table.

    `load` is what sharing the weights costs, once for all runs; where `shares_rows`, also the rows that steps read. `peak_bytes` estimates each party's memory. `rounding` is
    that of `compile`.
    `most_expensive` names the three layers that take most time, and what would make them cheaper.
    """

    digest: str
    network: Network
    machine: Machine
    layers: tuple[Layer, ...]
    total: Cost
    load: Cost
    peak_bytes: Mapping[str, int]
    rounding: Rounding
    most_expensive: tuple[Expense, ...] = ()
    shares_rows: bool = False

    @property
    def rounds(self) -> int:
        """Rounds of one run; exact."""
        return self.total.rounds

    @property
    def sent_bytes(self) -> dict[str, int]:
        """Bytes each party sends in one run, headers included; exact."""
        return self.total.sent_bytes

    @property
    def preprocessing_bytes(self) -> int:
        """Bytes the dealer sends for one run, headers included; exact."""
        return self.total.preprocessing_bytes

    @property
    def seconds(self) -> float:
        """Predicted online time of one run."""
        return self.total.seconds(self.network, self.machine)

    @property
    def preparing_seconds(self) -> float:
        """Predicted time of preparing one run, which does not need its inputs."""
        return self.total.preparing_seconds(self.network, self.machine)

    @property
    def waiting_seconds(self) -> float:
        """Of `seconds`, those in which nothing is computed or sent, as messages are on their way."""
        return self.rounds * self.network.latency

    @property
    def useful_lanes(self) -> int:
        """Sessions side by side (lanes) whose waiting is filled by each other's work; more want more cores, too."""
        busy = max(self.seconds - self.waiting_seconds, self.preparing_seconds)
        return min(MOST_LANES, max(1, int(max(self.seconds, busy) / busy))) if busy > 0 else 1

    def __str__(self) -> str:
        return plan_text(self)


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
        f"loading the weights{_and_rows(plan)}, once: rounds {plan.load.rounds}, sends {_by_party(plan.load.sent_bytes)}",
        f"preparing a run, ahead of its inputs: about {seconds_text(plan.preparing_seconds)}",
        f"memory for shares, about: {memory}",
        _lanes(plan),
        _ROUNDING[plan.rounding],
        "rounds and bytes are exact; seconds and memory are estimates (docs/costs.md)",
    ]


def _lanes(plan: Plan) -> str:
    waiting = f"waiting for messages: {seconds_text(plan.waiting_seconds)} of a run"
    if plan.useful_lanes == 1:
        return f"{waiting}; lanes side by side want a core each (docs/several-machines.md)"
    return f"{waiting}; up to {plan.useful_lanes} lanes side by side fill it, more want more cores"


def _and_rows(plan: Plan) -> str:
    return " and all rows" if plan.shares_rows else ""


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


def _shortened(name: str, columns: int) -> str:
    name = " ".join(name.split())
    return name if len(name) <= columns else name[: columns - 3] + "..."
