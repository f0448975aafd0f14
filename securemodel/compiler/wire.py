"""What one round of a program puts on the wire: the same function tells sender, receiver and plan."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

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
    """The rounds of one phase. The first carries START and the inputs, and goes out even if there are none.

    Where a client gives inputs, it carries the masks that are opened on shares: fresh ones, which show nothing to a party
    that turns out to run something else.
    """
    made = [Step(tuple(local), tuple(talk)) for local, talk in rounds(graph, phase)]
    inputs = tuple(node for step in made for node in step.talk if is_given(node))
    rest = [Step(step.local, tuple(n for n in step.talk if not is_given(n))) for step in made]
    shared = tuple(node for node in rest[0].talk if node.op == "mask") if serves_client(graph) else ()
    if shared:
        first = Step(rest[0].local, inputs + shared)
        rest[0] = Step((), tuple(node for node in rest[0].talk if node not in shared))
    else:
        first = Step((), inputs)
    return (first, *(step for step in rest if step.local or step.talk))


def serves_client(graph: Graph) -> bool:
    """Whether a client gives an input of the program."""
    return any(node.op == "client_input" for node in graph.nodes)


def is_given(node: Node) -> bool:
    """Whether an owner alone opens a value, which it has before the first round."""
    return ROWS[node.op].opens == "owner to all"


def sent_bits(node: Node) -> int:
    """How many bits of each element are sent: the low ones that are read of it."""
    return node.attrs.get("width", RING_BITS)


def item_bytes(node: Node) -> int:
    """Bytes of one node's part of a message, padded to whole words."""
    return -(-numel(node.shape) * sent_bits(node) // 64) * 8


def sends(node: Node, me: str, peer: str) -> bool:
    """Whether `me` sends `peer` something for this node."""
    opens = ROWS[node.op].opens
    if opens == "owner to all":
        return node.owner == me
    return opens == "all to all" or node.owner in (peer, EVERYBODY)


def message_bytes(talk: Sequence[Node], me: str, peer: str, first: bool) -> int:
    """Payload bytes that `me` sends `peer` in one round."""
    return (START.size if first else 0) + sum(item_bytes(n) for n in talk if sends(n, me, peer))
