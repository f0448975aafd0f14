"""Where the last party's shares of dealt values come from: the dealer's link, or a store made beforehand."""

from __future__ import annotations

import struct
from typing import Sequence

import torch

from protocols.channel import Label, Link, Purpose
from protocols.gates import Dealt, Part

REQUEST = struct.Struct("<IB3x")
"""A request to the dealer: epoch, and what to do (one of the numbers below)."""
DEAL_RUN, DEAL_LOAD, END = 0, 1, 2


def split_shares(payload: torch.Tensor, parts: Sequence[Part]) -> Dealt:
    """Cuts one message into the shares it carries; they are views of it."""
    out, at = {}, 0
    for part in parts:
        out[part.name] = payload[at : at + part.nbytes].view(part.dtype).view(part.shape)
        at += part.nbytes
    return out


class DealerSource:
    """Shares streamed by the dealer process, asked for epoch by epoch."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def begin(self, epoch: int, load: bool) -> None:
        """Asks the dealer for an epoch."""
        self._link.send(
            Label(epoch, 0, Purpose.REQUEST), [REQUEST.pack(epoch, DEAL_LOAD if load else DEAL_RUN)]
        )

    def dealt(self, epoch: int, node: int, parts: Sequence[Part]) -> Dealt:
        nbytes = sum(part.nbytes for part in parts)
        return split_shares(self._link.receive(Label(epoch, node, Purpose.DEAL), nbytes), parts)

    def close(self) -> None:
        """Ends the session with the dealer."""
        self._link.send(Label(0, 0, Purpose.REQUEST), [REQUEST.pack(0, END)])
        self._link.close()


class NoSource:
    """All ranks but the last: nothing to ask for."""

    def begin(self, epoch: int, load: bool) -> None:
        return None

    def close(self) -> None:
        return None
