"""Fresh shares of zero: whoever receives the shares of a result learns their sum and nothing else.

Each two parties share a stream; one adds its output, the other subtracts it, so all additions cancel. Without
it, a result that is linear in the inputs of several parties would show each party's part of it to the receiver.
Two online parties need none among themselves: the receiver's own share and the result tell it the other share anyway. A
client has no such share, so for it two parties add them, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

from protocols.prg import Stream, Use


def local_pairs(keys: Mapping[str, bytes], me: str) -> dict[str, Stream]:
    """The streams that a party shares with each peer, where one process knows all keys."""
    peers = [name for name in keys if name != me]
    secrets = {peer: b"".join(keys[name] for name in sorted((me, peer))) for peer in peers}
    return {peer: Stream(hashlib.sha256(b"zero shares" + secret).digest()) for peer, secret in secrets.items()}


def add_zero(
    share: torch.Tensor, me: str, streams: Mapping[str, Stream], epoch: int, node: int, index: int = 0
) -> torch.Tensor:
    """A copy of an additive share plus this party's share of zero. `streams`: by peer, the one shared with it; `index`: 0
    for what is revealed, above for states that leave the process."""
    out = share.clone(memory_format=torch.contiguous_format)
    for peer, stream in streams.items():
        stream.fill(out, epoch, node, Use.ZERO, mode="add" if me < peer else "sub", index=index)
    return out
