"""What a program will cost before it runs: rounds and bytes exactly, memory and time as estimates.

Rounds, sent bytes and preprocessing bytes are those that channels count. Time is predicted as
    rounds * latency + bytes / bandwidth + multiply-adds / rate + touched bytes / rate + operations * overhead
where a party sends and receives at once, so the larger of the two counts (docs/costs.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from protocols.channel import HEADER_BYTES
from protocols.gates import GATES
from securemodel.compiler.ir import Graph, Node, Phase
from securemodel.compiler.ops import TALK
from securemodel.compiler.positions import table_nodes
from securemodel.compiler.wire import START, Step, item_bytes, message_bytes, sends, steps
from securemodel.engines.masked.masks import known_factors
from securemodel.planning.costs import Cost, Layer, Machine, Network, PartyCost, find_network
from securemodel.planning.hints import NARROW, most_expensive, narrowed
from securemodel.planning.layer_names import INPUTS, layer_names, recurrent_steps
from securemodel.planning.memory import peak_bytes
from securemodel.planning.table import Plan
from securemodel.planning.work import dealer_multiply_adds, gate_bytes, held, node_work
from securemodel.program import Program

AHEAD_BYTES = 256 << 20
"""What a party prepares at most before it is needed; securemodel.engines.masked.walk does so."""


def make_plan(program: Program, network: str | Network = "lan", machine: Machine | None = None) -> Plan:
    """The plan of a program, compiled or read from a file. Raises InputError for an unknown network."""
    graph, parties, network = program.graph, program.parties, find_network(network)
    machine = machine or Machine()
    recurrent = recurrent_steps(program.model_graph)
    layers = tuple(replace(layer, steps=recurrent.get(layer.name, 0)) for layer in _layers(graph, parties, "run"))
    load = sum((layer.cost for layer in _layers(graph, parties, "load")), _nothing(parties))
    narrow = (
        _layers(narrowed(graph, program.header.frac_bits), parties, "run") if program.header.width > NARROW else layers
    )
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
        bool(table_nodes(graph)),
    )


def _nothing(parties: Sequence[str]) -> Cost:
    return Cost({name: PartyCost() for name in parties})


def _layers(graph: Graph, parties: Sequence[str], phase: Phase) -> tuple[Layer, ...]:
    """One phase by layers, in the order in which they first do something."""
    names = layer_names(graph)
    found: dict[str, Cost] = {}
    have, known = {name: held(graph, parties, name) for name in parties}, known_factors(graph, parties)

    def charge(name: str, cost: Cost) -> None:
        found[name] = found[name] + cost if name in found else cost

    for index, step in enumerate(steps(graph, phase)):
        for node in (*step.local, *step.talk):
            if node.form != "float" or node.op == "reveal":
                charge(names[node.id], _node_cost(graph, node, parties, have, known.get(node.id)))
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


def _node_cost(
    graph: Graph, node: Node, parties: Sequence[str], have: Mapping[str, Sequence[bool]], known: str | None
) -> Cost:
    """What one node costs besides rounds and headers of messages between the parties. `known`: of a product, who knows its
    second operand."""
    costs = {}
    for me in parties:
        work = node_work(graph, node, have[me], me == parties[0], None if known is None else known == me)
        out, into = (_talk_bytes(node, me, parties, sending) for sending in (True, False))
        costs[me] = PartyCost(
            0, out, into, work.multiply_adds, work.prepared_multiply_adds, work.moved_bytes, work.prepared_bytes, 1
        )
    if node.op not in GATES:
        return Cost(costs)
    return Cost(costs, HEADER_BYTES + gate_bytes(graph, node), dealer_multiply_adds(graph, node), 1)


def _talk_bytes(node: Node, me: str, parties: Sequence[str], sending: bool) -> int:
    """Bytes of a node's openings that `me` sends, or receives."""
    if node.op not in TALK:
        return 0
    peers = [peer for peer in parties if peer != me]
    return item_bytes(node) * sum(sends(node, me, peer) if sending else sends(node, peer, me) for peer in peers)
