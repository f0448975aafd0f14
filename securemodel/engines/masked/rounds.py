"""What a party sends to whom in one message, and where the peers' parts are in theirs: found once for each round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from protocols import kernels
from protocols.channel import Label
from protocols.channel.buffers import Buffer
from protocols.devices import to_device, to_host
from protocols.kernels import Piece
from protocols.shares import Masked, MaskedBits
from securemodel.compiler.ir import Node
from securemodel.compiler.ops import ROWS
from securemodel.compiler.wire import item_bytes, message_bytes, sends
from securemodel.engines.masked import opening
from securemodel.engines.walk import Talk

Opening = tuple[Node, tuple[torch.Tensor | None, opening.Part | None]]
"""A node that talks, what of it goes on the wire, and this party's part."""
Cut = tuple[str, int, int | None]
"""A peer, and where in its message a part begins and ends (None: it is the whole message)."""


@dataclass(frozen=True)
class Together:
    """Openings that all parties send all others, one after the other: hidden, packed and put together by one call each.

    `ids`: the nodes; `args`: what they open.
    """

    ids: tuple[int, ...]
    args: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @staticmethod
    def of(nodes: Sequence[Node]) -> Together | None:
        """None where there is nothing to open, or something that not all parties open to all."""
        if not nodes or any(ROWS[node.op].opens != "all to all" for node in nodes):
            return None
        return Together(
            tuple(node.id for node in nodes),
            tuple(node.args[0] for node in nodes),
            tuple(opening.piece_of(node) for node in nodes),
        )

    def hidden(
        self, env: Mapping[int, Any], lams: Sequence[torch.Tensor]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """This party's shares under its shares of the masks, and what of them goes on the wire, in main memory."""
        values, wires = kernels.hide([env[a] for a in self.args], lams, self.pieces)
        return values, to_host(wires)

    def opened(
        self, values: Sequence[torch.Tensor], lams: Sequence[torch.Tensor], received: Mapping[str, torch.Tensor]
    ) -> list[tuple[int, Masked | MaskedBits]]:
        """By node, what is open once the peers' parts are added to what `hidden` made."""
        device = values[0].device
        for part in received.values():
            kernels.join(values, to_device(part, device), self.pieces)
        each = zip(self.ids, self.pieces, values, lams, strict=True)
        return [(i, MaskedBits(m, lam) if piece.bits else Masked(m, lam)) for i, piece, m, lam in each]


@dataclass(frozen=True)
class Round:
    """What is sent to whom in one message: openings by their places in the round. `cuts`: by opening, where the peers'
    parts of it are in their messages. `together`: all of them, where they can be made so."""

    sends: Mapping[str, tuple[int, ...]]
    receives: dict[str, int]
    cuts: tuple[tuple[Cut, ...], ...]
    together: Together | None = None

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
        received = {peer: size for peer, size in receives.items() if size}
        return Round(mine, received, tuple(cuts), Together.of(nodes) if received and not offset else None)

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
