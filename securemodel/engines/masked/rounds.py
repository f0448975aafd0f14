"""What a party sends to whom in one message, and where the peers' parts are in theirs: found once for each round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch

from protocols.channel import Label
from protocols.channel.buffers import Buffer
from protocols.devices import to_host
from securemodel.compiler.ir import Node
from securemodel.compiler.wire import item_bytes, message_bytes, sends
from securemodel.engines.masked import opening
from securemodel.engines.walk import Talk

Opening = tuple[Node, tuple[torch.Tensor | None, opening.Part | None]]
"""A node that talks, what of it goes on the wire, and this party's part."""
Cut = tuple[str, int, int | None]
"""A peer, and where in its message a part begins and ends (None: it is the whole message)."""


@dataclass(frozen=True)
class Round:
    """What is sent to whom in one message: openings by their places in the round. `cuts`: by opening, where the peers'
    parts of it are in their messages."""

    sends: Mapping[str, tuple[int, ...]]
    receives: dict[str, int]
    cuts: tuple[tuple[Cut, ...], ...]

    @staticmethod
    def of(nodes: Sequence[Node], me: str, peers: Sequence[str], offset: int) -> Round:
        """`offset`: bytes in front of the first opening."""
        mine = {peer: tuple(i for i, node in enumerate(nodes) if sends(node, me, peer)) for peer in peers}
        receives = {peer: message_bytes(nodes, peer, me, bool(offset)) for peer in peers}
        at, cuts = dict.fromkeys(peers, offset), []
        for node in nodes:
            pieces, size = [], item_bytes(node)
            for peer in peers:
                if sends(node, peer, me):
                    whole = size == receives[peer]
                    pieces.append((peer, at[peer], None if whole else at[peer] + size))
                    at[peer] += size
            cuts.append(tuple(pieces))
        return Round(mine, {peer: size for peer, size in receives.items() if size}, tuple(cuts))

    def talk(self, label: Label, items: Sequence[Opening], start: torch.Tensor | None) -> Talk:
        """The round, with what this party sends: where there is a start, in front."""
        outgoing: dict[str, list[Buffer]] = {}
        mine = [i for i, (_, (wire, _)) in enumerate(items) if wire is not None]
        wires = dict(zip(mine, to_host([cast(torch.Tensor, items[i][1][0]) for i in mine]), strict=True))
        for peer, places in self.sends.items():
            buffers = [start] if start is not None else []
            buffers += [wires[i] for i in places]
            if any(buffer.numel() for buffer in buffers):
                outgoing[peer] = buffers
        return Talk(label, outgoing, self.receives)
