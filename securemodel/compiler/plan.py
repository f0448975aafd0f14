"""What a program will cost before it runs: rounds and bytes exactly, memory and time as estimates.

Rounds, sent bytes and preprocessing bytes are those that channels count. Time is predicted as
    rounds * latency + bytes / bandwidth + multiply-adds / rate + touched bytes / rate + operations * overhead
where a party sends and receives at once, so the larger of the two counts (docs/costs.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from protocols.channel import HEADER_BYTES
from protocols.gates import GATES
from securemodel.compiler.hints import NARROW, Expense, most_expensive, narrowed
from securemodel.compiler.ir import Graph, Node, Rounding
from securemodel.compiler.layers import INPUTS, layer_names, recurrent_steps
from securemodel.compiler.memory import peak_bytes
from securemodel.compiler.plantable import plan_text
from securemodel.compiler.wire import START, Step, item_bytes, message_bytes, sends, steps
from securemodel.compiler.work import dealer_multiply_adds, gate_bytes, held, node_work
from securemodel.errors import InputError
from securemodel.shown import Shown

if TYPE_CHECKING:
    from securemodel.program import Program

AHEAD_BYTES = 256 << 20
"""What a party prepares at most before it is needed; securemodel.runtime.remote does so."""


@dataclass(frozen=True)
class Network:
    """A network between the parties: bits per second a party can send and receive at once, seconds one way.

    One way is half a round trip; in a round all parties send at once, so a round takes it once.
    """

    bandwidth: float
    latency: float
    name: str = "custom"

    def __post_init__(self) -> None:
        if not self.bandwidth > 0 or not self.latency >= 0:
            raise InputError(
                f"no network has bandwidth {self.bandwidth} bit/s and latency {self.latency} s: "
                "give a positive bandwidth, and the time one way (half a round trip), 0 or more"
            )


NETWORKS = {
    "local": Network(10e9, 0.1e-3, "local"),
    "lan": Network(1e9, 0.25e-3, "lan"),
    "wan": Network(100e6, 20e-3, "wan"),
}
"""Processes of one host; a round trip of 0.5 ms; a round trip of 40 ms."""


@dataclass(frozen=True)
class Machine:
    """How fast a party or the dealer computes, on a machine of its own.

    The defaults are medians measured on 2 cores of an AMD EPYC server with AVX-512: ring multiply-adds of layers,
    bytes that operations read and write, bytes of masks and dealt shares made from a key, and the fixed time of
    one operation.
    """

    multiply_adds_per_s: float = 15e9
    bytes_per_s: float = 12e9
    prepared_bytes_per_s: float = 4e9
    seconds_per_operation: float = 30e-6

    def __post_init__(self) -> None:
        rates = (self.multiply_adds_per_s, self.bytes_per_s, self.prepared_bytes_per_s)
        if not all(rate > 0 for rate in rates) or not self.seconds_per_operation >= 0:
            raise InputError(f"{self} cannot be: rates are positive, and the time of one operation is 0 or more")

    def online_seconds(self, multiply_adds: int, moved_bytes: int, operations: int) -> float:
        """Time to compute with values that are there."""
        return self._seconds(multiply_adds, moved_bytes / self.bytes_per_s, operations)

    def preparing_seconds(self, multiply_adds: int, made_bytes: int, operations: int) -> float:
        """Time to make masks and dealt shares, and to multiply masks."""
        return self._seconds(multiply_adds, made_bytes / self.prepared_bytes_per_s, operations)

    def _seconds(self, multiply_adds: int, bytes_seconds: float, operations: int) -> float:
        return multiply_adds / self.multiply_adds_per_s + bytes_seconds + operations * self.seconds_per_operation


@dataclass(frozen=True)
class PartyCost:
    """One party's costs: exact counts, from which seconds are predicted. Costs can be added."""

    rounds: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    multiply_adds: int = 0
    prepared_multiply_adds: int = 0
    moved_bytes: int = 0
    prepared_bytes: int = 0
    operations: int = 0

    def __add__(self, other: PartyCost) -> PartyCost:
        return PartyCost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def seconds(self, network: Network, machine: Machine) -> float:
        """Predicted time from sharing the inputs to holding the outputs, everything prepared."""
        talk = self.rounds * network.latency + 8 * max(self.sent_bytes, self.received_bytes) / network.bandwidth
        return talk + machine.online_seconds(self.multiply_adds, self.moved_bytes, self.operations)


@dataclass(frozen=True)
class Cost:
    """Costs of all parties and the dealer. Preprocessing bytes are what the dealer sends to the last party."""

    parties: Mapping[str, PartyCost]
    preprocessing_bytes: int = 0
    dealt_multiply_adds: int = 0
    dealt_messages: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            {name: cost + other.parties[name] for name, cost in self.parties.items()},
            self.preprocessing_bytes + other.preprocessing_bytes,
            self.dealt_multiply_adds + other.dealt_multiply_adds,
            self.dealt_messages + other.dealt_messages,
        )

    @property
    def rounds(self) -> int:
        """Rounds of the party that takes part in most."""
        return max(cost.rounds for cost in self.parties.values())

    @property
    def sent_bytes(self) -> dict[str, int]:
        """Bytes each party sends to the others, headers included."""
        return {name: cost.sent_bytes for name, cost in self.parties.items()}

    def seconds(self, network: Network, machine: Machine) -> float:
        """Predicted online time: the slowest party's."""
        return max(cost.seconds(network, machine) for cost in self.parties.values())

    def preparing_seconds(self, network: Network, machine: Machine) -> float:
        """Predicted time of preparing one run: dealing, sending and expanding overlap, the slowest counts."""
        made = max(cost.prepared_bytes for cost in self.parties.values())
        dealing = machine.preparing_seconds(self.dealt_multiply_adds, len(self.parties) * made, self.dealt_messages)
        sending = network.latency * bool(self.preprocessing_bytes) + 8 * self.preprocessing_bytes / network.bandwidth
        expanding = max(
            machine.preparing_seconds(cost.prepared_multiply_adds, cost.prepared_bytes, self.dealt_messages)
            for cost in self.parties.values()
        )
        return max(dealing, sending, expanding)


@dataclass(frozen=True)
class Layer:
    """A layer's name and its part of the costs. `steps`: of a recurrent layer, those it takes one after the other."""

    name: str
    cost: Cost
    steps: int = 0

    @property
    def rounds_per_step(self) -> float:
        """Rounds of one step of a recurrent layer; 0 for others."""
        return self.cost.rounds / self.steps if self.steps else 0.0


@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """The costs of one run with the compiled number of rows, layer by layer; print it for a table.

    `load` is what sharing the weights costs, once for all runs. `peak_bytes` estimates each party's memory. `rounding` is
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

    def __str__(self) -> str:
        return plan_text(self)


def find_network(network: str | Network) -> Network:
    """A network by its name in NETWORKS, or as given. Raises InputError for an unknown one."""
    if not isinstance(network, str):
        return network
    if network not in NETWORKS:
        raise InputError(
            f"no network is called {network!r}: use {', '.join(map(repr, NETWORKS))}, or "
            "securemodel.compiler.plan.Network(bandwidth=bits per second, latency=seconds one way)"
        )
    return NETWORKS[network]


def make_plan(program: Program, network: str | Network = "lan", machine: Machine | None = None) -> Plan:
    """The plan of a program, compiled or read from a file. Raises InputError for an unknown network."""
    graph, parties, network = program.graph, program.parties, find_network(network)
    machine = machine or Machine()
    recurrent = recurrent_steps(program.model_graph)
    layers = tuple(replace(layer, steps=recurrent.get(layer.name, 0)) for layer in _layers(graph, parties, False))
    load = sum((layer.cost for layer in _layers(graph, parties, True)), _nothing(parties))
    narrow = _layers(narrowed(graph, program.header.frac_bits), parties, False) if program.header.width > NARROW else layers
    seconds = lambda cost: cost.seconds(network, machine)
    return Plan(
        program.digest,
        network,
        machine,
        layers,
        sum((layer.cost for layer in layers), _nothing(parties)),
        load,
        {name: peak_bytes(graph, parties, name, AHEAD_BYTES) for name in parties},
        program.header.rounding,
        most_expensive(graph, program.header, layers, narrow, network, seconds),
    )


def _nothing(parties: Sequence[str]) -> Cost:
    return Cost({name: PartyCost() for name in parties})


def _layers(graph: Graph, parties: Sequence[str], load: bool) -> tuple[Layer, ...]:
    """One phase by layers, in the order in which they first do something."""
    names, found = layer_names(graph), {}
    have = {name: held(graph, parties, name) for name in parties}

    def charge(name: str, cost: Cost) -> None:
        found[name] = found[name] + cost if name in found else cost

    for index, step in enumerate(steps(graph, load)):
        for node in (*step.local, *step.talk):
            if node.form != "float" or node.op == "reveal":
                charge(names[node.id], _node_cost(graph, node, parties, have))
        if step.talk or index == 0:
            charge(names[step.talk[0].id] if step.talk else INPUTS, _round_cost(step, parties, index == 0))
    return tuple(Layer(name, cost) for name, cost in found.items())


def _round_cost(step: Step, parties: Sequence[str], first: bool) -> Cost:
    """What a round costs besides the values it opens: the round itself and the messages' headers."""
    messages = {(a, b): message_bytes(step.talk, a, b, first) for a in parties for b in parties if a != b}
    extra = HEADER_BYTES + (START.size if first else 0)
    costs = {}
    for me in parties:
        out = sum(1 for (sender, _), nbytes in messages.items() if sender == me and nbytes)
        into = sum(1 for (_, receiver), nbytes in messages.items() if receiver == me and nbytes)
        costs[me] = PartyCost(rounds=int(bool(out or into)), sent_bytes=out * extra, received_bytes=into * extra)
    return Cost(costs)


def _node_cost(graph: Graph, node: Node, parties: Sequence[str], have: Mapping[str, Sequence[bool]]) -> Cost:
    """What one node costs besides rounds and headers of messages between the parties."""
    costs = {}
    for me in parties:
        work = node_work(graph, node, have[me], me == parties[0])
        out, into = (_talk_bytes(node, me, parties, sending) for sending in (True, False))
        costs[me] = PartyCost(
            0, out, into, work.multiply_adds, work.prepared_multiply_adds, work.moved_bytes, work.prepared_bytes, 1
        )
    if node.op not in GATES:
        return Cost(costs)
    return Cost(costs, HEADER_BYTES + gate_bytes(graph, node), dealer_multiply_adds(graph, node), 1)


def _talk_bytes(node: Node, me: str, parties: Sequence[str], sending: bool) -> int:
    """Bytes of a node's openings that `me` sends, or receives."""
    if node.op not in ("input", "mask", "mask_bits", "reveal"):
        return 0
    peers = [peer for peer in parties if peer != me]
    return item_bytes(node) * sum(sends(node, me, peer) if sending else sends(node, peer, me) for peer in peers)
