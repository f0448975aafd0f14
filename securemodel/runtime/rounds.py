"""What one round of a program puts on the wire: the same function tells sender, receiver and plan."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Sequence

from protocols.channel import HEADER_BYTES
from protocols.gates import numel
from securemodel.compiler.ir import Graph, Node
from securemodel.compiler.passes.schedule import rounds

START = struct.Struct("<16sIII4x")
"""First bytes of each phase's first message: program digest, rows given (0: none), rows still to come, spare."""


@dataclass(frozen=True)
class Step:
    """Local nodes, then the nodes whose openings share one message."""

    local: tuple[Node, ...]
    talk: tuple[Node, ...]


def steps(graph: Graph, load: bool) -> tuple[Step, ...]:
    """The rounds of one phase. The first carries START and the inputs, and goes out even if there are none."""
    made = [Step(tuple(local), tuple(talk)) for local, talk in rounds(graph, load)]
    inputs = tuple(node for step in made for node in step.talk if node.op == "input")
    rest = [Step(step.local, tuple(n for n in step.talk if n.op != "input")) for step in made]
    return (Step((), inputs), *(step for step in rest if step.local or step.talk))


def item_bytes(node: Node) -> int:
    """Bytes of one node's part of a message, padded to whole words."""
    if node.op == "mask":
        return -(-numel(node.shape) * node.attrs["width"] // 8 // 8) * 8
    return numel(node.shape) * 8


def sends(node: Node, me: str, peer: str) -> bool:
    """Whether `me` sends `peer` something for this node."""
    if node.op == "input":
        return node.owner == me
    if node.op == "reveal":
        return node.owner in (peer, "all")
    return True


def message_bytes(talk: Sequence[Node], me: str, peer: str, first: bool) -> int:
    """Payload bytes that `me` sends `peer` in one round."""
    return (START.size if first else 0) + sum(item_bytes(n) for n in talk if sends(n, me, peer))


def phase_cost(program_steps: Sequence[Step], parties: Sequence[str]) -> tuple[dict[str, int], dict[str, int]]:
    """(rounds, sent bytes) of one phase for each party, headers included."""
    rounds, sent = dict.fromkeys(parties, 0), dict.fromkeys(parties, 0)
    first = True
    for step in program_steps:
        if not step.talk and not first:
            continue
        size = {(a, b): message_bytes(step.talk, a, b, first) for a in parties for b in parties if a != b}
        for me in parties:
            outgoing = [size[me, p] for p in parties if p != me and size[me, p]]
            incoming = any(size[p, me] for p in parties if p != me)
            rounds[me] += bool(outgoing or incoming)
            sent[me] += sum(HEADER_BYTES + n for n in outgoing)
        first = False
    return rounds, sent


