"""What one round of a program puts on the wire: the same function tells sender, receiver and plan."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from protocols.channel import HEADER_BYTES
from protocols.gates import numel
from protocols.names import EVERYBODY
from protocols.shares import RING_BITS
from securemodel.compiler.ir import Graph, Node, Phase
from securemodel.compiler.ops import ROWS
from securemodel.compiler.passes.schedule import rounds

START = struct.Struct("<16sIII4x")
"""First bytes of each phase's first message: program digest, rows given (0: none), rows still to come, spare."""


@dataclass(frozen=True)
class Step:
    """Local nodes, then the nodes whose openings share one message."""

    local: tuple[Node, ...]
    talk: tuple[Node, ...]


def steps(graph: Graph, phase: Phase) -> tuple[Step, ...]:
    """The rounds of one phase. The first carries START and the inputs, and goes out even if there are none."""
    made = [Step(tuple(local), tuple(talk)) for local, talk in rounds(graph, phase)]
    inputs = tuple(node for step in made for node in step.talk if node.op == "input")
    rest = [Step(step.local, tuple(n for n in step.talk if n.op != "input")) for step in made]
    return (Step((), inputs), *(step for step in rest if step.local or step.talk))


def sent_bits(node: Node) -> int:
    """How many bits of each element are sent: where comparisons alone read a value, the low ones that they need."""
    return node.attrs.get("width", RING_BITS)


def item_bytes(node: Node) -> int:
    """Bytes of one node's part of a message, padded to whole words."""
    return -(-numel(node.shape) * sent_bits(node) // 64) * 8


def sends(node: Node, me: str, peer: str) -> bool:
    """Whether `me` sends `peer` something for this node."""
    rules = {"owner to all": node.owner == me, "all to all": True, "all to owner": node.owner in (peer, EVERYBODY)}
    return rules[cast(str, ROWS[node.op].opens)]


def message_bytes(talk: Sequence[Node], me: str, peer: str, first: bool) -> int:
    """Payload bytes that `me` sends `peer` in one round."""
    return (START.size if first else 0) + sum(item_bytes(n) for n in talk if sends(n, me, peer))


def step_cost(talk: Sequence[Node], parties: Sequence[str], first: bool) -> tuple[dict[str, int], dict[str, int]]:
    """(rounds, sent bytes) of one round for each party, headers included; no round where nothing is exchanged."""
    size = {(a, b): message_bytes(talk, a, b, first) for a in parties for b in parties if a != b}
    rounds, sent = {}, {}
    for me in parties:
        outgoing = [size[me, peer] for peer in parties if peer != me and size[me, peer]]
        incoming = any(size[peer, me] for peer in parties if peer != me)
        rounds[me] = int(bool(outgoing or incoming))
        sent[me] = sum(HEADER_BYTES + nbytes for nbytes in outgoing)
    return rounds, sent


def phase_cost(program_steps: Sequence[Step], parties: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """(rounds, sent bytes) of one phase for each party, headers included."""
    rounds, sent = dict.fromkeys(parties, 0), dict.fromkeys(parties, 0)
    for index, step in enumerate(program_steps):
        step_rounds, step_sent = step_cost(step.talk, parties, index == 0)
        for party in parties:
            rounds[party] += step_rounds[party]
            sent[party] += step_sent[party]
    return rounds, sent
